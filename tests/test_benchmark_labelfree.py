"""The benchmark of tasks without labels: equal operations, scores at the points that were asked for, and its table."""

import importlib
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.corpora import tiny_config, write_labelled_csv

FOLDER = Path(__file__).parent.parent / "jobs" / "benchmarks"
ARMS = ("tasks", "language-modelling", "both", "warm-up")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("labelfree")


@pytest.fixture
def arguments(tmp_path):
    """Of a call on sentences of 40 words, and on a labelled set of 18 classes that is split by files."""
    random = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "x")][:40]
    lines = [" ".join(random.choice(words, 8, replace=False)) + "." for _ in range(400)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    tree = tiny_config(tmp_path / "text.txt", evaluate={"episodes": 4})
    tree["tasks"] = {"n_way": 3, "k_shot": 2, "query_per_class": 3, "split_ratio": [0.5, 0.2, 0.3]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    labelled = write_labelled_csv(tmp_path / "labelled.csv")
    for split, first in (("train", 0), ("valid", 6), ("test", 12)):
        names = [f"class {number:02}" for number in range(first, first + 6)]
        (tmp_path / f"labels.{split}.txt").write_text("\n".join(names))
    options = {"--config": "run.yaml", "--output": "out", "--keep": "kept"}
    called = [each for key, name in options.items() for each in (key, str(tmp_path / name))]
    called += ["--operations", "8e8", "--points", "2", "--average", "0.5"]
    return [*called, "--labelled", "topics", str(labelled), str(tmp_path)]


@pytest.mark.slow
def test_arms_on_tiny_text(benchmark, arguments, tmp_path, capsys):
    before = torch.get_num_threads()
    assert benchmark.main([*arguments, "--arms", *ARMS]) == 0
    torch.set_num_threads(before)
    rows = benchmark.read(tmp_path / "out" / "scores.jsonl")
    assert rows[0]["arm"] == "tf-idf"
    for arm in ARMS:
        start, half, end = (row for row in rows if row["arm"] == arm)
        assert start["operations"] == 0 == start["steps"]
        assert 4e8 <= half["operations"] < 8e8 <= end["operations"] < 9.5e8, "no arm spends much more than another"
        assert set(end["scores"]) == {f"words, {use}" for use in ("own use", "prototype", "logistic regression")} | {
            "topics, logistic regression"
        }
        (mixed,) = (row for row in rows if row["arm"] == f"{arm}, 0.5 of the start")
        assert mixed["operations"] == end["operations"]
        assert (tmp_path / "kept" / f"{arm}-0" / "model.safetensors").exists()
    starts = [row["scores"] for row in rows if row.get("steps") == 0]
    assert all(each == starts[0] for each in starts), "all arms start from the same network"
    halves = {row["arm"]: row for row in rows if row["arm"] in ARMS and 4e8 <= row["operations"] < 8e8}
    assert halves["warm-up"] == halves["language-modelling"] | {
        key: halves["warm-up"][key] for key in ("arm", "seconds")
    }
    steps = {row["arm"]: row["steps"] for row in rows if row["arm"] in ARMS}
    assert steps["both"] < steps["tasks"] < steps["warm-up"] < steps["language-modelling"], "by what a step costs"
    drawn = ElementTree.parse(tmp_path / "out" / "labelfree.svg")
    assert len(list(drawn.getroot())) == 4
    printed = capsys.readouterr().out
    first = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    assert [first[0], *first[2:5]] == ["%", "start", "tf-idf", "tasks"]

    # A kept network is a start, and its language model is there.
    more = [str(tmp_path / "next") if each.endswith("out") else each for each in arguments]
    kept = tmp_path / "kept" / "language-modelling-0" / "language-model"
    more += ["--arms", "both=0.05", "--start", str(kept), "--average", "0.9999999"]
    assert benchmark.main(more) == 0
    torch.set_num_threads(before)
    ended = [row for row in rows if row["arm"] == "language-modelling"][-1]
    _, start, _, end, mixed = (row["scores"] for row in benchmark.read(tmp_path / "next" / "scores.jsonl"))
    assert start == ended["scores"], "it starts where the other ended"
    assert mixed == start != end, "nearly all of the start is the start"


def test_what_is_there_is_not_done_again(benchmark, arguments, tmp_path, monkeypatch):
    rows = [{"arm": "tf-idf", "operations": 0.0, "scores": {"topics, logistic regression": 0.5}}]
    for seed, value in ((0, 0.4), (1, 0.6)):
        for operations, factor in ((0.0, 1.0), (9e7 + seed, 1.5)):
            scores = {"words, prototype": factor * value, "topics, logistic regression": 0.5}
            rows.append({"arm": "tasks", "seed": seed, "operations": operations, "steps": 0, "scores": scores})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr(benchmark.Benchmark, "train", None)
    before = torch.get_num_threads()
    assert benchmark.main([*arguments, "--arms", "tasks", "--seeds", "0", "1"]) == 0
    torch.set_num_threads(before)


def test_the_table(benchmark):
    rows = []
    for seed, value in ((0, 0.4), (1, 0.6)):
        for operations, factor in ((0.0, 1.0), (100.0 + seed, 1.5)):
            scores = {"words, prototype": factor * value, "one, logistic regression": 0.5}
            rows.append({"arm": "tasks", "seed": seed, "operations": operations, "scores": scores})
            scores["two, logistic regression"] = 0.7
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in benchmark.table(rows).splitlines()]
    assert lines[0][1:] == [
        "words, prototype",
        "one, logistic regression",
        "two, logistic regression",
        "sentences, mean",
    ]
    assert lines[2] == ["start", "50.0 ± 14.1", "50.0 ± 0.0", "70.0 ± 0.0", "60.0 ± 0.0"]
    assert lines[3] == ["tasks", "75.0 ± 21.2", "50.0 ± 0.0", "70.0 ± 0.0", "60.0 ± 0.0"]
    assert [point for point, _ in benchmark.curves(rows)["tasks"]] == [0.0, 100.5]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--arms", "task"], "'task' is none of tasks, language-modelling, both, warm-up"),
        (["--arms", "tasks=-1"], "'tasks=-1' is none of"),
        (["--points", "0"], "--operations, --points and --threads must be above 0"),
        (["--average", "1"], "--average must be between 0 and 1"),
        (["--set", "meta.inner_rl=1"], "meta.inner_rl: unknown key; did you mean meta.inner_lr?"),
        (["--arms", "language-modelling=1e9"], "language-modelling: lm_loss "),
    ],
)
def test_a_bad_option_is_said(benchmark, arguments, capsys, changed, message):
    before = torch.get_num_threads()
    try:
        status = benchmark.main([*arguments, *changed])
    except SystemExit as ended:
        status = ended.code
    torch.set_num_threads(before)
    assert status == 2
    assert message in capsys.readouterr().err
