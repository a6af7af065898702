"""Settings of one source by a dotted key, `corpus.sources.NAME.weight`, where the tree has a list."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distmeta.corpus.config import BUILTIN, CorpusConfig, SourceConfig
from distmeta.corpus.datasets import COMMON, name_of_path, names_of_sources
from distmeta.errors import UserError, one_line

if TYPE_CHECKING:
    from distmeta.tasks.config import TasksConfig

PREFIX = "corpus.sources."
WEIGHT = "weight"
"""The setting of a source that changes no corpus, and so may differ between the trials of a sweep."""


def read_weight(key: str, corpus: CorpusConfig, tasks: "TasksConfig") -> float:
    """Return the weight of the data set that a key names.

    Raises:
        UserError: no data set has that name, or the key is of another setting.
    """
    weights = [corpus.sources[place] for place in _places(key, corpus, tasks)]
    weight = weights[0].weight if isinstance(weights[0], SourceConfig) else None
    return 1.0 if weight is None else weight


def set_weight(tree: dict[str, Any], key: str, value: Any, corpus: CorpusConfig, tasks: "TasksConfig") -> None:
    """Give the data set that a key names another weight, in the dumped tree of a checked configuration.

    Raises:
        UserError: as `read_weight`.
    """
    sources = tree["corpus"]["sources"]
    for place in _places(key, corpus, tasks):
        sources[place] = _as_mapping(sources[place]) | {WEIGHT: value}


def set_by_name(tree: dict[str, Any], key: str, value: Any) -> list[dict[str, Any]]:
    """Set what a key names of all sources of a name, in a raw tree; one without a name is called as its path is.

    Returns:
        the sources.

    Raises:
        UserError: there is no such source, or no such setting, or it is one that each has for itself.
    """
    name, setting = _parts(key)
    corpus = tree["corpus"] if isinstance(tree.get("corpus"), dict) else {}
    tree["corpus"] = corpus
    sources: list[Any] = corpus["sources"] if isinstance(corpus.get("sources"), list) else [BUILTIN]
    corpus["sources"] = sources
    names = [_raw_name(source) for source in sources]
    places = [place for place, each in enumerate(names) if each == name]
    _require_name(key, name, setting, names)
    if setting not in SourceConfig.model_fields:
        near = difflib.get_close_matches(setting, SourceConfig.model_fields, n=1, cutoff=0.5) or [WEIGHT]
        raise UserError(one_line(f"{key}: unknown key; did you mean {PREFIX}{name}.{near[0]}?"))
    if len(places) > 1 and setting not in (*COMMON, "name"):
        raise UserError(
            one_line(f"{key}: {len(places)} sources are {name}, and each has its own {setting}; set it in the file")
        )
    for place in places:
        sources[place] = _as_mapping(sources[place]) | {setting: value}
    return [sources[place] for place in places]


def _places(key: str, corpus: CorpusConfig, tasks: "TasksConfig") -> list[int]:
    """Return which sources are the data set that a key names."""
    name, setting = _parts(key)
    names = names_of_sources(corpus, tasks)
    _require_name(key, name, setting, names)
    if setting != WEIGHT:
        raise UserError(
            one_line(
                f"{key}: of a source its weight alone can vary, {PREFIX}{name}.{WEIGHT}; what else it says makes "
                "another corpus, so vary corpus.sources as a whole"
            )
        )
    return [place for place, each in enumerate(names) if each == name]


def _parts(key: str) -> tuple[str, str]:
    name, _, setting = key.removeprefix(PREFIX).rpartition(".")
    if not name:
        raise UserError(one_line(f"{key}: write it as {PREFIX}NAME.{WEIGHT}, with the name of a source"))
    return name, setting


def _require_name(key: str, name: str, setting: str, names: Sequence[str | None]) -> None:
    known = list(dict.fromkeys(each for each in names if each))
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {PREFIX}{near[0]}.{setting}?"
    elif known:
        hint = f"they are {', '.join(known)}"
    else:
        hint = "none has a name; give it one, as in {path: ..., name: " + name + "}"
    raise UserError(one_line(f"{key}: no source is called {name}; {hint}"))


def _raw_name(source: Any) -> str | None:
    """Return what a source is called in a tree that nobody has checked."""
    if not isinstance(source, dict):
        return name_of_path(source) if isinstance(source, str) else None
    if isinstance(source.get("name"), str):
        return str(source["name"])
    return name_of_path(source["path"]) if isinstance(source.get("path"), str) else None


def _as_mapping(source: Any) -> dict[str, Any]:
    return dict(source) if isinstance(source, dict) else {"path": source}
