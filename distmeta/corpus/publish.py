"""What is made of a corpus, put where its manifest says that it is. No file is called by the name of a data set."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distmeta.corpus.alike import find_like_missing
from distmeta.corpus.dataset_report import ClassParts, DatasetReport
from distmeta.corpus.manifest import CLASS_NAMES, SegmentPart
from distmeta.corpus.parts import SUMMARY, Part, publish
from distmeta.corpus.rows import DatasetRows
from distmeta.corpus.segments import TABLE as SEGMENTS_TABLE
from distmeta.corpus.segments import TEXTS
from distmeta.files import write_text
from distmeta.store.folders import present_folder
from distmeta.tasks.config import SPLITS, Split, TasksConfig
from distmeta.tasks.index import ClassChoice, split_counts
from distmeta.tasks.index_draw import TABLE as CLASSES_TABLE
from distmeta.tasks.index_draw import ChosenClass


def publish_segments(segments: Sequence[Part], directory: Path) -> tuple[list[SegmentPart], list[str]]:
    """Return what the manifest says of the segments, and where the hashes of their texts are, if they are kept."""
    filled = [part for part in segments if part.summary["segments"]]
    names = [f"part-{number:05d}.parquet" for number in range(len(filled))]
    files = [part.folder / SEGMENTS_TABLE for part in filled]
    hashes = [file for part in segments if (file := present_folder(part.folder) / TEXTS).exists()]
    hash_names = [f"texts-{number:05d}.parquet" for number in range(len(hashes))]
    publish([*files, *hashes], directory / "segments", [*names, *hash_names])
    segment_parts = [
        SegmentPart(path=f"segments/{name}", rows=part.summary["segments"], tokens=part.summary["tokens"])
        for name, part in zip(names, filled, strict=True)
    ]
    return segment_parts, [f"segments/{name}" for name in hash_names]


def publish_classes(datasets: Sequence[Sequence[tuple[Split, Part]]], directory: Path) -> list[dict[str, ClassParts]]:
    """Return what the manifest says of the class-complete shards of each data set, by split."""
    numbers = Counter[Split]()
    names: list[list[tuple[str, Split, Part]]] = []
    for parts in datasets:
        names.append([])
        for split, part in parts:
            names[-1].append((f"{split}-{numbers[split]:05d}.parquet", split, part))
            numbers[split] += 1
    files = [(part.folder / CLASSES_TABLE, name) for own in names for name, _, part in own]
    publish([file for file, _ in files], directory / "classes", [name for _, name in files])
    return [{split: _class_parts(own, split) for split in SPLITS} for own in names]


def _class_parts(named: Sequence[tuple[str, Split, Part]], split: Split) -> ClassParts:
    own = [(name, part) for name, of, part in named if of == split]
    return ClassParts(
        count=sum(part.summary["classes"] for _, part in own),
        examples=sum(part.summary["examples"] for _, part in own),
        parts=[f"classes/{name}" for name, _ in own],
    )


def report_dataset(
    rows: DatasetRows,
    choice: ClassChoice,
    tasks: TasksConfig,
    repeats: Sequence[Part],
    dropped: int,
    classes: dict[str, ClassParts],
    vanished: list[str],
) -> DatasetReport:
    """Return what the manifest says of a data set, of whose repeated rows `dropped` are left out."""
    dataset = rows.found.dataset
    is_by_ratio = dataset.role is None and (not dataset.labelled or tasks.split_files is None)
    by_ratio = split_counts(len(choice.classes), tasks.split_ratio, n_way=0) if is_by_ratio else []
    return DatasetReport(
        name=dataset.name,
        labelled=dataset.labelled,
        role=dataset.role,
        rows=rows.count(dropped),
        repeats=sum(part.summary["repeats"] for part in repeats),
        texts_under_two_labels=sum(part.summary["under_two_labels"] for part in repeats),
        classes=classes,
        classes_by_ratio=by_ratio if by_ratio != [each.count for each in classes.values()] else [],
        classes_left_out=choice.too_small,
        classes_left_out_total=choice.too_small_total,
        classes_in_no_split=choice.in_no_split,
        words_left_out=choice.left_out,
        labels_alike=choice.alike,
        labels_alike_total=choice.alike_total,
        labels_like_missing=find_like_missing([each.name for each in choice.classes]) if dataset.labelled else [],
        classes_vanished=vanished,
    )


def add_up(datasets: Sequence[dict[str, ClassParts]]) -> dict[str, ClassParts]:
    """Return the class-complete shards of all data sets, by split."""
    return {
        split: ClassParts(
            count=sum(classes[split].count for classes in datasets),
            examples=sum(classes[split].examples for classes in datasets),
            parts=[part for classes in datasets for part in classes[split].parts],
        )
        for split in SPLITS
    }


def publish_class_names(datasets: Sequence[tuple[str, Sequence[ChosenClass]]], directory: Path) -> None:
    """Write the names of all classes, given by the name of their data set."""
    lines = [
        {"split": each.split, "class": each.name} | ({"dataset": dataset} if dataset else {})
        for dataset, classes in datasets
        for each in classes
    ]
    write_text(directory / CLASS_NAMES, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))


def publish_tokenizer(tokenizer: Part, directory: Path) -> None:
    """Put the files of a tokenizer where models find it."""
    files = sorted(file for file in tokenizer.folder.iterdir() if file.name != SUMMARY)
    publish(files, directory / "tokenizer", [file.name for file in files])
