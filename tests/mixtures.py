"""A small mixture: labelled sets with columns, roles and label spaces of their own, and text without labels."""

import csv
from pathlib import Path
from typing import Any

import yaml

from distmeta.config import Config, load_config
from distmeta.corpus.executor import LocalExecutor
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import resolve
from tests.corpora import tiny_config, write_labelled_csv
from tests.preparing import write_sentences

TASKS = {"n_way": [2, 4], "k_shot": [1, 3], "query_per_class": 2, "max_texts": 16, "smlmt_share": 0.25}


def write_pairs(path: Path, rows: int = 48) -> Path:
    """Pairs of texts, of which some agree and some do not."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "verdict"])
        for row in range(rows):
            is_false = row % 2
            writer.writerow([f"it is {row} today", f"it is {row + is_false} now", "no" if is_false else "yes"])
    return path


def prepared_mixture(folder: Path) -> Path:
    """A folder with the sources and the prepared corpus of `mixture`."""
    write_labelled_csv(folder / "topics.csv", classes=12, rows=12)
    write_labelled_csv(folder / "moods.csv", classes=2)
    write_labelled_csv(folder / "mails.csv", classes=2, rows=16)
    write_labelled_csv(folder / "later.csv", classes=3, rows=16)
    write_pairs(folder / "pairs.csv")
    write_sentences(folder / "text.txt")
    prepare_with(LocalExecutor(), mixture(folder), RunDirectory(folder), lambda text: None)
    return folder


def mixture(folder: Path, **sections: dict[str, Any]) -> Config:
    """The resolved configuration of a run of seconds; keyword arguments add to sections."""

    def labelled(name: str, **more: Any) -> dict[str, Any]:
        return {"path": str(folder / f"{name}.csv"), "name": name, "label_column": "label", **more}

    sources = [
        labelled("topics"),
        labelled("moods", role="train", weight=2.0),
        labelled("mails", role="valid"),
        labelled("later", role="test"),
        labelled("pairs", role="train", text_column="first", text_pair_column="second", label_column="verdict"),
        {"path": str(folder / "text.txt"), "name": "words"},
    ]
    corpus = {"sources": sources, "directory": str(folder / "corpus")} | sections.pop("corpus", {})
    tree = tiny_config(folder / "topics.csv", **{"tasks": TASKS, **sections})
    tree["corpus"] = corpus
    tree["tasks"] = {**TASKS, **sections.get("tasks", {})}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return resolve(load_config(path))
