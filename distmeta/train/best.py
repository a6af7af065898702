"""Keeping the best network of a run, the network as it was included."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distmeta.models import save_weights
from distmeta.rundir import RunDirectory
from distmeta.tensors import LazyTensors, read_tensors, take_part


class Best:
    """The best validation score so far, and the weights that got it in the run directory: the same on every worker,
    of which one writes, since it may take all of them to gather the weights.

    Args:
        run: where the weights are kept.
        progress: that of the checkpoint that the run goes on from.
        weights: the best weights of that checkpoint.
        is_main: whether this worker is the one that writes.
    """

    def __init__(
        self, run: RunDirectory, progress: dict[str, Any], weights: Mapping[str, Tensor] | None, is_main: bool
    ) -> None:
        self._run, self._is_main = run, is_main
        if weights is not None and is_main:
            # What is in the run directory may be of a step after the checkpoint, which may not score the same again.
            save_weights(run.best_weights, weights, progress["best_step"])
        self._score: float | None = progress.get("best_score")
        self._ci95: float | None = progress.get("best_score_ci95")
        self._step: int | None = progress.get("best_step")
        self._starting_score: float | None = progress.get("starting_score")
        self._average: float | None = progress.get("best_average")
        self._averages: dict[str, float] = progress.get("averages", {})

    def offer(
        self,
        outer_step: int,
        score: float | None,
        ci95: float | None,
        parameters: Mapping[str, Tensor],
        average: float | None = None,
    ) -> None:
        """Keeps the parameters if their score is higher than any before, or if there is none to go by; `ci95` is half
        the width of its interval, `average` the share of trained weights where the starting ones have the rest."""
        if outer_step == 0:
            self._starting_score = score
            self._save(self._run.starting_weights, parameters, 0)
        if average is not None and score is not None:
            self._averages[f"{average:g}"] = score
        if score is None or self._score is None or score > self._score:
            self._score, self._ci95, self._step, self._average = score, ci95, outer_step, average
            self._save(self._run.best_weights, parameters, outer_step)

    def _save(self, path: Path, parameters: Mapping[str, Tensor], outer_step: int) -> None:
        if self._is_main:
            save_weights(path, parameters, outer_step)
        else:
            take_part(parameters)

    def weights(self) -> LazyTensors:
        """The weights that are kept, for a checkpoint."""
        return read_tensors(self._run.best_weights)

    @property
    def progress(self) -> dict[str, Any]:
        """What a checkpoint has to remember: scores are absent where no validation was asked for."""
        values = {
            "best_step": self._step,
            "best_score": self._score,
            "best_score_ci95": self._ci95,
            "best_average": self._average,
            "averages": self._averages or None,
            "starting_score": self._starting_score,
        }
        return {key: value for key, value in values.items() if value is not None}
