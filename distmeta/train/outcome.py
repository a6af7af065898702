"""What a run's progress says of the network that it keeps, in words."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from distmeta.train.config import TrainConfig


def is_over(progress: Mapping[str, Any], train: TrainConfig) -> bool:
    """Whether a run has come to its end, with nothing left to do for one that goes on."""
    is_last = progress["outer_step"] == train.outer_steps and "unvalidated" not in progress
    return is_last or "ended_early" in progress or "diverged" in progress


def how_it_is_chosen(train: TrainConfig) -> str:
    """How the network that a run keeps will be chosen, from a resolved configuration."""
    share = train.average_with_start
    average = f", {in_words(share)}" if isinstance(share, float) and share else ""
    if not train.validates:
        return f"nothing is validated: the last network is kept{average}"
    tried = ", or its average with the starting weights" if share == "auto" else average
    end = f"; {train.patience} without a better one end the run" if train.patience else ""
    return f"a validation every {train.interval} outer steps chooses the best network by {train.select_by}{tried}{end}"


def kept_lines(progress: Mapping[str, Any], use: str, outer_steps: int) -> Iterator[str]:
    """Which network is kept, how accurate it is on the meta-valid classes in the `use` that chose it, beside what else
    it was chosen from, and why the run ended early, if it did; nothing where there was nothing to say."""
    if early := progress.get("ended_early"):
        yield f"ended at outer step {progress['outer_step']} of {outer_steps}: {early['reason']}"
    share = progress.get("best_start_share")
    network = f"the network of outer step {progress['best_step']}" + (f", {in_words(share)}" if share else "")
    if "best_score" in progress:
        yield (
            f"kept {network}: meta-valid {use} accuracy {progress['best_score']:.1%}, "
            f"{progress['starting_score']:.1%} before training"
        )
    elif share:
        yield f"kept {network}"
    if tried := candidates_in_words(progress):
        yield f"chosen from {tried}"
    if "best_score" in progress and progress["best_step"] == 0:
        yield (
            "training made the network no better on the meta-valid classes, or by no more than chance: the starting "
            "network is what is kept"
        )


def in_words(start_share: float) -> str:
    """What an average with the starting weights is, behind the network that it is of."""
    return f"with {start_share:.0%} of the starting weights"


def candidates_in_words(progress: Mapping[str, Any]) -> str:
    """The networks among which one was chosen at the end, with their accuracies; empty where there were none."""
    rows = sorted(progress.get("candidates", []), key=lambda row: (row["outer_step"], row["start_share"]))
    told = []
    for step, group in groupby(rows, lambda row: row["outer_step"]):
        shares = [f"{row['score']:.1%} {in_words(row['start_share'])}" for row in group]
        told.append(f"step {step}: {', '.join(shares)}")
    return "; ".join(told)
