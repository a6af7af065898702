"""Where words are, in every script.

A word is a segment between Unicode's word boundaries (UAX #29) that has a letter: combining signs, digits and
apostrophes within it are part of it (`don't`, `l'homme`, `3rd`), but not a final 's. A number is none. Some scripts set
no spaces between words:

- Chinese: one character is one word.
- Thai, Lao, Khmer, Burmese, and Japanese, which is known by its kana: ICU's dictionaries cut them. What they give is
  taken where it can be trusted: no single letter, and of Japanese only words of at least two Chinese characters or
  two katakana, since endings in hiragana come in pieces.
- Others, such as Javanese: no dictionary is kept up for them, and a run of letters is no word.

What is left out is told by its script. A Tibetan syllable is a word, as a Chinese character is.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import regex
from icu4py.breakers import WordBreaker

CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Chinese characters, as ranges of a regular expression's class."""


class Segment(NamedTuple):
    """A stretch of a text that counts as a word."""

    start: int
    end: int
    script: str | None
    """None for a word; else the script of which it is left out."""


# Most characters of European and Chinese text follow rules so simple that one pattern finds their words many times
# faster. Not among them: what acts on its neighbours unseen, and letters whose case depends on the language.
_LETTERS = "A-Za-z\xaa\xb5\xba\xc0-\xd6\xd8-\xf6\xf8-\u011d\u0120-\u012f\u0132-\u024f\u0400-\u0481\u048a-\u052f"
_LETTERS += "\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a"
_DIGITS = "0-9\uff10-\uff19"
_JOIN_LETTERS = ":.'‘’․‧·：．＇"
_JOIN_DIGITS = ",;.'‘’․，；．＇"
_JOIN_BOTH = "_＿"
_OTHERS = "\\x00-\\x7f\x80-\xac\xae-\xb7\xb9-\xff\u2010-\u2027\u2030-\u203e\u2041-\u2043\u2045-\u2053"
_OTHERS += "\u2055-\u205e\u20a0-\u20bf№™\u2190-\u23ff\u2500-\u27bf\u3000-\u3003\u3008-\u3020"
_OTHERS += "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff64"
_SIMPLE = re.compile(f"[{_OTHERS}{_LETTERS}{_DIGITS}{CHINESE}]*")
_NUMBER = rf"[{_DIGITS}]++(?:(?:[{_JOIN_BOTH}]++|[{_JOIN_DIGITS}])[{_DIGITS}]++)*+(?![{_JOIN_BOTH}]*[{_LETTERS}])"
_BETWEEN_LETTERS = rf"(?<=[{_LETTERS}])[{_JOIN_LETTERS}](?=[{_LETTERS}])"
_BETWEEN_DIGITS = rf"(?<=[{_DIGITS}])[{_JOIN_DIGITS}](?=[{_DIGITS}])"
_BETWEEN = rf"[{_JOIN_BOTH}]++|{_BETWEEN_LETTERS}|{_BETWEEN_DIGITS}"
_WORD = rf"[{_LETTERS}{_DIGITS}]++(?:(?:{_BETWEEN})[{_LETTERS}{_DIGITS}]++)*+"
_ACCENTS = "`´"
_BEHIND = rf"(?<=['’])|(?<=[{_LETTERS}{CHINESE}][{_ACCENTS}])"
_CUT_OFF = rf"(?:{_BEHIND})(?i:s|t|re|ve|ll|d|m)(?!(?:{_BETWEEN})?[{_LETTERS}{_DIGITS}])"
"""What tokenized text cuts off a word, as in `the dog 's`, or what stands behind an accent in an apostrophe's place."""
_SIMPLE_WORD = re.compile(rf"{_NUMBER}|{_CUT_OFF}|([{CHINESE}]|{_WORD})")
_ENDS_NOT = re.compile(f"[{_LETTERS}{_DIGITS}]")
_IS_CHINESE = re.compile(f"[{CHINESE}]")
_MAY_JOIN = re.compile(f"[{_JOIN_BOTH}{_JOIN_LETTERS}{_JOIN_DIGITS}{_ACCENTS}]")

