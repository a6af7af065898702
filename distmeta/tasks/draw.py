"""Drawing tasks: task number `index` of a split is a function of (seed, split, index) alone.

So a run sees the same tasks in the same outer step on any number of workers, after a resume, and after workers were
lost. Outer step s of a run with B tasks a step uses the indices s*B ... s*B + B-1; worker r of W computes those with
index mod W = r. The B virtual streams of a run are thus the indices that are equal modulo B.
"""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from distmeta.errors import UserError
from distmeta.tasks.config import Split, as_words, bounds
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
        n_way: classes a task, a number or [low, high]; or "all": every class that the texts of the others leave enough
            of.
        k_shot: support examples a class, a number or [low, high].
        query_per_class: query examples a class.
        seed: with the split and a task's index it decides the task.
        max_texts: most texts of a task, support and query, above what the low ends of the ranges need.

    Raises:
        UserError: fewer classes than the low end of `n_way` have as many different texts as the low end of `k_shot`,
            and `query_per_class`, need.
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
    ) -> None:
        # Held as Arrow columns: at most max_classes * max_examples rows, whatever the size of the corpus.
        columns = ["class", "row", "text", "pair", "text_key", "input_ids", "mask_position"]
        tables = []
        for part in parts:
            present = pq.read_schema(part).names  # what an earlier version has prepared has no `pair`
            tables.append(pq.read_table(part, columns=[column for column in columns if column in present]))
        self._tables = [table.combine_chunks() for table in tables if table.num_rows]
        self.split, self.k_shot, self.query_per_class, self.seed = split, k_shot, query_per_class, seed
        self._shots, self._max_texts = bounds(k_shot), max_texts
        self._classes: list[tuple[str, int, int, np.ndarray]] = []  # name, table, first row, text keys
        needed = self._shots[0] + query_per_class
        for number, table in enumerate(self._tables):
            names = np.asarray(table["class"].to_pylist(), dtype=object)
            keys = table["text_key"].to_numpy()
            starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
            for start, end in zip(starts, np.r_[starts[1:], len(names)], strict=True):
                if len(np.unique(keys[start:end])) >= needed:
                    self._classes.append((names[start], number, int(start), keys[start:end]))
        self._classes.sort(key=lambda entry: entry[0])
        self._all_way = n_way == "all"
        self.n_way = len(self._classes) if isinstance(n_way, str) else n_way
        self._ways = bounds(self.n_way)
        if len(self._classes) < max(self._ways[0], 2):
            raise UserError(
                f"meta-{split} has {len(self._classes)} classes with {needed} different texts "
                f"(k_shot {self._shots[0]} + query_per_class {query_per_class}), n_way is {as_words(n_way)}: "
                "ask for fewer ways or shots, or give more data"
            )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that can be drawn, sorted."""
        return [name for name, *_ in self._classes]

    def _draw_size(self, random: np.random.Generator) -> tuple[int, int]:
        """The ways and the shots of a task; where they are plain numbers nothing is drawn for them."""
        most = self._max_texts or sys.maxsize
        ways, most_ways = self._ways
        if most_ways > ways:
            most_ways = max(ways, min(most_ways, len(self._classes), most // (self._shots[0] + self.query_per_class)))
            ways = int(random.integers(ways, most_ways, endpoint=True))
        shots, most_shots = self._shots
        if most_shots > shots:
            most_shots = max(shots, min(most_shots, most // ways - self.query_per_class))
            shots = int(random.integers(shots, most_shots, endpoint=True))
        return ways, shots

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
            ways, shots = self._draw_size(random)
            chosen = random.choice(len(self._classes), size=ways, replace=False)
            if shots > self._shots[0]:
                fewest = min(len(np.unique(self._classes[number][3])) for number in chosen)
                shots = min(shots, fewest - self.query_per_class)
            picked = self._pick_rows(chosen, shots, random)
            if len(picked) == ways or (self._all_way and len(picked) >= 2):
                return self._task(index, picked, shots)
        raise UserError(
            f"meta-{self.split}: {as_words(self.n_way)} classes with {self._shots[0] + self.query_per_class} different "
            "texts each could not be drawn: many of their texts stand in several classes, and a text serves one class "
            "a task; ask for fewer ways or shots, or give more text"
        )

    def _pick_rows(self, chosen: np.ndarray, shots: int, random: np.random.Generator) -> list[tuple[int, list[int]]]:
        """For each chosen class that can be filled: its number and its rows, support first."""
        needed = shots + self.query_per_class
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

    def _task(self, index: int, picked: list[tuple[int, list[int]]], shots: int) -> Task:
        support: list[Example] = []
        query: list[Example] = []
        for label, (class_number, class_rows) in enumerate(picked):
            _, number, start, _ = self._classes[class_number]
            table = self._tables[number].take([start + row for row in class_rows])
            for position, row in enumerate(table.to_pylist()):
                ids, pair = tuple(row["input_ids"]), row.get("pair")
                example = Example(row["row"], label, row["text"], ids, row["mask_position"], pair)
                (support if position < shots else query).append(example)
        names = tuple(self._classes[class_number][0] for class_number, _ in picked)
        return Task(index, self.split, names, tuple(support), tuple(query))
