"""Class names that look the same and are not: they differ in Unicode form, case, blanks or width, or as 1 and 1.0."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import regex

from distmeta.corpus.words import hash64

GROUPS = 1000
"""Groups that are named; the others are counted."""
_UNSEEN = regex.compile(r"[\p{Cf}\p{Variation_Selector}\p{Cc}--\s]", regex.V1)
_SIGNS = str.maketrans("‘’‛`´“”„‟«»‐‑‒–—−", '\'\'\'\'\'""""""------')
_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)\.0+")
"""What a number becomes where a library has made floats of a column of whole ones, as for a single missing value."""
_MISSING = frozenset(["nan", "null", "none", "na", "n/a", "#n/a", "<na>", "nat"])
_NO_NUMBERS = ("-1", "-1.0")
_IS_NUMBER = re.compile(r"[0-9]+(\.0+)?")
_ESCAPED = regex.compile(r"[[\p{M}\p{C}\p{Z}]--[ ]]", regex.V1)


def look(name: str) -> str:
    """Return what names that look the same have in common: signs, case, blanks, width and what is unseen set aside.

    1.0 has the look of 1.
    """
    folded = unicodedata.normalize("NFKC", name.translate(_SIGNS)).casefold()
    seen = " ".join(_UNSEEN.sub("", unicodedata.normalize("NFKC", folded)).split())
    number = _WHOLE_NUMBER.fullmatch(seen)
    return number[1] if number else seen


def find_alike(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that look the same, by name."""
    names = list(names)
    looks = np.fromiter((hash64(look(name)) for name in names), np.uint64, len(names))
    order = np.argsort(looks, kind="stable")
    same = looks[order[1:]] == looks[order[:-1]]
    groups: dict[int, list[str]] = defaultdict(list)
    for place in order[np.r_[False, same] | np.r_[same, False]] if len(names) > 1 else ():
        groups[int(looks[place])].append(names[place])
    return sorted(sorted(group) for group in groups.values())


def find_like_missing(names: Iterable[str]) -> list[str]:
    """Return the names that programs also write for a missing label: NaN, null, and -1 beside numbers of classes."""
    names = sorted(names)
    others = [name for name in names if name not in _NO_NUMBERS]
    numbered = bool(others) and all(_IS_NUMBER.fullmatch(name) for name in others)
    return [name for name in names if name.strip().casefold() in _MISSING or (numbered and name in _NO_NUMBERS)]


def name_splits(groups: Iterable[list[str]], split_of: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the groups with the split of each name (`none` where it is in none), those in several splits first."""
    named = [{name: split_of.get(name, "none") for name in group} for group in groups]
    return sorted(named, key=lambda group: len({*group.values()} - {"none"}) < 2)


def spelled(name: str) -> str:
    """Return a name in quotes, with a code for what cannot be seen or told apart in it."""
    return f"'{_ESCAPED.sub(lambda match: ascii(match[0])[1:-1], name)}'"


def describe_like_missing(names: list[str]) -> list[str]:
    """Return a line that lists the names, of a set of labels; no line where there are none."""
    if not names:
        return []
    return [
        f"classes called as programs write a missing label: {', '.join(map(spelled, names))}; where they are no "
        "classes take their rows out, or empty their labels"
    ]


def describe_alike(groups: list[dict[str, str]], total: int, most: int = 20) -> list[str]:
    """Return a warning that lists the groups, a line each; no line where there are none."""
    if not groups:
        return []
    lines = [
        f"warning: {total} group{'s' * (total > 1)} of class names look the same; each name is a class of its own, and "
        "what differs is Unicode form, case, blanks, width or how a number is spelled:"
    ]
    lines += [
        "  " + ", ".join(f"{spelled(name)} ({split})" for name, split in group.items()) for group in groups[:most]
    ]
    return lines if total <= most else [*lines, f"  and {total - most} more groups: labels_alike in manifest.json"]
