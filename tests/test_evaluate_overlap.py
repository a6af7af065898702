"""How much of an evaluation stands in training is counted, exactly and nearly, and told as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from distmeta.config import Config
from distmeta.evaluate.overlap import count_overlap, describe_overlap
from distmeta.report.evaluation import evaluation_section
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from tests.corpora import tiny_config
from tests.preparing import prepare_small
from tests.report_data import evaluation

EXACTLY = [f"the very same text {i}" for i in range(4)]
SPOKEN = [f"the same but for its signs {i}" for i in range(3)]
SIGNED = [f"The same, but for its SIGNS: {text[-1]}!" for text in SPOKEN]
FAR = [f"text {i} of the same length" for i in range(9)]
CLASSES = {
    "a": [*EXACTLY, *SPOKEN, *FAR[:3]],
    "b": [f"of b {i}" for i in range(10)],
    "c": [f"of c {i}" for i in range(10)],
    "d": [f"of d {i}" for i in range(10)],
    "e": [*EXACTLY, *SIGNED, *FAR[3:6]],
    "f": [f"of f {i}" for i in range(9)] + ["of a"],
}
SPLITS = {"train": "ab", "valid": "cd", "test": "ef"}


def labelled(folder: Path, **settings: Any) -> Setup:
    rows = [{"text": text, "label": label} for label, texts in CLASSES.items() for text in texts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, labels in SPLITS.items():
        (folder / f"{split}.txt").write_text("\n".join(labels))
    tasks = {
        "label_column": "label",
        "split_files": {split: str(folder / f"{split}.txt") for split in SPLITS},
        "n_way": 2,
        "k_shot": 2,
        "query_per_class": 3,
        **settings.get("tasks", {}),
    }
    prepare_small(folder / "corpus", [folder / "rows.jsonl"], tasks=tasks)
    tree = tiny_config(
        folder / "rows.jsonl",
        corpus={"directory": str(folder / "corpus")},
        tasks=tasks,
        meta={"lm_weight": 1.0, **settings.get("meta", {})},
    )
    return Setup(Config.model_validate(tree), RunDirectory(folder / "run"))


def test_texts_are_counted_to_the_character_and_without_case_spaces_and_punctuation(tmp_path: Path) -> None:
    setup = labelled(tmp_path)
    assert count_overlap(setup, setup, "test") == {
        "evaluation_texts": 20,
        "in_training_tasks": 4,
        "in_training_tasks_near": 7,
        "classes": 2,
        "classes_in_training_tasks": 0,
        "hides_words": False,
        "in_language_modelling": 4,
        "in_language_modelling_near": 7,
    }
    assert count_overlap(setup, setup, "valid")["in_training_tasks_near"] == 0


def test_language_modelling_reads_rows_that_no_task_has(tmp_path: Path) -> None:
    setup = labelled(tmp_path, tasks={"max_examples": 8})
    drawn = {row["text"] for row in _rows(setup, "train")}
    tested = {row["text"] for row in _rows(setup, "test")}
    counts = count_overlap(setup, setup, "test")
    assert counts["in_training_tasks"] == len(drawn & tested) < counts["in_language_modelling"]
    assert counts["in_language_modelling"] == len(tested & {*CLASSES["a"], *CLASSES["b"]})
    (tmp_path / "none").mkdir()
    without = labelled(tmp_path / "none", meta={"lm_weight": 0.0})
    assert count_overlap(without, without, "test")["in_language_modelling_near"] == 0


def _rows(setup: Setup, split: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    parts = setup.manifest.class_parts(setup.corpus, split)
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_a_corpus_without_hashes_is_not_counted(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    setup = labelled(tmp_path)
    for part in setup.manifest.class_parts(setup.corpus, "train"):
        pq.write_table(pq.read_table(part).drop_columns(["exact_key", "near_key"]), part)
    assert count_overlap(setup, setup, "test") == {}
    assert describe_overlap({}, "test") == []


def test_classes_are_new_only_where_they_are(tmp_path: Path) -> None:
    setup = labelled(tmp_path)
    [_, new] = describe_overlap(count_overlap(setup, setup, "test"), "test")
    assert new == "None of the 2 classes is in training tasks."
    [_, chosen] = describe_overlap(count_overlap(setup, setup, "valid"), "valid")
    assert chosen == "None of the 2 classes is in training tasks; the step whose weights were kept was chosen by them."
    counts = count_overlap(setup, setup, "train")
    [texts, known] = describe_overlap(counts, "train")
    assert counts["in_training_tasks"] == counts["evaluation_texts"] == 20
    assert known.startswith("All 2 classes are those of training tasks")
    for split, line in (("test", new), ("train", known)):
        counts = count_overlap(setup, setup, split)
        page = evaluation_section(evaluation({"starting": 0.3}, []) | {"overlap": counts, "split": split})
        assert line in page.paragraphs
        assert texts in page.paragraphs or split == "test"


@pytest.mark.parametrize("lm_weight", [0.0, 1.0])
def test_in_unlabelled_text_another_word_is_hidden_and_language_modelling_reads_all(
    tmp_path: Path, lm_weight: float
) -> None:
    lines = [f"the {a} sees the {b} and {i} more" for i, (a, b) in enumerate(zip("abcd" * 9, "efgh" * 9, strict=True))]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    tasks = {"n_way": 2, "k_shot": 2, "query_per_class": 3, "min_sentences": 5, "max_sentences": 9}
    prepare_small(tmp_path / "corpus", [tmp_path / "a.txt"], tasks=tasks)
    tree = tiny_config(
        tmp_path / "a.txt", corpus={"directory": str(tmp_path / "corpus")}, tasks=tasks, meta={"lm_weight": lm_weight}
    )
    tree["tasks"].pop("label_column")
    setup = Setup(Config.model_validate(tree), RunDirectory(tmp_path / "run"))
    counts = count_overlap(setup, setup, "test")
    assert counts["hides_words"]
    assert counts["in_training_tasks_near"] >= counts["in_training_tasks"] > 0
    assert counts["in_language_modelling"] == (counts["evaluation_texts"] if lm_weight else 0)
    assert "to the character (with another word hidden)" in describe_overlap(counts, "test")[0]


def test_overlap_is_told_of_each_data_set_of_a_mixture(tmp_path: Path) -> None:
    """The same label in two sets is two classes, and the text without labels is trained on as text."""
    sets: dict[str, dict[str, list[str]]] = {
        "known": {label: CLASSES[label] for label in "ab"},
        "held": {"a": CLASSES["e"], "b": [f"of held {i}" for i in range(10)]},
        "other": {"a": [f"in text {i}" for i in range(6)], "z": [f"of z {i}" for i in range(6)]},
    }
    sources: list[dict[str, Any]] = []
    for name, classes in sets.items():
        rows = [{"text": text, "label": label} for label, texts in classes.items() for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        role = "train" if name == "known" else "test"
        sources.append({"path": str(tmp_path / f"{name}.jsonl"), "label_column": "label", "role": role})
    (tmp_path / "text.txt").write_text("".join(f"in text {i}\n" for i in range(4)) + "IN: text 5!\n")
    sources.append({"path": str(tmp_path / "text.txt")})
    tasks = {"n_way": 2, "k_shot": 2, "query_per_class": 3, "smlmt_share": 0.0, "label_column": None}
    tree = tiny_config(
        tmp_path,
        corpus={"sources": sources, "directory": str(tmp_path / "corpus")},
        tasks=tasks,
        meta={"lm_weight": 1.0},
    )
    prepare_small(tmp_path / "corpus", sources, tasks=tasks, splits=("train", "test"))
    setup = Setup(Config.model_validate(tree), RunDirectory(tmp_path / "run"))
    counts = count_overlap(setup, setup, "test")
    by_dataset = counts.pop("by_dataset")
    near = {
        name: (each["in_training_tasks_near"], each["in_language_modelling_near"]) for name, each in by_dataset.items()
    }
    assert near == {"held": (7, 7), "other": (0, 5)}
    assert (by_dataset["held"]["in_training_tasks"], by_dataset["other"]["in_language_modelling"]) == (4, 4)
    assert (counts["in_training_tasks_near"], counts["in_language_modelling_near"]) == (7, 12)
    assert (counts["evaluation_texts"], counts["classes"], counts["classes_in_training_tasks"]) == (32, 4, 0)
    [*_, by_name] = describe_overlap(counts | {"by_dataset": by_dataset}, "test")
    assert by_name.endswith("where it reads any: held 7 and 7 of 20; other 0 and 5 of 12.")
    by_dataset["other"] |= {"in_language_modelling_near": 0}
    assert describe_overlap(counts | {"by_dataset": by_dataset}, "test")[-1].endswith("stands in training: other.")
