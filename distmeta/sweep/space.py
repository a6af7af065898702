"""The search space of a sweep: which values the swept keys may take, and the settings of a trial made of them."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna

from distmeta.config import Config, read_key, with_values
from distmeta.errors import UserError
from distmeta.impossible import WITHOUT_INNER_LOOP, impossible, missing_files
from distmeta.recipes import KEYS, filled
from distmeta.sweep.config import SpaceEntry
from distmeta.tasks.draw import generator

Values = dict[str, Any]
"""Values of the swept keys, by dotted key. One whose condition does not hold is absent."""


class Space:
    """The space of `sweep.space`, checked against the configuration that it varies.

    Raises:
        UserError: a key is not there or cannot be swept, or a value cannot be its key's; a line for each.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._entries = config.sweep.space
        faults = [fault for key, entry in self._entries.items() for fault in self._faults(key, entry)]
        if not self._entries:
            faults = ["sweep.space: is empty; name at least one key, such as meta.inner_lr"]
        if faults:
            raise UserError("\n".join(faults))
        self._listed = {key: _listed(entry) for key, entry in self._entries.items()}

    def default(self) -> Values:
        """The values that the configuration has as it stands."""
        return self._draw(lambda key, _: read_key(filled(self._config), key))

    def random(self, seed: int, index: int) -> Values:
        """Draw number `index`, the same at any time. Successive draws go through the entries of type grid in turn."""
        random = generator(seed, "sweep", index)
        combination = index

        def pick(key: str, entry: SpaceEntry) -> Any:
            nonlocal combination
            listed = self._listed[key]
            if listed is not None and entry.type == "grid":
                combination, position = divmod(combination, len(listed))
                return listed[position]
            if listed is not None:
                return listed[int(random.integers(len(listed)))]
            low, high = _range(entry)
            if entry.type == "loguniform":
                return float(math.exp(random.uniform(math.log(low), math.log(high))))
            return float(random.uniform(low, high))

        return self._draw(pick)

    def grid(self) -> Iterator[Values]:
        """Every point, see `points`.

        Raises:
            UserError: a key has a range that cannot be gone through.
        """
        if self.continuous():
            key = next(iter(self.continuous()))
            raise UserError(f"sweep.space.{key}: a grid needs a list of values, not a range; see sweep.search")
        return self.points()

    def points(self) -> Iterator[Values]:
        """Every combination of the listed values and whole numbers, each once, in order; none that has a range."""
        return (values for values in self._walk(list(self._entries), {}) if values is not None)

    def number_of_points(self, most: int) -> int | None:
        """How many points there are, the configuration as it stands among them; None: more than so many."""
        points = list(itertools.islice(self._walk(list(self._entries), {}), most + 1))
        default = self.default()
        if None not in points and all(identity(point) != identity(default) for point in points):
            points.append(default)
        return None if None in points or len(points) > most else len(points)

    def _walk(self, keys: list[str], values: Values) -> Iterator[Values | None]:
        """The points from these values on, over the keys that are left; None for all those of a range."""
        if not keys:
            yield values
            return
        key, *others = keys
        if not self._is_swept(key, values):
            yield from self._walk(others, values)
            return
        listed = self._listed[key]
        if listed is None:
            yield None
            return
        for value in listed:
            yield from self._walk(others, {**values, key: value})

    def suggest(self, trial: optuna.trial.Trial) -> Values:
        """The values that Optuna proposes for a trial."""

        def pick(key: str, entry: SpaceEntry) -> Any:
            listed, (low, high) = self._listed[key], _range(entry)
            if entry.type == "randint":
                return trial.suggest_int(key, int(low), int(high))
            if listed is not None:
                return listed[trial.suggest_categorical(key, list(range(len(listed))))]
            return trial.suggest_float(key, low, high, log=entry.type == "loguniform")

        return self._draw(pick)

    def as_parameters(self, values: Values) -> dict[str, Any]:
        """The same values as `suggest` has them in Optuna's own terms: of a list, the position."""
        lists = {key: self._listed[key] for key in values if self._entries[key].type != "randint"}
        return {
            key: value if (known := lists.get(key)) is None else known.index(value) for key, value in values.items()
        }

    def holds(self, values: Values) -> bool:
        """Whether the space holds these values."""
        return all(self._holds(key, value) for key, value in values.items())

    def continuous(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each key that has a range of numbers."""
        return {key: _range(entry) for key, entry in self._entries.items() if entry.type in ("uniform", "loguniform")}

    def idle(self) -> list[str]:
        """A line for each key that no trial follows, since no algorithm of the sweep has an inner loop."""
        swept = self._listed.get("meta.algorithm") or [self._config.meta.algorithm]
        if not set(swept) <= set(WITHOUT_INNER_LOOP):
            return []
        inner = [key for key in self._entries if key.startswith("meta.inner_")]
        return [
            f"sweep.space.{key}: changes nothing, since {' and '.join(swept)} trains no inner loop" for key in inner
        ]

    def largest(self) -> Config:
        """The configuration with the most and the largest workers that a trial can have."""
        values = {
            key: max(entry.values, key=_most) if entry.values is not None else _at_end(entry, "high")
            for key, entry in self._entries.items()
            if key in ("train.num_workers", "train.cpus_per_worker")
        }
        return filled(with_values(self._config, values))

    def _draw(self, pick: Callable[[str, SpaceEntry], Any]) -> Values:
        values: Values = {}
        for key, entry in self._entries.items():
            if self._is_swept(key, values):
                values[key] = pick(key, entry)
        return values

    def _is_swept(self, key: str, values: Values) -> bool:
        """Whether the condition of a key holds, given the values of those before it."""
        return all(
            self._value(other, values) in _as_list(allowed)
            for other, allowed in (self._entries[key].when or {}).items()
        )

    def _value(self, key: str, values: Values) -> Any:
        """What a key has beside the values that are there already."""
        if key in values:
            return values[key]
        value = read_key(self._config, key)
        if value is None and key in KEYS:  # by recipe, which may be that of a swept algorithm
            return read_key(filled(with_values(self._config, values)), key)
        return value

    def _holds(self, key: str, value: Any) -> bool:
        listed = self._listed[key]
        if listed is not None:
            return value in listed
        low, high = _range(self._entries[key])
        return isinstance(value, int | float) and low <= value <= high

    def _faults(self, key: str, entry: SpaceEntry) -> Iterator[str]:
        where = f"sweep.space.{key}"
        if key.split(".")[0] in ("sweep", "tracking") or key in ("corpus.directory", "train.storage"):
            yield f"{where}: cannot be swept; it says where a run is kept, not what it does"
            return
        if entry.type in ("choice", "grid"):
            if not entry.values:
                yield f"{where}.values: {entry.type} needs a list of values"
                return
            candidates = entry.values
        else:
            if entry.low is None or entry.high is None or not entry.low < entry.high:
                yield f"{where}: {entry.type} needs a low below a high, got {entry.low} and {entry.high}"
                return
            if entry.type == "loguniform" and entry.low <= 0:
                yield f"{where}.low: loguniform needs a number above 0, got {entry.low}"
                return
            if entry.type == "randint" and not all(
                end.is_integer() and abs(end) <= 2**53 for end in (entry.low, entry.high)
            ):
                yield f"{where}: randint needs whole numbers of at most 2^53, got {entry.low:g} and {entry.high:g}"
                return
            candidates = [_at_end(entry, "low"), _at_end(entry, "high")]
        before = list(self._entries)[: list(self._entries).index(key)]
        for other in entry.when or {}:
            if other in self._entries and other not in before:
                yield f"{where}.when: {other} is swept as well and has to stand before it"
        for name in [key, *(entry.when or {})]:
            try:
                read_key(self._config, name)
            except UserError as error:
                yield f"{where}: {error}"
                return
        for value in candidates:
            try:
                with_values(self._config, {key: value})
            except UserError as error:
                yield f"{where}: {error}"


def trial_config(config: Config, values: Values) -> Config:
    """The configuration of a trial, its section `sweep` as by default.

    Raises:
        UserError: the values cannot go together.
    """
    made = with_values(config, values)
    # Files that only a trial names have not been looked for yet.
    names_files = any(key.startswith(("corpus.", "tasks.split_files")) for key in values)
    problems = [*impossible(filled(made)), *(missing_files(made) if names_files else ())]
    if problems:
        settings = ", ".join(f"{key}={value}" for key, value in values.items())
        raise UserError("\n".join(f"with {settings}: {problem}" for problem in problems))
    made.sweep = type(made.sweep)()
    return made


def grace_steps(config: Config) -> int:
    """Outer steps before a scheduler may decide on a trial."""
    return config.sweep.grace_steps or config.meta.lm_warmup_steps + config.train.interval


def identity(values: Any) -> str:
    """Tells points, or values, that differ apart: 1 and true do, 5 and 5.0 do not."""
    return json.dumps(json.loads(json.dumps(values), parse_int=float), sort_keys=True)


def _listed(entry: SpaceEntry) -> Sequence[Any] | None:
    """The values of a list, each once, or the whole numbers; None: a range of numbers."""
    if entry.type == "randint":
        low, high = _range(entry)
        return range(int(low), int(high) + 1)
    return None if entry.values is None else list({identity(value): value for value in entry.values}.values())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _range(entry: SpaceEntry) -> tuple[float, float]:
    """Lowest and highest value of a range."""
    return entry.low or 0.0, entry.high or 0.0


def _most(value: int | float | list[int]) -> int | float:
    """The high end of a value of `train.num_workers`."""
    return value[-1] if isinstance(value, list) else value


def _at_end(entry: SpaceEntry, end: str) -> float | int:
    value = getattr(entry, end)
    return int(value) if entry.type == "randint" else value