_KANA = r"\p{Hiragana}\p{Katakana}ーｰﾞﾟ"
_HAS_KANA = regex.compile(f"[{_KANA}]")
_NO_LETTER = r"\p{N}\p{P}\p{S}"
_UNSEEN = r"\p{M}\u200c\u200d\u2060"


def _run(script: str) -> str:
    return rf"[[{script}]--[{_NO_LETTER}\p{{M}}]][[{script}{_UNSEEN}]--[{_NO_LETTER}]]*"


_BY_DICTIONARY = {"Thai": r"\p{Thai}", "Lao": r"\p{Lao}", "Khmer": r"\p{Khmer}", "Burmese": r"\p{Myanmar}"}
_UNDIVIDED = "Ahom Balinese Batak Buginese Javanese Kawi New_Tai_Lue Tai_Le Tai_Tham Tai_Viet".split()  # noqa: SIM905
_RUNS = {name: _run(script) for name, script in _BY_DICTIONARY.items()}
_RUNS |= {name: _run(rf"\p{{{name}}}") for name in _UNDIVIDED}
_RUNS_OF_OTHERS = {"Chinese": rf"[{CHINESE}][{_UNSEEN}々]*"} | _RUNS
_RUNS_OF_JAPANESE = {"Japanese": rf"[{_KANA}{CHINESE}々〆〇][{_KANA}{CHINESE}々〆〇{_UNSEEN}]*"} | _RUNS


def _any_of(runs: dict[str, str]) -> regex.Pattern[str]:
    return regex.compile("|".join(f"(?P<{name}>{run})" for name, run in runs.items()), regex.V1)


_RUN = _any_of(_RUNS_OF_OTHERS)
_RUN_WITH_JAPANESE = _any_of(_RUNS_OF_JAPANESE)
_BOUNDARY = regex.compile(r"\b", regex.V1 | regex.WORD)
_HAS_LETTER = regex.compile(r"[\p{L}\p{Nl}]")
_EDGE = r"(?:[[\p{Pc}\p{Cf}]--[\u200c\u200d]]\p{M}*)+"
_LEADING, _TRAILING = regex.compile(_EDGE, regex.V1), regex.compile(rf"{_EDGE}\Z", regex.V1)
_IS_CUT_OFF = re.compile("(?:s|t|re|ve|ll|d|m)", re.IGNORECASE)
_POSSESSIVE = re.compile(".['’‘ʼ＇]s", re.IGNORECASE)
_APOSTROPHE = regex.compile(rf"(?s:.?)['’]|[\p{{L}}\p{{M}}][{_ACCENTS}]")
_MARK = regex.compile(r"[\p{M}\p{Cf}]")
_TRUSTED_JAPANESE = regex.compile(rf"[{CHINESE}々][{CHINESE}々{_UNSEEN}]+|\p{{Katakana}}[\p{{Katakana}}ーｰﾞﾟ{_UNSEEN}]+")


def _is_simple(text: str) -> bool:
    return text.isascii() or _SIMPLE.fullmatch(text) is not None


def find_segments(text: str) -> Iterator[Segment]:
    """Yield the words of a text, and what is left out."""
    if _is_simple(text):
        for match in _SIMPLE_WORD.finditer(text):
            if match[1]:
                yield Segment(match.start(), _end_of_word(text, *match.span()), None)
        return
    runs = _RUN_WITH_JAPANESE if _HAS_KANA.search(text) else _RUN
    place = 0
    for run in runs.finditer(text):
        yield from _between_boundaries(text, place, run.start())
        place = run.end()
        yield from _cut_run(run[0], run.start(), run.lastgroup or "")
    yield from _between_boundaries(text, place, len(text))


