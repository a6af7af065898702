"""The episodes of an evaluation, all drawn before any is scored: which texts they hold, and each of these once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distmeta.corpus.executor import with_progress
from distmeta.tasks.config import Split
from distmeta.tasks.episode import Example, Task

Numbers = NDArray[np.int64]


class EpisodeSource(Protocol):
    """Where episodes come from: number `index` is the same whoever asks, and whenever."""

    @property
    def n_way(self) -> int | list[int] | str: ...
    @property
    def k_shot(self) -> int | list[int]: ...
    @property
    def query_per_class(self) -> int | None: ...
    def draw(self, index: int) -> Task: ...


class Texts:
    """The texts of all episodes of all evaluations that are asked for together, each once."""

    def __init__(self) -> None:
        self.examples: list[Example] = []
        """Their labels are those of the first episode that they stood in, and mean nothing."""
        self._numbers: dict[tuple[str, str, int], int] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def numbers_of(self, examples: Iterable[Example]) -> Numbers:
        """The number of each example's text; what is new gets the next one."""
        numbers = []
        for example in examples:
            # A sentence of SMLMT stands in several classes, with another word of it hidden in each.
            key = (example.row, example.shown, example.mask_position)
            number = self._numbers.setdefault(key, len(self.examples))
            if number == len(self.examples):
                self.examples.append(example)
            numbers.append(number)
        return np.array(numbers, np.int64)


@dataclass(frozen=True, slots=True)
class Episode:
    """A drawn task, by the numbers of its texts: thousands of them hold each text once."""

    index: int
    split: Split
    classes: tuple[str, ...]
    support: Numbers
    support_labels: Numbers
    query: Numbers
    query_labels: Numbers
    texts: Texts = field(repr=False)
    source: str = ""
    """Name of the data set."""

    @property
    def n_way(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def examples(self, numbers: Numbers) -> list[Example]:
        """The examples of these numbers."""
        return [self.texts.examples[number] for number in numbers]

    def encoded(self, tokens: Sequence[tuple[tuple[int, ...], int]]) -> Task:
        """The task with each text's token ids, and the position of its mask, by the text's number."""

        def half(numbers: Numbers, labels: Numbers) -> tuple[Example, ...]:
            return tuple(
                replace(
                    self.texts.examples[number],
                    label=int(label),
                    input_ids=tokens[number][0],
                    mask_position=tokens[number][1],
                )
                for number, label in zip(numbers.tolist(), labels, strict=True)
            )

        return Task(
            self.index,
            self.split,
            self.classes,
            half(self.support, self.support_labels),
            half(self.query, self.query_labels),
            self.source,
        )


def draw_episodes(
    source: EpisodeSource, count: int, texts: Texts, is_stopped: Callable[[], bool] = lambda: False
) -> list[Episode]:
    """The first `count` episodes of a source, fewer where it `is_stopped`; their texts are added to `texts`."""
    episodes = []
    for task in with_progress(map(source.draw, range(count)), count, "drawing episodes", "episode"):
        if is_stopped():
            break
        episodes.append(episode_of(task, texts))
    return episodes


def episode_of(task: Task, texts: Texts) -> Episode:
    """The task by the numbers of its texts, which are added to `texts`."""
    return Episode(
        task.index,
        task.split,
        task.classes,
        texts.numbers_of(task.support),
        _labels(task.support),
        texts.numbers_of(task.query),
        _labels(task.query),
        texts,
        task.source,
    )


def _labels(examples: Sequence[Example]) -> Numbers:
    return np.array([example.label for example in examples], np.int64)
