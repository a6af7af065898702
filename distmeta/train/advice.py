"""What to change about a run that ended no better than it began, from what it wrote down of itself."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distmeta.config import Config

POINT = 0.01
"""Differences of accuracies below this one are taken for none: the same episodes seldom differ by more by chance."""
GAP = 0.1
"""Accuracy in training above that on the meta-valid classes from which a network is over-fitted."""
SOLVED = 0.98
"""Accuracy in training from which on there is nothing to learn."""
GUESSING = 0.95
"""Share of the loss of guessing above which nothing was learned."""
CLIPPED = 0.1
"""Factor of clipping below which it says that something is wrong with the gradients."""
MOST_LINES = 3

Rows = Sequence[Mapping[str, Any]]


def advise(
    config: Config, metrics: Rows, validation: Rows, training_classes: int | None = None, *, keeps_start: bool = False
) -> list[str]:
    """Up to three lines, the surest first, each with what was seen and what to change; none where the last network is
    better on the meta-valid classes than the starting one, which is not the one that is kept.

    Args:
        config: of the run.
        metrics: the rows of its `metrics.jsonl`.
        validation: the rows of its `validation.jsonl`.
        training_classes: how many classes it was trained on, if that is known.
        keeps_start: whether the starting network is kept, as where others are better by no more than chance.
    """
    use = config.train.select_by
    scores = [(row["outer_step"], row[use]) for row in validation if use in row]
    if len(scores) < 2 or (scores[-1][1] > scores[0][1] and not keeps_start):
        return []
    steps = [row for row in metrics if "training/query_accuracy" in row]
    found = [*_of_the_course(config, scores)]
    if steps:
        found += _of_training(config, steps, validation[-1], training_classes, is_settled=bool(found))
    return found[:MOST_LINES] or [
        f"no step differs from the starting network by more than a point ({_percent(scores[0][1])}), and nothing that "
        f"was written down says why: train for longer (train.outer_steps {config.train.outer_steps}), or on other data"
    ]


def _of_the_course(config: Config, scores: Sequence[tuple[int, float]]) -> Iterator[str]:
    """What the accuracies on the meta-valid classes say, by outer step."""
    rate, (_, start), (first_step, first), (_, last) = config.meta.outer_lr, scores[0], scores[1], scores[-1]
    best_step, best = max(scores[1:], key=lambda each: each[1])
    share = "" if config.train.average_with_start else ", or set train.average_with_start to auto"
    if best >= start + POINT:
        yield (
            f"the meta-valid accuracy rose from {_percent(start)} to {_percent(best)} at outer step {best_step} and "
            f"then fell to {_percent(last)}: lower train.outer_steps to about {best_step}, or set train.patience{share}"
        )
    elif first <= start - POINT:
        yield (
            f"the meta-valid accuracy fell from the first validation on, from {_percent(start)} to {_percent(first)} "
            f"at outer step {first_step}: meta.outer_lr {rate:.2g} is too high, try {rate / 5:.2g}{share}"
        )


def _of_training(
    config: Config, steps: Rows, validated: Mapping[str, Any], training_classes: int | None, *, is_settled: bool
) -> Iterator[str]:
    """What the steps that had tasks say; where the course of the validations `is_settled`, nothing of rates too low."""
    meta, tasks = config.meta, config.tasks
    begun, ended = (
        _mean(steps, "training/query_accuracy", first=True),
        _mean(steps, "training/query_accuracy", first=False),
    )
    loss = _mean(steps, "training/query_loss", first=False)
    ways = f"tasks.n_way ({tasks.n_way})"
    guessing = math.log(tasks.n_way) if isinstance(tasks.n_way, int) else math.inf
    if begun >= SOLVED:
        yield (
            f"the training tasks were solved from the start ({_percent(begun)}), and taught nothing: raise {ways}, or "
            f"lower tasks.k_shot ({tasks.k_shot})"
        )
    elif loss >= GUESSING * guessing and meta.algorithm != "multitask":  # whose loss is over all training classes
        yield (
            f"the training loss ended at {loss:.2f}, and guessing has {guessing:.2f}: the tasks are too hard or the "
            f"steps too few: lower {ways}, raise tasks.k_shot ({tasks.k_shot}) or train.outer_steps"
        )
    elif ended <= begun + POINT and not is_settled:
        yield (
            f"the accuracy in training did not rise ({_percent(begun)} at first, {_percent(ended)} at last): "
            f"meta.outer_lr {meta.outer_lr:.2g} is too low, try {meta.outer_lr * 3:.2g}, or take more train.outer_steps"
        )
    valid = validated.get("inner-loop")
    if valid is not None and ended > begun + POINT and ended >= valid + GAP and isinstance(tasks.n_way, int):
        classes = f"the {training_classes} training classes" if training_classes else "the training classes"
        freeze = " set meta.freeze_lowest," if meta.freeze_lowest is None else ""
        yield (
            f"over-fitted to {classes}: {_percent(ended)} in training, {_percent(valid)} on the meta-valid ones: train "
            f"on more classes or a mixture of sources,{freeze} or lower meta.outer_lr ({meta.outer_lr:.2g})"
        )
    factors = [row["training/clip_factor"] for row in steps if row.get("training/clip_factor") is not None]
    if factors and (factor := statistics.median(factors)) < CLIPPED:
        norm = statistics.median(
            row["training/grad_norm"] for row in steps if row.get("training/clip_factor") is not None
        )
        from_inner = f"; steps of meta.inner_lr {meta.inner_lr:.2g} make such, try {meta.inner_lr / 3:.2g}"
        yield (
            f"gradients of norm {norm:.2g} were clipped to {config.engine.gradient_clipping:g}, {factor:.0%} of it, in "
            f"half of the steps (engine.gradient_clipping){from_inner if 'training/support_loss' in steps[-1] else ''}"
        )


def _mean(rows: Rows, key: str, *, first: bool) -> float:
    """Over the first or the last fifth."""
    size = max(1, len(rows) // 5)
    return statistics.fmean(row[key] for row in (rows[:size] if first else rows[-size:]))


def _percent(share: float) -> str:
    return f"{share:.1%}"
