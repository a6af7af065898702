"""Features that no inner loop changes: of each distinct text once a network, in one pass sorted by length."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distmeta.compute.batch import collate_tokens
from distmeta.compute.precision import passes_in
from distmeta.corpus.executor import Executor
from distmeta.corpus.parts import make_part
from distmeta.errors import Interrupted
from distmeta.evaluate.networks import Place, ScoredNetwork, Tokens, load
from distmeta.evaluate.score import Scorer

BATCH_TOKENS = 4096
"""Tokens that go through the network together where no gradient is asked for."""
UNIT_TOKENS = 16_384
"""Tokens of a unit of work: what a stopped pass loses at most."""
STEP, FILE = "features", "features.npy"


@dataclass(frozen=True, slots=True)
class FeaturesUnit:
    """Texts of like length, as a network takes them."""

    step: Path | None
    """Where the result is kept; None: nowhere."""
    identity: str
    place: Place
    texts: tuple[Tokens, ...]


@dataclass(frozen=True)
class Features:
    """What a network makes of texts."""

    values: NDArray[np.floating]
    """(texts, width)."""
    seconds: NDArray[np.floating]
    """(texts,): of the pass, by the number of tokens."""
    folders: tuple[Path, ...] = ()
    """Where they are kept."""


def compute_features(
    network: ScoredNetwork,
    tokens: Sequence[Tokens],
    executor: Executor,
    work: Path | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Features:
    """The features of each text, given by its tokens. With a folder `work` what is computed is kept there, and is found
    again.

    Raises:
        Interrupted: `is_stopped` said so before the last text.
    """
    distinct: dict[Tokens, int] = {}
    places = [distinct.setdefault(each, len(distinct)) for each in tokens]
    texts = list(distinct)
    # The longest first: what does not fit into memory is told at once, and the rest takes no longer than it seems.
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number][0]))
    groups = runs([len(texts[number][0]) for number in order], UNIT_TOKENS)
    step = work / STEP if work else None
    numbers = [order[first:end] for first, end in groups]
    units = [
        FeaturesUnit(step, network.identity, network.place, tuple(texts[number] for number in group))
        for group in numbers
    ]
    values: NDArray[np.floating] | None = None
    seconds = np.zeros(len(texts))
    folders = []
    results = executor.map(_of_unit, units, f"features of {network.name}")
    for done, (group, (part, took, folder)) in enumerate(zip(numbers, results, strict=True), 1):
        folders += [folder] if folder else []
        if values is None:
            values = np.empty((len(texts), part.shape[1]), np.float32)
        values[group] = part
        lengths = np.array([len(texts[number][0]) for number in group])
        seconds[group] = took * lengths / lengths.sum()
        if is_stopped() and done < len(numbers):
            raise Interrupted(f"stopped after {done} of {len(numbers)} parts of the features of {network.name}")
    assert values is not None, "an evaluation without texts"
    return Features(values[places], seconds[places], tuple(folders))


def runs(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Runs of neighbours, as (first, end), that have no more than `limit` together, or are a single one."""
    runs, first, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > first and total + size > limit:
            runs.append((first, number))
            first, total = number, 0
        total += size
    return [*runs, (first, len(sizes))] if sizes else []


def _of_unit(unit: FeaturesUnit) -> tuple[NDArray[np.floating], float, Path | None]:
    """The features of a unit's texts, the seconds that the network took, and where they are kept."""
    if unit.step is None:
        return *_compute(unit), None

    def write(folder: Path) -> dict[str, Any]:
        values, seconds = _compute(unit)
        np.save(folder / FILE, values)
        return {"seconds": seconds}

    part = make_part(unit.step, [unit.identity, unit.texts], write)
    return np.load(part.folder / FILE), part.summary["seconds"], part.folder


def _compute(unit: FeaturesUnit) -> tuple[NDArray[np.floating], float]:
    scorer = load(unit.place)
    started = time.perf_counter()
    return features_of(scorer, unit.texts), time.perf_counter() - started


@torch.no_grad()
def features_of(scorer: Scorer, texts: Sequence[Tokens]) -> NDArray[np.floating]:
    """The features of texts, (texts, width), in batches of `BATCH_TOKENS`; padded least where they come by length."""
    device = next(iter(scorer.parameters.values())).device
    network, training = scorer.network, scorer.network.training
    network.eval()
    parts = []
    try:
        with passes_in(scorer.precision):
            for first, end in runs([len(ids) for ids, _ in texts], BATCH_TOKENS):
                ids, masks = zip(*texts[first:end], strict=True)
                batch = collate_tokens(ids, scorer.pad_token_id, device, masks)
                parts.append(network.features(scorer.parameters, batch).float().cpu())
    finally:
        network.train(training)
    return torch.cat(parts).numpy()