def _between_boundaries(text: str, start: int, end: int) -> Iterator[Segment]:
    if start == end:
        return
    for segment in _BOUNDARY.split(text[start:end]):
        if _HAS_LETTER.search(segment):
            leading, trailing = _LEADING.match(segment), _TRAILING.search(segment)
            first = start + (leading.end() if leading else 0)
            last = start + (trailing.start() if trailing else len(segment))
            is_cut_off = _IS_CUT_OFF.fullmatch(text, first, last) and _APOSTROPHE.fullmatch(
                text, max(0, first - 2), first
            )
            if not is_cut_off:
                yield Segment(first, _end_of_word(text, first, last), None)
        start += len(segment)


def _end_of_word(text: str, start: int, end: int) -> int:
    """Return where a segment ends without the 's of an English possessive."""
    return end - 2 if end - start > 2 and _POSSESSIVE.fullmatch(text, end - 3, end) else end


def _cut_run(run: str, start: int, script: str) -> Iterator[Segment]:
    if script == "Chinese":
        yield Segment(start, start + len(run), None)
        return
    if script in _UNDIVIDED:
        yield Segment(start, start + len(run), script.replace("_", " "))
        return
    pieces: list[str] = []
    for piece in WordBreaker(run, ""):
        if pieces and _MARK.match(piece):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    for piece in pieces:
        is_word = _TRUSTED_JAPANESE.fullmatch(piece) if script == "Japanese" else len(piece) > 1
        yield Segment(start, start + len(piece), None if is_word else script)
        start += len(piece)


class _Lower(dict[str, str]):
    def __missing__(self, word: str) -> str:
        self[word] = lower = word[: _end_of_word(word, 0, len(word))].lower()
        return lower


_LOWER = _Lower()
_REMEMBERED = 500_000
_UNSEEN_WITHIN = regex.compile(r"[\p{Cf}--[\u200c\u200d]]", regex.V1)
_IS_TURKIC = re.compile("[ıİğĞ]")
_TURKIC = str.maketrans({"I": "ı", "İ": "i"})


def find_words(text: str) -> tuple[list[str], list[str]]:
    """Return the names of the words of a text, in order, and of each stretch that is left out its script.

    A word's name is the word in lower case, without soft hyphens and the like. It is no case folding, which spells
    words as nobody does (the Greek final sigma, the German sharp s); with Turkish letters in the text, I becomes ı.
    """
    if _is_simple(text):
        if len(_LOWER) > _REMEMBERED:
            _LOWER.clear()
        return [_LOWER[word] for word in _SIMPLE_WORD.findall(text) if word], []
    is_turkic = _IS_TURKIC.search(text) is not None
    names, left_out = [], []
    for start, end, script in find_segments(text):
        if script is None:
            names.append(_name(text[start:end], is_turkic))
        else:
            left_out.append(script)
    return names, left_out


def _name(word: str, is_turkic: bool) -> str:
    return _UNSEEN_WITHIN.sub("", word.translate(_TURKIC) if is_turkic else word).lower()


def find_word(text: str, name: str) -> list[tuple[int, int]]:
    """Return where the words of a text with this name start and end."""
    if _is_simple(text):
        return [(start, start + len(name)) for start in _find_simple(text.lower(), name)]
    is_turkic = _IS_TURKIC.search(text) is not None
    return [
        (start, end)
        for start, end, script in find_segments(text)
        if script is None and _name(text[start:end], is_turkic) == name
    ]


def _find_simple(text: str, word: str) -> Iterator[int]:
    is_chinese = _IS_CHINESE.match(word) is not None
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if is_chinese or _stands_alone(text, start, end):
            yield start
            start = text.find(word, end)
        else:
            start = text.find(word, start + 1)


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    if _ENDS_NOT.match(before) or _ENDS_NOT.match(after):
        return False
    if not (_MAY_JOIN.match(before) or _MAY_JOIN.match(after)):
        return True
    # What could join it to its neighbours never reaches beyond a space.
    first, last = text.rfind(" ", 0, start) + 1, text.find(" ", end)
    chunk = text[first : last if last >= 0 else len(text)]
    return any(segment[:2] == (start - first, end - first) for segment in find_segments(chunk))
