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
from distmeta.tasks.mixture import Mixture

Accuracies = dict[str, dict[str, list[float]]]
"""Those of episodes, by use and data set."""


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
        n_way, all_way = setup.tasks("valid"), setup.tasks("valid", n_way="all")
        self._sources: list[tuple[str, TaskSource | Mixture, int, tuple[Use, ...]]] = [
            ("", n_way, n_way.whole_turns(episodes), n_way_uses),
            ("-all-way", all_way, all_way.whole_turns(max(1, episodes // 10)), ("prototype",)),
        ]

    def score(self, parameters: Parameters, is_stopping: Callable[[], bool]) -> dict[str, float] | None:
        """Mean accuracy as `inner-loop`, `prototype` and `prototype-all-way`, and half the width of its 95% interval as
        `inner-loop_ci95` and so on (absent for a single episode), the same on every worker, which all have to call it.

        Of several data sets, which have as many episodes each, it is the mean over them, and `inner-loop/NAME` and so
        on are those of each.

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
        accuracies: Accuracies = {}
        for suffix, source, episodes, uses in self._sources:
            indices = takewhile(lambda _: not is_stopping(), range(self._rank, episodes, self._world_size))
            for task in map(source.draw, indices):
                for scores in scorer.score([task], uses):
                    for use, score in scores.items():
                        accuracies.setdefault(use + suffix, {}).setdefault(task.source, []).append(score.accuracy)
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
        accuracies: dict[str, list[float]] = {}
        for first in range(0, episodes, self._world_size):  # a round of an episode a worker, some of the last without
            if self._any(is_stopping()):
                return None
            indices = range(first + self._rank, min(first + self._rank + 1, episodes))
            drawn = [source.draw(index) for index in indices]
            tasks = [collate_task(task, pad, device) for task in drawn]
            for whole, task, found in zip(drawn, tasks, scores(tasks), strict=True):
                accuracy = float((found.argmax(1) == task.query_labels).float().mean())
                accuracies.setdefault(whole.source, []).append(accuracy)
        return self._means({"inner-loop": accuracies} if accuracies else {})

    def _any(self, flag: bool) -> bool:
        """Whether it is set on any worker."""
        if self._world_size == 1:
            return flag
        value = torch.tensor(float(flag), device=self._device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return bool(value)

    def _means(self, accuracies: Accuracies) -> dict[str, float]:
        gathered: list[Accuracies | None] = [accuracies]
        if self._world_size > 1:
            gathered = [None] * self._world_size
            torch.distributed.all_gather_object(gathered, accuracies)
        means: dict[str, float] = {}
        # As every worker has them, those without an episode included.
        for name in dict.fromkeys(name for part in gathered if part for name in part):
            # Sorted, so that the mean does not depend on which worker scored which episode.
            there = [part[name] for part in gathered if part and name in part]
            scored = {
                dataset: mean_ci95(sorted(value for part in there for value in part.get(dataset, [])))
                for dataset in sorted({dataset for part in there for dataset in part})
            }
            means[name] = sum(mean for mean, _ in scored.values()) / len(scored)
            # The data sets are the same every time, and only their episodes are a sample.
            half_width = math.hypot(*(width for _, width in scored.values())) / len(scored)
            if math.isfinite(half_width):
                means[f"{name}_ci95"] = half_width
            if len(scored) > 1:
                means |= {f"{name}/{dataset}": mean for dataset, (mean, _) in scored.items()}
        return means
