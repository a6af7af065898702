"""The tracking benchmark: both sides compute the same tasks as often first as last, and what is not tracked is seen."""

import importlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.corpora import tiny_config, write_labelled_csv

FOLDER = Path(__file__).parent.parent / "jobs" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("OMP_NUM_THREADS", "DS_ACCELERATOR"):  # the script sets them, and the tests shall not keep them
        monkeypatch.setenv(name, "cpu" if name == "DS_ACCELERATOR" else "1")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return importlib.import_module("tracking")


def test_the_turns_are_fair(benchmark):
    turns = benchmark.Turns(rounds=3, steps=2)
    tracked = [step for step in range(turns.total) if turns.is_tracked(step)]
    assert tracked == [2, 3, 4, 5, 10, 11, 12, 13, 18, 19, 20, 21]
    rest = sorted(set(range(turns.total)) - set(tracked))
    assert Counter(map(turns.tasks, tracked)) == Counter(map(turns.tasks, rest))
    assert sum(tracked) == sum(rest)


def test_the_report(benchmark, monkeypatch, tmp_path):
    """Tracking that takes 10 ms more in calls, and 5 ms of a processor, of a second."""
    turns = benchmark.Turns(rounds=3, steps=1)
    steps = [
        benchmark.Step(1.02, 0.011, 0.005) if turns.is_tracked(step) else benchmark.Step(1.0, 0.001, 0.002)
        for step in range(turns.total)
    ]
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"outer_step": 1, "machine/cpus/mean": 1.0}) + "\n")
    (tmp_path / "wandb" / "offline-run-1-a").mkdir(parents=True)
    (tmp_path / "wandb" / "offline-run-1-a" / "run-a.wandb").touch()
    for logged, is_right in (([2, 3, 6, 7, 10, 11], True), ([2, 3, 6, 7, 10], False)):
        monkeypatch.setattr(benchmark, "rows", lambda found, logged=logged: [{"outer_step": step} for step in logged])
        text, is_good = benchmark.report(turns, steps, tmp_path)
        assert not is_good
        assert ("WRONG" in text) != is_right
        assert "speed with tracking to that without: 0.9804, median of 2 rounds" in text
        assert "by what is tracking's own, 15.0 ms of a step: 0.9850" in text
    cheap = [step._replace(calls=0.001, processor=0.001) for step in steps]
    monkeypatch.setattr(benchmark, "rows", lambda found: [{"outer_step": step} for step in (2, 3, 6, 7, 10, 11)])
    assert benchmark.report(turns, cheap, tmp_path)[1]


@pytest.mark.slow
def test_end_to_end(benchmark, monkeypatch, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(write_labelled_csv(tmp_path / "texts.csv"), train={"num_workers": 2})))
    benchmark.main(["--config", str(path), "--rounds", "2", "--steps", "2"])
    output = capsys.readouterr().out
    assert "\n8 of 16 steps are in W&B; " in output
    assert "speed with tracking to that without: " in output
