"""Leaks: texts that are held out in one data set of a mixture, and trained on in another."""

from collections.abc import Sequence

from distmeta.corpus.dataset_report import Leak
from distmeta.corpus.datasets import Dataset
from distmeta.corpus.overlap import Texts, count_each
from distmeta.corpus.parts import Part
from distmeta.corpus.segments import TEXTS
from distmeta.tasks.config import Split
from distmeta.tasks.index_draw import TABLE


def find_leaks(
    datasets: Sequence[Dataset], classes: Sequence[Sequence[tuple[Split, Part]]], segments: Sequence[Sequence[Part]]
) -> list[Leak]:
    """Return how many texts of each held-out split of a labelled set stand in what is trained on of each other set.

    `classes` and `segments` are those of the data sets, in their order: of each the segments are of all texts that are
    trained on, be it as text or in tasks.
    """
    held: list[tuple[str, Split, Texts]] = []
    for dataset, parts in zip(datasets, classes, strict=True):
        for split in ("valid", "test") if dataset.labelled and len(datasets) > 1 else ():
            texts = Texts(part.folder / TABLE for of, part in parts if of == split)
            held.append((dataset.name, split, texts))
    leaks = []
    for dataset, read in zip(datasets, segments, strict=True):
        others = [each for each in held if each[0] != dataset.name]
        counts = count_each([texts for *_, texts in others], (part.folder / TEXTS for part in read))
        for (name, split, texts), count in zip(others, counts, strict=True):
            if count["near_key"]:
                leaks.append(
                    Leak(
                        dataset=name,
                        split=split,
                        texts=len(texts),
                        trained=dataset.name,
                        exact=count["exact_key"],
                        near=count["near_key"],
                    )
                )
    return sorted(leaks, key=lambda leak: (leak.dataset, leak.split, leak.trained))
