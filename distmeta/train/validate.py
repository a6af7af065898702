"""Validation while training: the meta-valid classes, on the same episodes every time, shared out over the workers."""

import math
from collections.abc import Callable
from itertools import takewhile

import torch
import torch.distributed

from distmeta.compute.batch import TaskBatch, collate_task
from distmeta.evaluate.results import Use
from distmeta.evaluate.score import Scorer
from distmeta.evaluate.statistics import mean_ci95
from distmeta.meta import Algorithm
from distmeta.models import Network, Parameters
from distmeta.setup import Setup
from distmeta.tasks.draw import TaskSource


class Validator:
    """Scores parameters N-way, as in training, and all-way by prototype, which tells networks apart for longer."""

    def __init__(
        self, setup: Setup, network: Network, algorithm: Algorithm, rank: int, world_size: int, device: torch.device
    ) -> None:
        config = setup.config
        self._setup, self._network, self._algorithm = setup, network, algorithm
        self._rank, self._world_size, self._device = rank, world_size, device
        episodes = config.train.validate_episodes
        # An all-way episode holds every class, so a tenth as many tell as much; an inner loop on so many texts would
        # cost more than the training that it is to judge.
        n_way_uses: tuple[Use, ...] = ("inner-loop", "prototype")
        self._sources: list[tuple[str, TaskSource, int, tuple[Use, ...]]] = [
            ("", setup.tasks("valid"), episodes, n_way_uses),
            ("-all-way", setup.tasks("valid", n_way="all"), max(1, episodes // 10), ("prototype",)),
        ]

    def score(self, parameters: Parameters, is_stopping: Callable[[], bool]) -> dict[str, float] | None:
        """Mean accuracy as `inner-loop`, `prototype` and `prototype-all-way`, and half the width of its 95% interval as
        `inner-loop_ci95` and so on (absent for a single episode), the same on every worker, which all have to call it.

        None: `is_stopping`, which is asked before each episode, said so on one of them.
        """
        config = self._setup.config
        scorer = Scorer(
            self._network,
            parameters,
            self._algorithm,
            self.inner_steps,
            config.engine.precision,
            self._setup.tokenizer.pad_token_id,
        )
        accuracies: dict[str, list[float]] = {}
        for suffix, source, episodes, uses in self._sources:
            indices = takewhile(lambda _: not is_stopping(), range(self._rank, episodes, self._world_size))
            tasks = (source.draw(index) for index in indices)
            for scores in scorer.score(tasks, uses):
                for use, score in scores.items():
                    accuracies.setdefault(use + suffix, []).append(score.accuracy)
        return None if self._any(is_stopping()) else self._means(accuracies)

    @property
    def inner_steps(self) -> int:
        """Steps of the inner loop."""
        config = self._setup.config
        return config.evaluate.inner_steps or config.meta.inner_steps

    def score_by(
        self, scores: Callable[[list[TaskBatch]], list[torch.Tensor]], is_stopping: Callable[[], bool]
    ) -> dict[str, float] | None:
        """The same by a function that adapts to tasks and scores their queries, of this worker's share of the N-way
        episodes: `inner-loop` and its interval."""
        _, source, episodes, _ = self._sources[0]
        pad, device = self._setup.tokenizer.pad_token_id, self._device
        accuracies = []
        for first in range(0, episodes, self._world_size):  # a round of an episode a worker, some of the last without
            if self._any(is_stopping()):
                return None
            indices = range(first + self._rank, min(first + self._rank + 1, episodes))
            tasks = [collate_task(source.draw(index), pad, device) for index in indices]
            for task, found in zip(tasks, scores(tasks), strict=True):
                accuracies.append(float((found.argmax(1) == task.query_labels).float().mean()))
        return self._means({"inner-loop": accuracies})

    def _any(self, flag: bool) -> bool:
        """Whether it is set on any worker."""
        if self._world_size == 1:
            return flag
        value = torch.tensor(float(flag), device=self._device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return bool(value)

    def _means(self, accuracies: dict[str, list[float]]) -> dict[str, float]:
        gathered: list[dict[str, list[float]] | None] = [accuracies]
        if self._world_size > 1:
            gathered = [None] * self._world_size
            torch.distributed.all_gather_object(gathered, accuracies)
        means: dict[str, float] = {}
        # As every worker has them, those without an episode included.
        for name in dict.fromkeys(name for part in gathered if part for name in part):
            # Sorted, so that the mean does not depend on which worker scored which episode.
            values = sorted(value for part in gathered if part for value in part.get(name, []))
            means[name], half_width = mean_ci95(values)
            if math.isfinite(half_width):
                means[f"{name}_ci95"] = half_width
        return means
