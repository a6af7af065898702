"""Validation while training: the meta-valid classes, on the same episodes every time, shared out over the workers.

What needs no more than features of texts is scored on many episodes, since one pass over their distinct texts serves
all of them. An inner loop that adapts the network costs passes of its own in each, and has few.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
import torch.distributed

from distmeta.compute.batch import TaskBatch, collate_task
from distmeta.evaluate.baselines import nearest_prototype
from distmeta.evaluate.episodes import Episode, Texts, episode_of
from distmeta.evaluate.features import features_of, runs
from distmeta.evaluate.networks import Tokens
from distmeta.evaluate.score import Scorer
from distmeta.evaluate.statistics import mean_ci95
from distmeta.meta import Algorithm
from distmeta.models import Network, Parameters
from distmeta.setup import Setup

T = TypeVar("T")

POOL_TEXTS = 1000
"""Texts of a data set that the episodes of a validation are made of, about: the features of each cost a pass.

BANKING77's 25 valid classes have 3,300, and the texts of 200 episodes drawn from all of them would take three times as
long as the training steps between two validations of a short run.
"""
BATCH_TOKENS = 2048
"""Tokens of a batch of texts, of which each worker takes its share."""
ALL_WAY_SHARE = 5
"""N-way episodes for one with all classes, which has more queries: 125 of 25 classes, where 5-way has 25."""

Accuracies = dict[str, dict[str, dict[int, float]]]
"""Those of episodes, by use, data set and number of the episode."""


@dataclass(frozen=True)
class Validation:
    """What a network scored."""

    scores: dict[str, float]
    """Mean accuracy by use, `USE_ci95` and `USE/DATASET`: see `Validator.score`."""
    accuracies: Mapping[str, Mapping[str, Sequence[float]]]
    """Of each episode, in order, by use and data set."""

    def deficit(self, best: "Validation", use: str) -> tuple[float, float]:
        """How much lower the mean accuracy in a use is than another network's on the same episodes, and the standard
        error of that paired difference; of a single episode it is not known, and infinite."""
        own, others = self.accuracies[use], best.accuracies[use]
        means, squares = [], []
        for dataset, values in own.items():
            differences = np.subtract(others[dataset], values)
            means.append(float(differences.mean()))
            error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
            squares.append(float(error) ** 2)
        return sum(means) / len(means), math.sqrt(sum(squares)) / len(squares)


class Validator:
    """Scores parameters N-way, as in training, and all-way by prototype, which tells networks apart for longer."""

    def __init__(
        self, setup: Setup, network: Network, algorithm: Algorithm, rank: int, world_size: int, device: torch.device
    ) -> None:
        config = setup.config
        self._setup, self._network, self._algorithm = setup, network, algorithm
        self._rank, self._world_size, self._device = rank, world_size, device
        self._of_features = algorithm.of_features(config.meta)
        self._n_way = setup.tasks("valid", pool_texts=POOL_TEXTS)
        asked = config.train.validate_episodes
        self._episodes = self._n_way.whole_turns(asked)
        self._inner_loops = self._n_way.whole_turns(min(asked, config.train.validate_inner_loops))

    def score(
        self, parameters: Parameters, is_stopping: Callable[[], bool], *, inner_loops: bool = True
    ) -> Validation | None:
        """Mean accuracy as `inner-loop`, `prototype` and `prototype-all-way`, and half the width of its 95% interval as
        `inner-loop_ci95` and so on (absent for a single episode), the same on every worker, which all have to call it.

        Of several data sets, which have as many episodes each, it is the mean over them, and `inner-loop/NAME` and so
        on are those of each. Without `inner_loops` those that adapt the network are left out, each of which costs about
        as much as a training task.

        None: `is_stopping`, which is asked before each episode that is adapted to and each batch of texts, said so.
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

        def note(use: str, dataset: str, index: int, accuracy: float) -> None:
            accuracies.setdefault(use, {}).setdefault(dataset, {})[index] = accuracy

        if self._of_features is None and inner_loops:
            for index in range(self._rank, self._inner_loops, self._world_size):
                if is_stopping():
                    break
                task = self._n_way.draw(index)
                (scores,) = scorer.score([task], ("inner-loop",))
                note("inner-loop", task.source, index, scores["inner-loop"].accuracy)
        features = self._features(scorer, is_stopping)
        if features is None:
            return None
        for suffix, episodes in self._drawn.items():
            for episode in episodes[self._rank :: self._world_size]:
                support, query = features[episode.support], features[episode.query]
                predicted = nearest_prototype(support, episode.support_labels, query, episode.n_way)
                note(f"prototype{suffix}", episode.source, episode.index, _accuracy(predicted, episode))
                if self._of_features and not suffix:
                    labels = torch.from_numpy(episode.support_labels)
                    parts = torch.from_numpy(support), labels, torch.from_numpy(query)
                    found = self._of_features(*parts, episode.n_way).argmax(1).numpy()
                    note("inner-loop", episode.source, episode.index, _accuracy(found, episode))
        return self._gather(accuracies)

    @property
    def inner_steps(self) -> int:
        """Steps of the inner loop."""
        config = self._setup.config
        return config.evaluate.inner_steps or config.meta.inner_steps

    def score_by(
        self, scores: Callable[[list[TaskBatch]], list[torch.Tensor]], is_stopping: Callable[[], bool]
    ) -> Validation | None:
        """The same by a function that adapts to tasks and scores their queries, of this worker's share of the N-way
        episodes: `inner-loop` and its interval."""
        pad, device = self._setup.tokenizer.pad_token_id, self._device
        accuracies: dict[str, dict[int, float]] = {}
        # A round of an episode a worker, some of the last without.
        for first in range(0, self._inner_loops, self._world_size):
            if self._any(is_stopping()):
                return None
            indices = range(first + self._rank, min(first + self._rank + 1, self._inner_loops))
            drawn = [self._n_way.draw(index) for index in indices]
            tasks = [collate_task(task, pad, device) for task in drawn]
            for whole, task, found in zip(drawn, tasks, scores(tasks), strict=True):
                accuracy = float((found.argmax(1) == task.query_labels).float().mean())
                accuracies.setdefault(whole.source, {})[whole.index] = accuracy
        return self._gather({"inner-loop": accuracies} if accuracies else {})

    @cached_property
    def _drawn(self) -> dict[str, list[Episode]]:
        """The episodes that are scored by features: N-way, and with the suffix that their use has all-way."""
        all_way = self._setup.tasks("valid", n_way="all", pool_texts=POOL_TEXTS)
        count = all_way.whole_turns(max(1, self._episodes // ALL_WAY_SHARE))
        return {
            suffix: [episode_of(source.draw(index), self._texts) for index in range(episodes)]
            for suffix, source, episodes in (("", self._n_way, self._episodes), ("-all-way", all_way, count))
        }

    @cached_property
    def _texts(self) -> Texts:
        return Texts()

    @cached_property
    def _batches(self) -> list[list[int]]:
        """The numbers of the texts of each batch, the longest first, whatever the number of workers."""
        lengths = [len(example.input_ids) for example in self._texts.examples]
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        return [order[first:end] for first, end in runs([lengths[number] for number in order], BATCH_TOKENS)]

    def _features(self, scorer: Scorer, is_stopping: Callable[[], bool]) -> np.ndarray | None:
        """The features of every text, (texts, width), of which each worker computes its share of the batches; None
        where any of them `is_stopping`."""
        assert self._drawn  # which is what there are texts of
        own: list[tuple[list[int], np.ndarray]] = []
        for batch in self._batches[self._rank :: self._world_size]:
            if is_stopping():
                break
            examples = [self._texts.examples[number] for number in batch]
            texts: list[Tokens] = [(example.input_ids, example.mask_position) for example in examples]
            own.append((batch, features_of(scorer, texts)))
        if self._any(is_stopping()):
            return None
        parts = [part for each in self._from_all(own) for part in each]
        values = np.empty((len(self._texts), parts[0][1].shape[1]), np.float32)
        for batch, part in parts:
            values[batch] = part
        return values

    def _any(self, flag: bool) -> bool:
        """Whether it is set on any worker."""
        if self._world_size == 1:
            return flag
        value = torch.tensor(float(flag), device=self._device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return bool(value)

    def _from_all(self, own: T) -> list[T]:
        """What each worker has."""
        if self._world_size == 1:
            return [own]
        gathered: list[T | None] = [None] * self._world_size
        torch.distributed.all_gather_object(gathered, own)
        return gathered  # type: ignore[return-value]  # filled

    def _gather(self, own: Accuracies) -> Validation:
        """The accuracies of all workers, those without an episode included, and what they come to."""
        gathered: Accuracies = {}
        for part in self._from_all(own):
            for use, datasets in part.items():
                for dataset, values in datasets.items():
                    gathered.setdefault(use, {}).setdefault(dataset, {}).update(values)
        # In order, so that nothing depends on which worker scored which episode.
        accuracies = {
            use: {dataset: [values[index] for index in sorted(values)] for dataset, values in sorted(datasets.items())}
            for use, datasets in sorted(gathered.items())
        }
        return Validation(means_of(accuracies), accuracies)


def means_of(accuracies: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The scores of a validation (see `Validator.score`) from the accuracies of its episodes, by use and data set."""
    means: dict[str, float] = {}
    for use, datasets in accuracies.items():
        scored = {dataset: mean_ci95(values) for dataset, values in datasets.items()}
        means[use] = sum(mean for mean, _ in scored.values()) / len(scored)
        # The data sets are the same every time, and only their episodes are a sample.
        half_width = math.hypot(*(width for _, width in scored.values())) / len(scored)
        if math.isfinite(half_width):
            means[f"{use}_ci95"] = half_width
        if len(scored) > 1:
            means |= {f"{use}/{dataset}": mean for dataset, (mean, _) in scored.items()}
    return means


def _accuracy(predicted: np.ndarray, episode: Episode) -> float:
    return float((predicted == episode.query_labels).mean())
