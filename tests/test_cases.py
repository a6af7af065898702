"""Public cases of data that went wrong for others, through the commands, as a user would meet them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from distmeta.config import to_yaml
from distmeta.errors import UserError
from distmeta.opening import open_run
from distmeta.pipeline import draw_tasks, prepare
from tests.corpora import TINY_MODEL

SMALL = {"tokenizer": {"vocab_size": 600, "max_length": 32}, "model": {"config": TINY_MODEL}}


def write_config(folder: Path, **sections: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(SMALL | sections, allow_unicode=True), encoding="utf-8")
    return path


def run_prepare(folder: Path, **sections: Any) -> tuple[dict[str, Any], list[str]]:
    """`distmeta prepare`: the manifest, and what was said."""
    said: list[str] = []
    config, run = open_run(write_config(folder, **sections), [], folder / "run")
    prepare(config, run, said.append)
    return json.loads((run.corpus / "manifest.json").read_text()), said


def run_tasks(folder: Path, count: int, **sections: Any) -> list[dict[str, Any]]:
    """`distmeta tasks --json`."""
    config, run = open_run(write_config(folder, **sections), [], folder / "run")
    return [task.as_json() for task in draw_tasks(config, run, "train", 0, count, lambda text: None)]


def tasks_of(n_way: int = 2, k_shot: int = 2, query_per_class: int = 2, **others: Any) -> dict[str, Any]:
    return {"n_way": n_way, "k_shot": k_shot, "query_per_class": query_per_class, "label_column": "label", **others}


def test_every_row_is_accounted_for(tmp_path):
    """Case B2: 50, 50 and 1 lines, three workers; too few for tasks, which is said and no failure."""
    for number, lines in enumerate((50, 50, 1)):
        text = "".join(f"file {number} has a line with the number {line}\n" for line in range(lines))
        (tmp_path / f"{number}.txt").write_text(text)
    manifest, said = run_prepare(tmp_path, corpus={"sources": ["*.txt"]}, train={"num_workers": 3})
    assert (manifest["rows"]["read"], manifest["rows"]["kept"]) == (101, 101)
    assert any("no tasks yet" in line for line in said)


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_a_trained_tokenizer_has_what_a_model_needs(algorithm, tmp_path):
    """Case D1."""
    (tmp_path / "a.txt").write_text("".join(f"a plain line of text with number {n} in it\n" for n in range(60)))
    tokenizer = SMALL["tokenizer"] | {"algorithm": algorithm}
    run_prepare(tmp_path, corpus={"sources": ["a.txt"]}, tokenizer=tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "run" / "corpus" / "tokenizer")
    special = [getattr(loaded, f"{name}_token_id") for name in ("pad", "unk", "mask", "cls", "sep")]
    assert None not in special
    assert len(set(special)) == 5
    assert len(loaded.encode("qux 猫 🦊", add_special_tokens=False)) >= 3
    assert len(loaded) <= 600


def test_files_as_a_spreadsheet_writes_them(tmp_path):
    """Case D4: a byte-order mark, CRLF, line breaks and quotes in fields."""
    rows = "".join(f'"line one {n}\r\nline two, with comma",alpha\r\n"she said ""no"" {n}",beta\r\n' for n in range(20))
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + f"text,label\r\n{rows}".encode())
    manifest, _ = run_prepare(tmp_path, corpus={"sources": ["a.csv"]}, tasks=tasks_of(split_ratio=[1.0, 0.0, 0.0]))
    assert manifest["rows"] == {"read": 40, "kept": 40, "dropped": {}}
    task = run_tasks(tmp_path, 1, corpus={"sources": ["a.csv"]}, tasks=tasks_of(split_ratio=[1.0, 0.0, 0.0]))[0]
    assert sorted(task["classes"]) == ["alpha", "beta"]
    for row in task["support"] + task["query"]:
        assert ("\n" in row["text"]) == (task["classes"][row["label"]] == "alpha")
        assert "\ufeff" not in row["text"]
        assert "\r" not in task["classes"][row["label"]]


def test_a_class_that_is_too_small_is_told_in_numbers(tmp_path):
    """Case F1."""
    lines = [json.dumps({"text": f"class {c} row {r}", "label": f"c{c}"}) for c in range(6) for r in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = {"sources": ["a.jsonl"]}
    with pytest.raises(UserError, match=r"= 5 .*4"):
        run_tasks(tmp_path, 1, corpus=source, tasks=tasks_of(query_per_class=3))
    for task in run_tasks(tmp_path, 500, corpus=source, tasks=tasks_of()):
        assert not {row["row"] for row in task["support"]} & {row["row"] for row in task["query"]}


def test_the_same_sentence_is_counted_and_never_on_both_sides(tmp_path):
    """Case F2: one sentence four times in alpha and once in beta."""
    names = ("alpha", "beta", "gamma", "delta", "epsilon")
    rows = [{"text": f"{name} sentence {n}", "label": name} for name in names for n in range(8)]
    for place in range(4):
        rows[place]["text"] = "the same"
    rows[8]["text"] = "the same"
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    sections = {"corpus": {"sources": ["a.jsonl"]}, "tasks": tasks_of(split_ratio=[1.0, 0.0, 0.0])}
    manifest, _ = run_prepare(tmp_path, **sections)
    assert (manifest["repeats"], manifest["texts_under_two_labels"]) == (3, 1)
    for task in run_tasks(tmp_path, 500, **sections):
        texts = [row["text"] for row in task["support"] + task["query"]]
        assert len(texts) == len(set(texts))


def test_labels_are_text(tmp_path):
    """Case F3: names that look like numbers or like nothing; an integer and the same as a string are one class."""
    names = ["007", "7", "NA", "None", "null", "true", "1e3"]
    rows = [(f"row {n} of {name}", name) for name in names for n in range(8)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{name}\n" for text, name in rows))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text, "label": name}) for text, name in rows))
    mixed = [{"text": f"row {n}", "label": 7 if n % 2 else "7"} for n in range(16)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    seen = []
    for source in ("a.csv", "a.jsonl"):
        sections = {"corpus": {"sources": [source]}, "tasks": tasks_of(n_way=7, split_ratio=[1.0, 0.0, 0.0])}
        manifest, _ = run_prepare(tmp_path, **sections)
        assert manifest["rows"]["kept"] == manifest["classes"]["train"]["examples"] == 56
        seen.append(sorted(run_tasks(tmp_path, 1, **sections)[0]["classes"]))
    assert seen == [sorted(names)] * 2
    ratio = {"split_ratio": [1.0, 0.0, 0.0]}
    manifest, _ = run_prepare(tmp_path, corpus={"sources": ["mixed.jsonl"]}, tasks=tasks_of(**ratio))
    assert (manifest["classes"]["train"]["count"], manifest["classes"]["train"]["examples"]) == (1, 16)


def test_long_texts_are_cut_around_the_hidden_word(tmp_path):
    """Case D3: 32 positions, texts of 400 words with the word at the end."""
    short = [f"some words about zebra with number {n}" for n in range(35)]
    long = [" ".join(f"filler{n}x{word}" for word in range(400)) + " zebra" for n in range(5)]
    (tmp_path / "a.txt").write_text("\n".join(short + long))
    model = {"config": TINY_MODEL | {"max_position_embeddings": 32}}
    shape = {"n_way": 2, "k_shot": 2, "query_per_class": 2, "max_sentences": 40, "split_ratio": [1.0, 0.0, 0.0]}
    sections = {"corpus": {"sources": ["a.txt"]}, "model": model, "tasks": shape, "tokenizer": {"vocab_size": 600}}
    manifest, _ = run_prepare(tmp_path, **sections)
    assert (manifest["cut"], manifest["max_length"]) == (5, 32)
    for task in run_tasks(tmp_path, 50, **sections):
        assert all("[MASK]" in row["text"] for row in task["support"] + task["query"])


def test_the_tasks_of_a_run_are_shown_without_its_configuration_file(tmp_path):
    """And are its own: another configuration must not take its corpus over."""
    (tmp_path / "a.txt").write_text("".join(f"a plain line of text with number {n} in it\n" for n in range(60)))
    shape = {"n_way": 2, "k_shot": 2, "query_per_class": 2, "max_sentences": 60}
    config, run = open_run(write_config(tmp_path, corpus={"sources": ["a.txt"]}, tasks=shape), [], tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(to_yaml(config))
    run.metrics.write_text('{"outer_step": 1}\n')
    assert open_run(None, [], tmp_path / "run")[0] == config
    other, _ = open_run(None, ["tasks.n_way=3"], tmp_path / "run")
    with pytest.raises(UserError, match=r"tasks.n_way: 2 before, 3 now"):
        prepare(other, run, lambda text: None)
