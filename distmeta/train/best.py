"""Keeping the best network of a run, the network as it was included."""

from typing import Any

from distmeta.models import Parameters
from distmeta.models.weights import save_weights
from distmeta.rundir import RunDirectory


class Best:
    """The best validation score so far, and the weights that got it in the run directory.

    A resumed run passes the `progress` of its checkpoint and repeats what was done after that, with the same outcome.
    """

    def __init__(self, run: RunDirectory, progress: dict[str, Any]) -> None:
        self._run = run
        self._score: float | None = progress.get("best_score")
        self._step: int | None = progress.get("best_step")
        self._starting_score: float | None = progress.get("starting_score")

    def offer(self, outer_step: int, score: float | None, parameters: Parameters) -> None:
        """Keeps the parameters if their score is higher than any before, or if there is none to go by."""
        if outer_step == 0:
            self._starting_score = score
            save_weights(self._run.starting_weights, parameters, 0)
        if score is None or self._score is None or score > self._score:
            self._score, self._step = score, outer_step
            save_weights(self._run.best_weights, parameters, outer_step)

    @property
    def progress(self) -> dict[str, Any]:
        """What a checkpoint has to remember: scores are absent where no validation was asked for."""
        values = {"best_step": self._step, "best_score": self._score, "starting_score": self._starting_score}
        return {key: value for key, value in values.items() if value is not None}
