"""How many tokens steps and tasks have, counted on some that the run will draw."""

import math
from typing import Any

from distmeta.config import Config
from distmeta.setup import Setup
from distmeta.tasks.draw import TaskSource
from distmeta.tasks.mixture import Mixture
from distmeta.tracking.cost import StepTokens

DRAWN = 8
"""Outer steps whose work is drawn to count its tokens."""
SAMPLE = 256
"""Tasks that are drawn where they differ in size."""


def task_tokens(source: TaskSource | Mixture, index: int, config: Config) -> int:
    """Tokens that a task is computed on."""
    task = source.draw(index)
    support, query = (sum(len(each.input_ids) for each in half) for half in (task.support, task.query))
    return config.meta.inner_steps * support + query


def differ_in_size(source: TaskSource | Mixture) -> bool:
    """Whether tasks have different numbers of texts, or texts of several data sets."""
    return isinstance(source, Mixture) or not (isinstance(source.n_way, int) and isinstance(source.k_shot, int))


def step_tokens(setup: Setup, *, with_tasks: bool) -> StepTokens:
    """Mean tokens of an outer step over all workers, counted on some that the run will draw."""
    import torch

    from distmeta.train.work import WorkSource

    config = setup.config
    if not with_tasks and not config.meta.lm_warmup_steps:
        return StepTokens()
    source = WorkSource(setup, torch.device("cpu"), 0, 1)
    first = config.meta.lm_warmup_steps if with_tasks else 0
    drawn = math.ceil(SAMPLE / config.meta.meta_batch_size) if differ_in_size(setup.tasks("train")) else DRAWN
    count = drawn if with_tasks else min(DRAWN, config.meta.lm_warmup_steps)
    pieces = [piece for step in range(first, first + count) for piece in source.take(step)]
    source.close()
    batches: dict[str, list[Any]] = {"support": [], "query": [], "lm": []}
    predictions = 0
    for piece in pieces:
        if piece.task is not None:
            batches["support"].append(piece.task.support)
            batches["query"].append(piece.task.query)
        if piece.text is not None:
            batches["lm"].append(piece.text.tokens)
            predictions += len(piece.text.targets)
    tokens = {name: round(sum(batch.num_tokens for batch in each) / count) for name, each in batches.items()}
    texts = {name: round(sum(len(batch.input_ids) for batch in each) / count) for name, each in batches.items()}
    return StepTokens(
        **tokens,
        **{f"{name}_texts": value for name, value in texts.items()},
        lm_predictions=round(predictions / count),
        tasks=config.meta.meta_batch_size if with_tasks else 0,
    )
