"""Recipes: what settings are that are left unset, by the algorithm and by whether the model is loaded or new.

Rates that a new model needs destroy in a few steps what a loaded one knows. What was measured of those of loaded
models, and of some of new ones, by `jobs/benchmarks/recipes.py`, stands in `jobs/configs/findings.md`. Not measured
are metaicl's, set low, and `train.patience`; searched on fewer steps than a run has, and then measured with all of
them, are maml's, fomaml's, metasgd's and reptile's.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distmeta.impossible import (
    WITHOUT_DISTANCES,
    WITHOUT_INNER_LOOP,
    WITHOUT_KEPT_SIMILARITY,
    partitioned_needs,
    written,
)
from distmeta.meta.registry import algorithm_names

if TYPE_CHECKING:
    from distmeta.config import Config
    from distmeta.meta.config import MetaConfig

Recipe = dict[str, Any]
"""Values by dotted key."""

OTHERS = "others"
"""The recipe of every algorithm that has none, those that a user has registered included. It is whole; the line of an
algorithm has what is different."""

NEW: dict[str, Recipe] = {
    OTHERS: {
        "meta.outer_lr": 1e-3,
        "meta.inner_lr": 0.01,
        "meta.inner_steps": 5,
        "meta.distance": "euclidean",
        "meta.keep_similarity": 0.0,
        "train.outer_steps": 400,
        "train.select_by": "inner-loop",
        "train.average_with_start": 0.0,
        "train.patience": 0,
    },
}

LOADED: dict[str, Recipe] = {
    OTHERS: {
        "meta.outer_lr": 2e-5,
        "meta.inner_lr": 0.01,
        "meta.inner_steps": 5,
        "meta.distance": "euclidean",
        "meta.keep_similarity": 0.0,
        "train.outer_steps": 40,
        "train.select_by": "prototype",
        "train.average_with_start": "auto",
        "train.patience": 5,
    },
    "maml": {"meta.outer_lr": 5e-5, "meta.inner_lr": 0.1},
    "fomaml": {"meta.outer_lr": 5e-5, "meta.inner_lr": 0.1},
    "reptile": {"meta.outer_lr": 2e-5},
    "anil": {"meta.outer_lr": 5e-5, "meta.inner_lr": 0.3},
    "metasgd": {"meta.outer_lr": 5e-5, "meta.inner_lr": 0.1},
    "protomaml": {"meta.outer_lr": 5e-5},
    "protonet": {"meta.outer_lr": 5e-5, "meta.distance": "cosine", "meta.keep_similarity": 10.0},
    "leopard": {"meta.outer_lr": 2e-5},
    "metaicl": {"meta.outer_lr": 2e-5, "train.select_by": "inner-loop"},  # in context, where it learns nothing else
    "multitask": {"meta.outer_lr": 1e-4},
}

KEYS = tuple(NEW[OTHERS])
"""The settings that a recipe decides, unset in every section as it is declared."""

OF_VALIDATIONS: Recipe = {"train.average_with_start": 0.0, "train.patience": 0}
"""What goes by validations, as it is without any."""

FAR_ABOVE = 10.0
"""Times the outer learning rate of the recipe, from which on a loaded model is expected to lose what it knows."""


def recipe(algorithm: str, is_loaded: bool) -> Recipe:
    """The value of each of `KEYS`."""
    recipes = LOADED if is_loaded else NEW
    return recipes[OTHERS] | recipes.get(algorithm, {})


def recipe_of(config: "Config") -> Recipe:
    """The recipe of a run: without validations nothing that goes by them, and where weights may come to be partitioned
    nothing that those cannot have."""
    found = recipe(*_kind(config))
    if not config.train.validates:
        found |= OF_VALIDATIONS
    needs = {key: possible[0] for key, _, possible in partitioned_needs(config)}
    wanted = config.engine.weights
    if wanted == "partitioned" or (wanted == "auto" and needs.keys() <= found.keys()):
        found |= {key: value for key, value in needs.items() if key in found}
    return found


def filled(config: "Config") -> "Config":
    """A copy with a value for every setting that a recipe decides and that is unset."""
    return _with_unset(config, recipe_of(config))


def as_begun(config: "Config", before: "Config") -> "Config":
    """A copy in which such a setting has the value that a run or a sweep has begun with, if it is of the same kind: to
    go on is to go on as before, also where a recipe has changed since."""
    return _with_unset(config, {key: _value(before, key) for key in KEYS} if _kind(before) == _kind(config) else {})


def filled_meta(meta: "MetaConfig", is_loaded: bool) -> "MetaConfig":
    """The same of the settings of meta-learning alone."""
    meta = meta.model_copy()
    for key, value in recipe(meta.algorithm, is_loaded).items():
        section, _, name = key.partition(".")
        if section == "meta" and getattr(meta, name) is None:
            setattr(meta, name, value)
    return meta


def _with_unset(config: "Config", values: Mapping[str, Any]) -> "Config":
    config = config.model_copy(deep=True)
    for key, value in values.items():
        if _value(config, key) is None:
            section, _, name = key.partition(".")
            setattr(getattr(config, section), name, value)
    return config


def _value(config: "Config", key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _kind(config: "Config") -> tuple[str, bool]:
    return config.meta.algorithm, config.model.name_or_path is not None


# --- telling it -------------------------------------------------------------------------------------------------


def recipe_lines(config: "Config", swept: Iterable[str] = ()) -> Iterator[str]:
    """What a run takes from its recipe and what not, in a line, and a line where that cannot end well. Of a sweep it
    is the configuration as it stands, without the keys that are swept."""
    config = filled(config)
    algorithm, is_loaded = _kind(config)
    kept: list[str] = []
    changed: list[str] = []
    own = recipe_of(config)
    told = [key for key in KEYS if key not in swept and _has(algorithm, key)]
    for key in told:
        value = _value(config, key)
        (kept if value == own[key] else changed).append(f"{key} {written(value)}")
    line = f"recipe of {algorithm} for a {'loaded' if is_loaded else 'new'} model: {', '.join(kept) or 'none of it'}"
    yield f"{line}; set otherwise: {', '.join(changed)}" if changed else line
    if {"meta.algorithm", "model.name_or_path"} & set(swept):
        yield "a trial of another algorithm or model takes what is left unset from the recipe of its own"
    rate, usual = config.meta.outer_lr, own["meta.outer_lr"]
    if is_loaded and "meta.outer_lr" in told and rate >= FAR_ABOVE * usual:
        yield (
            f"meta.outer_lr: {rate:g} is {rate / usual:.0f} times the {usual:g} of the recipe, and a loaded model is "
            "likely to lose by it what it knows; leave it out, unless this is meant"
        )


def recipe_table() -> list[str]:
    """The recipes as a table of text, a line an algorithm."""
    names = [key.partition(".")[2] for key in KEYS]
    lines = []
    for title, recipes in (("loaded", LOADED), ("new", NEW)):
        rows = [[title, *names]]
        for algorithm in [*(name for name in algorithm_names() if name in recipes), OTHERS]:
            label = f"  {algorithm}" if len(recipes) > 1 else "  every algorithm"
            values = recipes[OTHERS] | recipes[algorithm]
            rows.append([label, *(written(values[key]) if _has(algorithm, key) else "-" for key in KEYS)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return lines


def _has(algorithm: str, key: str) -> bool:
    """Whether a setting means anything to an algorithm."""
    if key in ("meta.inner_lr", "meta.inner_steps"):
        return algorithm not in WITHOUT_INNER_LOOP
    if key == "meta.keep_similarity":
        return algorithm not in WITHOUT_KEPT_SIMILARITY
    return key != "meta.distance" or algorithm not in WITHOUT_DISTANCES
