"""Drawing tasks: task number `index` of a split is a function of (seed, split, index) alone.

So a run sees the same tasks in the same outer step on any number of workers, after a resume, and after workers were
lost. Outer step s of a run with B tasks a step uses the indices s*B ... s*B + B-1; worker r of W computes those with
index mod W = r. The B virtual streams of a run are thus the indices that are equal modulo B.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from distmeta.errors import UserError
from distmeta.tasks.class_shards import ClassReader, IndexedClass, read_index
from distmeta.tasks.config import Split, as_words, bounds, most_shots, most_ways
from distmeta.tasks.episode import Example, Task
from distmeta.tasks.names import NameExamples

ATTEMPTS = 100
"""Draws after which classes are taken to overlap too much."""


def generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on nothing but `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class TaskSource:
    """Draws tasks from the class shards of one data set. It holds an index of them, and reads what it draws.

    Args:
        parts: the shards of the split (see `class_shards`); a class stands in one of them only.
        split: whose classes these are.
        n_way: classes a task, a number or [low, high]; or "all": every class that the texts of the others leave enough
            of.
        k_shot: support examples a class, a number or [low, high].
        query_per_class: query examples a class.
        seed: with the split and a task's index it decides the task.
        max_texts: most texts of a task, support and query, above what the low ends of the ranges need.
        name: the data set's, which its tasks carry.
        bounded: whether a split with fewer classes than `n_way` gives tasks of those that it has.
        reader: reads the shards; others may share it.
        pool_texts: tasks are made of about so many texts, a fixed share of each class, and of others where these do not
            suffice; None: of all.
        names: makes one more support example of the name of each class; None: names are not used.

    Raises:
        UserError: fewer classes than the low end of `n_way` (if bounded: fewer than two) have as many different texts
            as the low end of `k_shot`, and `query_per_class`, need.
    """

    def __init__(
        self,
        parts: Iterable[Path],
        split: Split,
        *,
        n_way: int | list[int] | str,
        k_shot: int | list[int],
        query_per_class: int,
        seed: int,
        max_texts: int | None = None,
        name: str = "",
        bounded: bool = False,
        reader: ClassReader | None = None,
        pool_texts: int | None = None,
        names: NameExamples | None = None,
    ) -> None:
        self.split, self.k_shot, self.query_per_class, self.seed = split, k_shot, query_per_class, seed
        self.name = name
        self._names = names
        self._reader = reader or ClassReader()
        self._shots, self._max_texts = bounds(k_shot), max_texts
        needed = self._shots[0] + query_per_class
        self._classes: list[IndexedClass] = [each for each in read_index(parts) if each.texts >= needed]
        there = len(self._classes)
        self._all_way = n_way == "all"
        self.n_way: int | list[int] = there if isinstance(n_way, str) else n_way
        if bounded and there < bounds(self.n_way)[1]:
            low, high = (min(there, each) for each in bounds(self.n_way))
            self.n_way = high if low == high else [low, high]
        self._ways = bounds(self.n_way)
        most = self._shots[1] + query_per_class
        self._pool_size = max(most, pool_texts // max(1, there)) if pool_texts is not None else None
        self._pools: dict[str, np.ndarray] = {}
        if there < max(self._ways[0], 2):
            of = f" of {name}" if name else ""
            raise UserError(
                f"meta-{split}{of} has {there} classes with {needed} different texts "
                f"(k_shot {self._shots[0]} + query_per_class {query_per_class}), n_way is {as_words(n_way)}: "
                "ask for fewer ways or shots, or give more data"
            )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that can be drawn, sorted."""
        return [each.name for each in self._classes]

    @property
    def texts(self) -> int:
        """Different texts of the classes that can be drawn; one that stands in several counts in each."""
        return sum(each.texts for each in self._classes)

    def draw(self, index: int) -> Task:
        """Task number `index`: the same whoever asks, and whenever.

        Classes come in random order, so that a label says nothing about its class. No text stands twice in a task,
        be it as support and query or under two classes; where overlapping classes leave one of them too few texts,
        the next draw of the same generator is taken.

        Raises:
            UserError: the classes overlap so much that no draw in a hundred had enough different texts.
        """
        random = generator(self.seed, self.split, index)
        for _ in range(ATTEMPTS):
            ways, shots = self._size(random)
            chosen = [self._classes[number] for number in random.choice(len(self._classes), size=ways, replace=False)]
            # At least the low end of the range is there in every class.
            shots = min(shots, *(each.texts - self.query_per_class for each in chosen))
            picked = self._pick_rows(chosen, shots, random)
            if len(picked) == ways or (self._all_way and len(picked) >= 2):
                return self._task(index, picked, shots)
        of = f" of {self.name}" if self.name else ""
        raise UserError(
            f"meta-{self.split}{of}: {as_words(self.n_way)} classes with {self._shots[0] + self.query_per_class} "
            "different texts each could not be drawn: many of their texts stand in several classes, and a text serves "
            "one class a task; ask for fewer ways or shots, or give more text"
        )

    def whole_turns(self, episodes: int) -> int:
        """As many episodes: see `Mixture`."""
        return episodes

    def check(self) -> None:
        """Draw a task. Raises UserError where none can be drawn."""
        self.draw(0)

    def _size(self, random: np.random.Generator) -> tuple[int, int]:
        """Ways and shots of a task, each drawn evenly from its range as far as texts and classes allow.

        For plain numbers nothing is drawn.
        """
        ways, shots = self._ways[0], self._shots[0]
        if ways < self._ways[1]:
            most = most_ways(self.n_way, self.k_shot, self.query_per_class, self._max_texts)
            ways = int(random.integers(ways, min(most, len(self._classes)), endpoint=True))
        if shots < self._shots[1]:
            most = most_shots(ways, self.k_shot, self.query_per_class, self._max_texts)
            shots = int(random.integers(shots, most, endpoint=True))
        return ways, shots

    def _pick_rows(
        self, chosen: list[IndexedClass], shots: int, random: np.random.Generator
    ) -> list[tuple[IndexedClass, list[int]]]:
        """For each chosen class that can be filled: the class and its rows, support first."""
        needed = shots + self.query_per_class
        taken: set[int] = set()
        picked = []
        for each in chosen:
            keys = self._reader.read(each).text_keys
            rows: dict[int, int] = {}  # row by text key
            for row in self._preferred(each, random.permutation(len(keys))):
                if keys[row] not in taken:
                    rows.setdefault(int(keys[row]), int(row))
                if len(rows) == needed:
                    break
            if len(rows) == needed:
                taken.update(rows)
                picked.append((each, list(rows.values())))
        return picked

    def _preferred(self, each: IndexedClass, rows: np.ndarray) -> np.ndarray:
        """Rows of a class, those of its pool first."""
        if self._pool_size is None or self._pool_size >= len(rows):
            return rows
        if each.name not in self._pools:
            inside = np.zeros(len(rows), bool)
            inside[generator(self.seed, self.split, each.name, "pool").permutation(len(rows))[: self._pool_size]] = True
            self._pools[each.name] = inside
        inside = self._pools[each.name][rows]
        return np.concatenate([rows[inside], rows[~inside]])

    def _task(self, index: int, picked: list[tuple[IndexedClass, list[int]]], shots: int) -> Task:
        support: list[Example] = []
        query: list[Example] = []
        for label, (each, rows) in enumerate(picked):
            there = self._reader.read(each)
            examples = [there.example(row, label) for row in rows]
            support += examples[:shots]
            support += [self._names.example(each.name, label)] if self._names else []
            query += examples[shots:]
        names = tuple(each.name for each, _ in picked)
        return Task(index, self.split, names, tuple(support), tuple(query), self.name)
