"""Choosing the network that a run keeps: by validations while it trains, and at its end among averages as well."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch.distributed
from torch import Tensor

from distmeta.config import Config
from distmeta.rundir import RunDirectory
from distmeta.store.folders import address_of, carry, refresh
from distmeta.tensors import LazyTensors, read_tensors
from distmeta.train.best import Best, averaged
from distmeta.train.config import SHARES
from distmeta.train.record import Recorder
from distmeta.train.stepper import Partitioned, Whole
from distmeta.train.validate import Validation, Validator

IsStopping = Callable[[], bool]


@dataclass(frozen=True)
class Candidate:
    """A network that may be kept."""

    outer_step: int
    start_share: float
    validation: Validation
    weights: Mapping[str, Tensor]

    def score(self, use: str) -> float:
        """Its accuracy in the use that selects."""
        return self.validation.scores[use]


def choose(candidates: Sequence[Candidate], use: str) -> Candidate:
    """The one to keep.

    It has the largest share of the starting weights among those that are as good as the best: of which the paired
    difference to it is no larger than its standard error. So of differences that are noise the network is taken that
    has forgotten less of what the starting one knew, which itself has a share of 1, and a gain that shows is not given
    away.
    """
    best = max(candidates, key=lambda each: each.score(use))

    def is_as_good(each: Candidate) -> bool:
        deficit, error = each.validation.deficit(best.validation, use)
        return deficit <= error

    return max(filter(is_as_good, candidates), key=lambda each: (each.start_share, each.score(use)))


def share_weights(run: RunDirectory, *, is_main: bool) -> None:
    """Sees to it, on every worker, that each has the weights that the first one has written into the folder of the run;
    where that is on a disk all have it anyway.

    Raises:
        UserError: the storage has not answered for long, or another driver has taken the run over.
    """
    if address_of(run.path) is None or not torch.distributed.is_initialized():
        return
    if is_main:
        carry(run.path)
    torch.distributed.barrier()
    if not is_main:
        refresh(run.starting_weights.parent)


class Chooser:
    """Validates the network of a run, keeps the best one, and tells when no better one is to be waited for. The same on
    every worker, all of which have to call it.

    Args:
        config: of the run.
        run: where what is kept is.
        stepper: has the weights, and scores them.
        validator: None: nothing is validated, and the last network is kept.
        recorder: writes scores down, on the main worker.
        best: the best network so far.
        progress: that of the checkpoint that the run goes on from; what it says of an early end is taken out of it.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        stepper: Whole | Partitioned,
        validator: Validator | None,
        recorder: Recorder | None,
        best: Best,
        progress: dict[str, Any],
    ) -> None:
        self._train, self._first = config.train, config.meta.lm_warmup_steps
        self._run, self._stepper, self._validator, self._recorder = run, stepper, validator, recorder
        self._best = best
        ended: dict[str, Any] | None = progress.pop("ended_early", None)
        is_over = ended is not None and all(ended[key] == value for key, value in self._limits.items())
        self.ended_early = ended if is_over else None
        """Where validations have shown that the run may end: `reason`, a line of text, and what it went by."""
        if not self.ended_early and progress["outer_step"] < self._train.outer_steps:
            best.go_on()

    @property
    def _limits(self) -> dict[str, int]:
        """What an early end depends on, beside the validations."""
        return {"patience": self._train.patience or 0, "outer_steps": self._train.outer_steps}

    def is_due(self, outer_step: int) -> bool:
        """Whether a validation follows that step."""
        return outer_step == self._train.outer_steps or (
            self._validator is not None and outer_step % self._train.interval == 0
        )

    def validate(self, outer_step: int, is_stopping: IsStopping) -> dict[str, float] | None:
        """Scores the network of an outer step, which may become the one that is kept, and at an end its averages with
        the starting one. Returns the scores as a row of the metrics has them; None: `is_stopping` said so.

        With a share of the starting weights to be kept, it is the average that is scored, and may be kept: what is
        selected is what is used.
        """
        asked = self._train.average_with_start
        share = asked if outer_step and isinstance(asked, float) else 0.0
        with self._stepper.weights() as own:
            weights = averaged(own, self._start, share) if share else own
            is_end = outer_step in (0, self._train.outer_steps)
            found = self._score(weights, is_stopping, are_own=not share, inner_loops=is_end)
            if found is None:
                return None
            if self._recorder and found.scores:
                self._recorder.validation(outer_step, found.scores)
            use = self._train.select_by
            score, ci95 = found.scores.get(use), found.scores.get(f"{use}_ci95")
            self._best.offer(outer_step, score, ci95, weights, found, share)
            row = {f"validation/{name}": value for name, value in found.scores.items()}
            reason = self._reason_to_end(outer_step)
            if outer_step == self._train.outer_steps or reason:
                last = Candidate(outer_step, 0.0, found, own)
                averages = self._try_averages(last, is_stopping)
                if averages is None:
                    return None
                row |= averages
            self.ended_early = {"reason": reason, **self._limits} if reason else None
        return row

    @cached_property
    def _start(self) -> LazyTensors:
        """The starting weights, for which all workers ask at the same time."""
        share_weights(self._run, is_main=self._best.is_main)
        return read_tensors(self._run.starting_weights)

    def _reason_to_end(self, outer_step: int) -> str | None:
        """Why the run ends with this step, before its last one."""
        patience, interval = self._train.patience, self._train.interval
        if not patience or self._validator is None or outer_step >= self._train.outer_steps:
            return None
        since = max(self._best.step, self._first)  # before which nothing but the language model is trained
        if outer_step // interval - since // interval < patience:
            return None
        return f"{patience} validations after outer step {since} found no better network (train.patience)"

    def _try_averages(self, last: Candidate, is_stopping: IsStopping) -> dict[str, float] | None:
        """With `auto`, keeps what `choose` says of the best network, the last one, their averages with the starting
        weights, and these. Returns the averages' scores; None: `is_stopping` said so."""
        if self._train.average_with_start != "auto" or self._validator is None:
            return {}
        share_weights(self._run, is_main=self._best.is_main)
        use, best, start = self._train.select_by, self._best, self._start
        found = best.starting_validation or self._score(start, is_stopping, are_own=False)
        if found is None:
            return None
        starting, trained = Candidate(0, 1.0, found, start), [last]
        if 0 < best.step != last.outer_step and not best.start_share:
            found = best.validation or self._score(best.weights(), is_stopping, are_own=False)
            if found is None:
                return None
            trained.insert(0, Candidate(best.step, 0.0, found, best.weights()))
        candidates = list(trained)
        for each in trained:
            for share in SHARES:
                weights = averaged(each.weights, start, share)
                found = self._score(weights, is_stopping, are_own=False)
                if found is None:
                    return None
                candidates.append(Candidate(each.outer_step, share, found, weights))
        kept = choose([*candidates, starting], use)
        rows = [_row(each, use) for each in candidates]
        best.note(rows)
        # A network that is an average already was chosen among such by a run that began before there was a share.
        is_better = not best.start_share or best.score is None or kept.score(use) > best.score
        is_kept_already = kept.outer_step == best.step and not (kept.outer_step and kept.start_share)
        if is_better and not is_kept_already:
            best.replace(_row(kept, use), kept.weights)
        return {
            f"validation/average/{r['start_share']:g}/{r['outer_step']}": r["score"] for r in rows if r["start_share"]
        }

    def _score(
        self, weights: Mapping[str, Tensor], is_stopping: IsStopping, *, are_own: bool, inner_loops: bool = False
    ) -> Validation | None:
        """The scores of the network with its own weights, or with others; empty where nothing is validated. Inner loops
        are run where they are asked for, and where they select."""
        if self._validator is None:
            return Validation({}, {})
        inner_loops = inner_loops or self._train.select_by == "inner-loop"
        return self._stepper.score(weights, self._validator, is_stopping, are_own=are_own, inner_loops=inner_loops)

    @property
    def progress(self) -> dict[str, Any]:
        """What a checkpoint has to remember."""
        return self._best.progress | ({"ended_early": self.ended_early} if self.ended_early else {})


def _row(candidate: Candidate, use: str) -> dict[str, Any]:
    share = candidate.start_share if candidate.outer_step else 0.0  # the starting network is told as that of step 0
    row = {"outer_step": candidate.outer_step, "start_share": share, "score": candidate.score(use)}
    ci95 = candidate.validation.scores.get(f"{use}_ci95")
    return row if ci95 is None else row | {"ci95": ci95}
