"""Keeping the best network of a run, the network as it was included."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmeta.models import save_weights
from distmeta.rundir import RunDirectory
from distmeta.tensors import LazyTensors, outlines_of, read_tensors, take_part
from distmeta.train.validate import Validation

KEPT = ("best_step", "best_score", "best_score_ci95", "best_start_share")
"""What a run's progress says of the network that is kept."""


def averaged(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float) -> LazyTensors:
    """The weights with a `share` of the starting ones in each: `(1 - share) * weights + share * start`, of which each
    tensor is made when it is asked for.

    What was learned beside the network (heads, rates, a temperature) is averaged like the rest, since it was trained
    along with it. (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903.)
    """

    def make(name: str) -> Tensor:
        value = weights[name]
        return torch.lerp(value, start[name].to(value), share)

    return LazyTensors(outlines_of(weights), make)


class Best:
    """The best validation score so far, and the weights that got it in the run directory: the same on every worker,
    of which one writes, since it may take all of them to gather the weights.

    Args:
        run: where the weights are kept.
        progress: that of the checkpoint that the run goes on from; what it says of the network that is kept is taken
            out of it.
        extra: the tensors of that checkpoint that are kept beside the engine's.
        is_main: whether this worker is the one that writes.
    """

    def __init__(
        self, run: RunDirectory, progress: dict[str, Any], extra: Mapping[str, Mapping[str, Tensor]], is_main: bool
    ) -> None:
        self._run, self.is_main = run, is_main
        kept = _taken(progress)
        if is_main and "best" in extra:
            # What is in the run directory may be of a step after the checkpoint, which may not score the same again.
            save_weights(run.best_weights, extra["best"], kept["best_step"])
        self.score: float | None = kept.get("best_score")
        self._ci95: float | None = kept.get("best_score_ci95")
        self.step: int = kept.get("best_step", 0)
        self.start_share: float = kept.get("best_start_share", 0.0)
        self.validation: Validation | None = None
        """Of the best network; None where it was scored before a resume."""
        self.starting_validation: Validation | None = None
        """Of the starting network; None where it was scored before a resume."""
        self.starting_score: float | None = kept.get("starting_score")
        self._candidates: list[dict[str, Any]] = kept.get("candidates", [])
        self._before: dict[str, Any] | None = kept.get("before_average")
        if is_main and "before-average" in extra:
            save_weights(run.weights_before_average, extra["before-average"], kept["best_step"])

    def go_on(self) -> None:
        """Forgets the average that was chosen at an end which is none any more: the network that it is of is kept."""
        if self._before is None:
            return
        self.step, self.score = self._before["best_step"], self._before["best_score"]
        self._ci95, self.start_share = self._before.get("best_score_ci95"), 0.0
        if self.is_main:
            shutil.copyfile(self._run.weights_before_average, self._run.best_weights)
        self._before, self._candidates = None, []

    def offer(
        self,
        outer_step: int,
        score: float | None,
        ci95: float | None,
        weights: Mapping[str, Tensor],
        validation: Validation | None = None,
        start_share: float = 0.0,
    ) -> None:
        """Keeps the weights if their score is higher than any before, or if there is none to go by; `ci95` is half the
        width of its interval, `start_share` that of the starting weights in them."""
        if outer_step == 0:
            self.starting_score, self.starting_validation = score, validation
            self._save(self._run.starting_weights, weights, 0)
        if score is None or self.score is None or score > self.score or outer_step == self.step:
            self.score, self._ci95, self.step, self.start_share = score, ci95, outer_step, start_share
            self.validation = validation
            self._save(self._run.best_weights, weights, outer_step)

    def note(self, candidates: list[dict[str, Any]]) -> None:
        """Notes the candidates of an end: of each its `outer_step`, `start_share`, `score` and, if known, `ci95`."""
        self._candidates = candidates

    def replace(self, kept: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Keeps one of them, an average or the starting network, instead of the best one, which is put aside."""
        self._before = {key: value for key, value in self._kept.items() if key != "best_start_share"}
        if self.is_main:  # copied, since another worker may be reading it
            shutil.copyfile(self._run.best_weights, self._run.weights_before_average)
        self.step, self.start_share = kept["outer_step"], kept["start_share"]
        self.score, self._ci95 = kept["score"], kept.get("ci95")
        self._save(self._run.best_weights, weights, self.step)

    def _save(self, path: Path, weights: Mapping[str, Tensor], outer_step: int) -> None:
        if self.is_main:
            save_weights(path, weights, outer_step)
        else:
            take_part(weights)

    def weights(self) -> LazyTensors:
        """The weights that are kept."""
        return read_tensors(self._run.best_weights)

    def files(self) -> dict[str, Path]:
        """The files of weights that a checkpoint has to keep, by what they are."""
        before = {} if self._before is None else {"before-average": self._run.weights_before_average}
        return {"best": self._run.best_weights, **before}

    @property
    def _kept(self) -> dict[str, Any]:
        values = dict(zip(KEPT, (self.step, self.score, self._ci95, self.start_share or None), strict=True))
        return {key: value for key, value in values.items() if value is not None}

    @property
    def progress(self) -> dict[str, Any]:
        """What a checkpoint has to remember: scores are absent where no validation was asked for."""
        values = {
            "candidates": self._candidates or None,
            "before_average": self._before,
            "starting_score": self.starting_score,
        }
        return self._kept | {key: value for key, value in values.items() if value is not None}


def _taken(progress: dict[str, Any]) -> dict[str, Any]:
    """Takes what `Best.progress` gave out of a progress, in which a run that began before has other names for averages:
    shares of the trained weights, of averages that were tried on the last network alone."""
    averages, of_trained = progress.pop("averages", None), progress.pop("best_average", None)
    names = (*KEPT, "candidates", "before_average", "starting_score")
    kept = {name: progress.pop(name) for name in names if name in progress}
    if of_trained is not None:
        kept["best_start_share"] = 1 - of_trained
    if averages:
        last = progress["outer_step"]
        kept["candidates"] = [
            {"outer_step": last, "start_share": 1 - float(share), "score": score} for share, score in averages.items()
        ]
    return kept
