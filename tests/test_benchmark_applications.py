"""The benchmark of applications: the same examples and rows for every method, and no mean over unlike sets."""

import gzip
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from distmeta.pipeline import write_models
from distmeta.setup import Setup
from tests.runs import begun_run
from tests.test_adapt import examples

FOLDER = Path(__file__).parents[1] / "jobs" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module("applications")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a set of which examples are drawn, and one that gives draws."""
    folder = tmp_path_factory.mktemp("project")
    config, run = begun_run(folder)
    write_models(Setup(config, run), run)
    texts, labels = examples(9)
    rows = [{"text": text, "label": f"{label}:fine"} for text, label in zip(texts, labels, strict=True)]
    (folder / "drawn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [{"text": text, "label": label, "part": "eval"} for text, label in zip(texts, labels, strict=True)]
    for draw in (0, 1):
        for number, (text, label) in enumerate(zip(*examples(2), strict=True)):
            row = {"text": f"{text} {draw} {number}", "label": label, "part": "train", "draw": draw, "shots": 2}
            given.append(row)
    with gzip.open(folder / "given.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in given)
    return folder


SETS = {
    "drawn": {"source": {"path": "drawn.jsonl"}, "text": "text", "label": "label", "coarse": ":"},
    "given": {"source": {"path": "given.jsonl.gz"}, "text": "text", "label": "label", "draws": True},
}


def test_examples_are_drawn_or_given_and_no_test_row_is_one(benchmark, project):
    sets = {name: benchmark.DataSet(name, **values) for name, values in SETS.items()}
    first, second = sets["drawn"].tasks(project, 2, 2)
    for task in (first, second):
        assert sorted(task.labels) == ["class a"] * 2 + ["class b"] * 2 + ["class c"] * 2
        assert not set(task.texts) & set(task.queries)
    assert first.texts != second.texts
    assert first.queries == second.queries
    zero, one = sets["given"].tasks(project, 2, 10)
    assert [text for (text,) in zero.texts] == [f"{text} 0 {n}" for n, text in enumerate(examples(2)[0])]
    assert len(one.queries) == 27
    assert list(sets["given"].tasks(project, 4, 10)) == []


def test_a_call_goes_on_where_another_ended(benchmark, project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "read_yaml", lambda _: SETS)
    arguments = ["--data", str(project), "--model", f"tiny={project / 'run'}", "--shots", "2", "--draws", "2"]
    assert benchmark.main([*arguments, "--methods", "prototype", "--output", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {(row["set"], row["method"]) for row in rows} == {
        (name, method) for name in ("drawn", "given") for method in ("tf-idf", "tiny prototype")
    }
    assert all(0 <= row["f1"] <= 1 and row["seconds"] > 0 for row in rows)
    table = capsys.readouterr().out
    assert "tiny prototype" in table
    monkeypatch.setattr(benchmark, "tf_idf", None)
    picture = tmp_path / "frontier.svg"
    again = [*arguments, "--methods", "prototype", "--output", str(tmp_path), "--picture", str(picture)]
    assert benchmark.main(again) == 0
    assert capsys.readouterr().out == table
    assert "seconds of a core to adapt" in picture.read_text()


def test_a_method_without_some_sets_has_no_mean(benchmark):
    row = {"accuracy": 0.5, "f1": 0.5, "seconds": 1.0, "seconds_per_1000": 1.0, "shots": 4, "draw": 0}
    rows = [row | {"set": name, "method": "one"} for name in ("a", "b")] + [row | {"set": "a", "method": "two"}]
    assert "two" not in benchmark.table(rows)
    assert "50.0" in benchmark.table(rows)


def test_an_unknown_set_is_told(benchmark, project, capsys):
    assert benchmark.main(["--data", str(project), "--model", "x", "--sets", "nothing"]) == 2
    assert "--sets nothing: applications.yaml has airline" in capsys.readouterr().err
