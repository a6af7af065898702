"""Drawing tasks: task number `index` of a split is a function of (seed, split, index) alone.

So a run sees the same tasks in the same outer step on any number of workers, after a resume, and after workers were
lost. Outer step s of a run with B tasks a step uses the indices s*B ... s*B + B-1; worker r of W computes those with
index mod W = r. The B virtual streams of a run are thus the indices that are equal modulo B.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from distmeta.errors import UserError
from distmeta.tasks.config import Split
from distmeta.tasks.episode import Example, Task


def generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on nothing but `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class TaskSource:
    """Draws tasks from the class-complete shards of one split.

    Args:
        parts: the Parquet files of the split (columns `class`, `row`, `text`, `text_key`, `input_ids`,
            `mask_position`), sorted by class; a class stands in one file only.
        split: whose classes these are.
        n_way: classes a task, or "all": every class that the texts of the others leave enough of.
        k_shot: support examples a class.
        query_per_class: query examples a class.
        seed: with the split and a task's index it decides the task.

    Raises:
        UserError: fewer classes have `k_shot + query_per_class` different texts than `n_way`.
    """

    def __init__(
        self,
        parts: Iterable[Path],
        split: Split,
        *,
        n_way: int | str,
        k_shot: int,
        query_per_class: int,
        seed: int,
    ) -> None:
        # Held as Arrow columns: at most max_classes * max_examples rows, whatever the size of the corpus.
        columns = ["class", "row", "text", "text_key", "input_ids", "mask_position"]
        tables = [pq.read_table(part, columns=columns) for part in parts]
        self._tables = [table.combine_chunks() for table in tables if table.num_rows]
        self.split, self.k_shot, self.query_per_class, self.seed = split, k_shot, query_per_class, seed
        self._classes: list[tuple[str, int, int, np.ndarray]] = []  # name, table, first row, text keys
        needed = k_shot + query_per_class
        for number, table in enumerate(self._tables):
            names = np.asarray(table["class"].to_pylist(), dtype=object)
            keys = table["text_key"].to_numpy()
            starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
            for start, end in zip(starts, np.r_[starts[1:], len(names)], strict=True):
                if len(np.unique(keys[start:end])) >= needed:
                    self._classes.append((names[start], number, int(start), keys[start:end]))
        self._classes.sort(key=lambda entry: entry[0])
        self._all_way = n_way == "all"
        self.n_way = len(self._classes) if self._all_way else int(n_way)
        if len(self._classes) < max(self.n_way, 2):
            raise UserError(
                f"meta-{split} has {len(self._classes)} classes with {needed} different texts "
                f"(k_shot {k_shot} + query_per_class {query_per_class}), n_way is {n_way}: "
                "ask for fewer ways or shots, or give more data"
            )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that can be drawn, sorted."""
        return [name for name, *_ in self._classes]

    def draw(self, index: int) -> Task:
        """Task number `index`: the same whoever asks, and whenever.

        Classes come in random order, so that a label says nothing about its class. No text stands twice in a task,
        be it as support and query or under two classes; where overlapping classes leave one of them too few texts,
        the next draw of the same generator is taken.

        Raises:
            UserError: the classes overlap so much that no draw in a hundred had enough different texts.
        """
        random = generator(self.seed, self.split, index)
        for _ in range(100):
            chosen = random.choice(len(self._classes), size=self.n_way, replace=False)
            picked = self._pick_rows(chosen, random)
            if len(picked) == self.n_way or (self._all_way and len(picked) >= 2):
                return self._task(index, picked)
        raise UserError(
            f"meta-{self.split}: {self.n_way} classes with {self.k_shot + self.query_per_class} different texts each "
            "could not be drawn: many of their texts stand in several classes, and a text serves one class a task; ask "
            "for fewer ways or shots, or give more text"
        )

    def _pick_rows(self, chosen: np.ndarray, random: np.random.Generator) -> list[tuple[int, list[int]]]:
        """For each chosen class that can be filled: its number and its rows, support first."""
        needed = self.k_shot + self.query_per_class
        taken: set[int] = set()
        picked = []
        for class_number in chosen:
            keys = self._classes[class_number][3]
            rows: dict[int, int] = {}  # row by text key
            for row in random.permutation(len(keys)):
                if keys[row] not in taken:
                    rows.setdefault(int(keys[row]), int(row))
                if len(rows) == needed:
                    break
            if len(rows) == needed:
                taken.update(rows)
                picked.append((int(class_number), list(rows.values())))
        return picked

    def _task(self, index: int, picked: list[tuple[int, list[int]]]) -> Task:
        support: list[Example] = []
        query: list[Example] = []
        for label, (class_number, class_rows) in enumerate(picked):
            _, number, start, _ = self._classes[class_number]
            table = self._tables[number].take([start + row for row in class_rows])
            for position, row in enumerate(table.select(["row", "text", "input_ids", "mask_position"]).to_pylist()):
                example = Example(row["row"], label, row["text"], tuple(row["input_ids"]), row["mask_position"])
                (support if position < self.k_shot else query).append(example)
        names = tuple(self._classes[class_number][0] for class_number, _ in picked)
        return Task(index, self.split, names, tuple(support), tuple(query))
