"""Evaluations of any network on any labelled set, from the command line."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from distmeta.config import load_config
from distmeta.evaluate import features
from distmeta.evaluate.networks import Model
from distmeta.opening import reopen_run
from distmeta.pipeline import export
from distmeta.rundir import RunDirectory
from tests.commands import distmeta_here
from tests.corpora import write_labelled_csv
from tests.runs import begun_run

LABELLED = ["--on", "texts.csv", "--label-column", "label"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that has exported its network."""
    _, run = begun_run(tmp_path_factory.mktemp("project"), evaluate={"episodes": 4, "fine_tuning_episodes": 0})
    export(*reopen_run(None, [], run.path))
    return run


@pytest.fixture(scope="module")
def folder(run: RunDirectory) -> Path:
    return run.path.parent


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def accuracies(report: dict[str, Any]) -> dict[str, list[float]]:
    return {method["name"]: method["accuracies"] for method in report["methods"]}


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> tuple[dict[str, dict[str, Any]], list[features.FeaturesUnit]]:
    """Two networks on four shapes in one call: the reports by name, and what was computed."""
    computed: list[features.FeaturesUnit] = []
    with pytest.MonkeyPatch.context() as patch:
        compute = features._compute
        patch.setattr(features, "_compute", lambda unit: computed.append(unit) or compute(unit))
        patch.setattr(features, "UNIT_TOKENS", 1000)
        shapes = ["--n-way", "3", "--n-way", "all", "--k-shot", "1", "--k-shot", "2", "--query-per-class", "3"]
        networks = ["--model", "run/model", "--model", "run/starting"]
        done = distmeta_here(
            "evaluate", *networks, *LABELLED, *shapes, "--episodes", "5", "--output", "out", cwd=folder
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Is run the best of them?") == 4
    reports = {path.name.rpartition("_")[0]: read(path) for path in (folder / "out" / "evaluations").glob("*.json")}
    return reports, computed


def test_several_networks_and_shapes_are_evaluated_in_one_call(
    evaluated: tuple[dict[str, dict[str, Any]], Any], folder: Path
) -> None:
    reports, _ = evaluated
    assert {*reports} == {
        f"texts_{way}-way_{shot}-shot_3-queries_5-episodes_seed-1" for way in (3, "all") for shot in (1, 2)
    }
    report = reports["texts_all-way_2-shot_3-queries_5-episodes_seed-1"]
    assert (report["n_way"], report["k_shot"], report["on"]["name"]) == (18, 2, "texts")
    assert report["on"]["rows"]["kept"] == 360
    uses = ("prototype", "logistic-regression")
    assert {*accuracies(report)} == {f"{n} {use}" for n in ("run", "run/starting") for use in uses} | {
        "tf-idf logistic-regression"
    }
    assert all(len(values) == 5 for values in accuracies(report).values())
    assert not (folder / "out" / "evaluations" / "unfinished").exists()


def test_one_page_shows_all_evaluations_of_a_folder(
    evaluated: tuple[dict[str, dict[str, Any]], Any], folder: Path
) -> None:
    done = distmeta_here("report", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    reports, _ = evaluated
    for report in reports.values():
        title = f"texts, {report['n_way']}-way {report['k_shot']}-shot"
        assert page.count(f"<h2>{title}, 5 episodes, seed 1</h2>") == 1
        for method in report["methods"]:
            assert f"{100 * method['accuracy']:.1f}" in page
    assert page.count("<svg") == 4
    assert len({*re.findall(r'id="(methods-\d)-', page)}) == 4


def test_features_are_computed_once_a_network_and_text_whatever_the_shapes(evaluated: tuple[Any, Any]) -> None:
    _, computed = evaluated
    assert len({unit.identity for unit in computed}) == 2
    texts = [(unit.identity, text) for unit in computed for text in unit.texts]
    assert len(texts) == len({*texts}) > 400


def test_a_run_on_a_file_is_its_exported_network_on_it(evaluated: tuple[dict[str, Any], Any], folder: Path) -> None:
    own = (folder / "run").glob("*")
    before = {path.name for path in own}
    shape = ["--shape", "3x1", "--query-per-class", "3", "--episodes", "5"]
    done = distmeta_here("evaluate", "--run-dir", "run", *LABELLED, *shape, cwd=folder)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "run" / "evaluations").glob("texts_3-way_1-shot*.json")
    found, other = accuracies(read(file)), accuracies(evaluated[0]["texts_3-way_1-shot_3-queries_5-episodes_seed-1"])
    assert found["meta-pretrained prototype"] == other["run prototype"]
    assert found["starting prototype"] == other["run/starting prototype"]
    assert found["meta-pretrained prototype"] != found["starting prototype"]
    assert "meta-pretrained inner-loop" in found
    # It knows on which of these texts the run was trained.
    assert read(file)["overlap"]["in_training_tasks"] > 0
    assert {path.name for path in (folder / "run").glob("*")} - before == {"evaluations"}
    # The run given as a network is scored in the same uses.
    done = distmeta_here("evaluate", "--model", "run", *LABELLED, *shape, "--output", "alone", cwd=folder)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "alone" / "evaluations").glob("*.json")
    alone = accuracies(read(file))
    assert {use: alone[f"run {use}"] for use in ("inner-loop", "prototype")} == {
        use: found[f"meta-pretrained {use}"] for use in ("inner-loop", "prototype")
    }


def test_another_network_stands_beside_a_run_on_the_run_s_own_classes(folder: Path) -> None:
    done = distmeta_here(
        "evaluate", "--run-dir", "run", "--model", "run/model", "--n-way", "3", "--k-shot", "1", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "run" / "evaluations").glob("test_3-way_1-shot_*.json")
    found = accuracies(read(file))
    assert found["run prototype"] == found["meta-pretrained prototype"]
    assert not (folder / "run" / "evaluation.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_stopped_evaluation_of_networks_goes_on(
    number: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model", "run/model", "--model", "run/starting", *LABELLED, "--shape", "3x2", "--episodes", "6"]
    whole = distmeta_here("evaluate", *arguments, "--output", "whole", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    monkeypatch.setattr(features, "UNIT_TOKENS", 300)
    compute, computed = features._compute, []

    def counted(unit: features.FeaturesUnit) -> Any:
        computed.append(unit)
        if len(computed) == 2:
            os.kill(os.getpid(), number)
        return compute(unit)

    monkeypatch.setattr(features, "_compute", counted)
    stopped = distmeta_here("evaluate", *arguments, "--output", "stopped", cwd=folder)
    assert stopped.returncode == 130
    assert "stopped after 2 of" in stopped.stderr
    assert not list((folder / "stopped" / "evaluations").glob("*.json"))
    again = distmeta_here("evaluate", *arguments, "--output", "stopped", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert len(computed) == len({(unit.identity, unit.texts) for unit in computed})
    reports = [next((folder / name / "evaluations").glob("*.json")) for name in ("whole", "stopped")]
    assert accuracies(read(reports[0])) == accuracies(read(reports[1]))


DRAWS, SHOTS = (0, 1, 2), (2, 4)


def write_given(path: Path) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """Train and test rows of pairs in draws; returns the numbers of the training and test rows of each draw."""
    random = np.random.default_rng(0)
    halves: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "draw", "shots", "a", "b", "label"])
        number = 1
        rows = []
        for row in range(40):
            rows.append(("test", "", "", row % 2))
        for shots in SHOTS:
            for draw in DRAWS:
                rows += [("train", draw, shots, row % 2) for row in range(2 * shots)]
        for part, draw, shots, label in rows:
            number += 1
            words = [f"w{random.integers(60)}" for _ in range(5)]
            writer.writerow(
                [part, draw, shots, " ".join(words), f"topic{'ab'[label]} n{number}", "no" if label else "yes"]
            )
            for each in halves.setdefault((draw, shots), ([], [])) if part == "train" else ():
                each.append(number) if not halves[draw, shots][1] else None
    return halves


def test_given_rows_are_the_episodes(folder: Path) -> None:
    write_given(folder / "given.csv")
    columns = ["--text-column", "a", "--text-pair-column", "b", "--label-column", "label"]
    given = ["--part-column", "part", "--draw-column", "draw", "--shots-column", "shots", "--max-queries", "30"]
    done = distmeta_here(
        "evaluate", "--model", "run/model", "--on", "given.csv", *columns, *given, "--output", "given", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    reports = {read(path)["k_shot"]: read(path) for path in (folder / "given" / "evaluations").glob("*.json")}
    assert {*reports} == {*SHOTS}
    assert "the 3 given draws of given, 2-way 4-shot, 30 queries each" in done.stdout
    rows = list(csv.DictReader((folder / "given.csv").open(encoding="utf-8")))
    network = Model("plain", load_config(None, [f"model.name_or_path={folder}/run/model"], check=False))
    for shots, report in reports.items():
        assert report["given"] == {"draws": ["0", "1", "2"], "queries": 30}
        found = accuracies(report)["run logistic-regression"]
        expected = [by_hand(network, rows, str(draw), str(shots)) for draw in DRAWS]
        assert found == pytest.approx(expected, abs=0.04)  # of 30 queries one may be next to equal


def by_hand(network: Model, rows: list[dict[str, str]], draw: str, shots: str) -> float:
    """Accuracy of scikit-learn on the features of transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    train = [row for row in rows if row["part"] == "train" and (row["draw"], row["shots"]) == (draw, shots)]
    test = [row for row in rows if row["part"] == "test"][:30]
    assert network.config.model.name_or_path
    tokenizer = AutoTokenizer.from_pretrained(network.config.model.name_or_path)
    model = AutoModel.from_pretrained(network.config.model.name_or_path).eval()

    def of(part: list[dict[str, str]]) -> np.ndarray:
        batch = tokenizer([row["a"] for row in part], [row["b"] for row in part], padding=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        values = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    support, query = of(train), of(test)
    centre = support.mean(0)
    support, query = (
        (each - centre) / np.linalg.norm(each - centre, axis=1, keepdims=True) for each in (support, query)
    )
    fitted = LogisticRegression(C=10, max_iter=1000).fit(support, [row["label"] for row in train])
    return float(np.mean(fitted.predict(query) == [row["label"] for row in test]))


def test_what_was_trained_without_labels_reads_labelled_text_by_its_mean(tmp_path: Path) -> None:
    lines = [
        f"the {word} number {n} of this town is {'red' if n % 2 else 'old'} and not far"
        for n in range(40)
        for word in ("house", "street", "tree", "river", "field", "market")
    ]
    (tmp_path / "plain.txt").write_text("\n".join(lines))
    tasks = {"label_column": None, "n_way": 2, "k_shot": 1, "query_per_class": 1, "min_sentences": 4}
    begun_run(tmp_path, corpus={"sources": ["plain.txt"]}, tasks=tasks)
    write_labelled_csv(tmp_path / "texts.csv", 5, 12)
    done = distmeta_here("evaluate", "--run-dir", "run", *LABELLED, "--episodes", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "evaluations").glob("texts_*.json")
    assert {method["use"] for method in read(file)["methods"]} >= {"inner-loop", "prototype", "logistic-regression"}
    done = distmeta_here("evaluate", "--run-dir", "run", "--model", "run", "--shape", "2x1", cwd=tmp_path)
    assert (done.returncode, "words that are hidden in sentences (SMLMT)" in done.stderr) == (2, True)


def test_episodes_of_several_data_sets_are_also_told_apart(tmp_path: Path) -> None:
    sources = []
    for number, classes in enumerate((6, 5)):
        write_labelled_csv(tmp_path / f"set{number}.csv", classes, 14)
        sources.append({"path": f"set{number}.csv", "label_column": "label", "role": ("train", "test")[number]})
    sources.append({**sources[1], "path": "texts.csv"})
    write_labelled_csv(tmp_path / "texts.csv", 4, 14)
    tasks = {"n_way": 3, "k_shot": 1, "query_per_class": 2, "label_column": None}
    begun_run(tmp_path, corpus={"sources": sources}, tasks=tasks)
    done = distmeta_here("evaluate", "--run-dir", "run", "--episodes", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "evaluations").glob("*.json")
    report = read(file)
    assert {name: found["episodes"] for name, found in report["by_dataset"].items()} == {"set1": 3, "texts": 2}
    values = accuracies(report)["starting prototype"]
    for name, own in (("set1", values[0::2]), ("texts", values[1::2])):
        (method,) = (each for each in report["by_dataset"][name]["methods"] if each["name"] == "starting prototype")
        assert method["accuracy"] == pytest.approx(np.mean(own))
        assert f"\n{name}, {len(own)} of the episodes:" in done.stdout
    distmeta_here("report", "run", cwd=tmp_path)
    assert "Accuracy by data set" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


RAY = """
import ray
from distmeta.corpus.executor import LocalExecutor, RayExecutor
from distmeta.evaluate import features
from distmeta.evaluate.run import Asked, score_networks
from distmeta.opening import reopen_run
from distmeta.run_evaluation import networks_of
from distmeta.setup import Setup
from pathlib import Path

features.UNIT_TOKENS = 500
config, run = reopen_run(None, ["evaluate.fine_tuning_episodes=1"], Path("run"))
ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
found = []
for executor in (LocalExecutor(), RayExecutor()):
    setup = Setup(config, run)
    asked = Asked(setup.evaluation_tasks(), 3)
    score_networks(networks_of(config, run, setup, print), [asked], print, executor=executor)
    found.append({method: [score["accuracy"] for score in scores] for method, scores in asked.scores.items()})
assert len(found[0]) == 8 and found[0] == found[1], found
"""


@pytest.mark.slow
def test_the_workers_of_a_cluster_find_what_one_process_finds(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAY],
        cwd=folder,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


REFUSED = {
    "": "give --run-dir DIR, a run, or --on FILE and --model PATH",
    "--model run/model": "give --on FILE, a labelled set to evaluate on, or --run-dir DIR for a run's own classes",
    "--on texts.csv --label-column label": "--on texts.csv: give --model PATH",
    "--model run/model --on texts.csv": "--on texts.csv: give --label-column",
    "--model run/model --on nowhere.csv --label-column label": "nowhere.csv",
    "--model ./nowhere --on texts.csv --label-column label": "--model ./nowhere: nothing is at",
    "--model run/model --on texts.csv --label-column nothing": "--on: the file cannot be read whole",
    "--model run/model --on texts.csv --label-column label --n-way 40": "has 18 classes",
    "--model run/model --on texts.csv --label-column label --k-shot 19": "has 0 classes with 24 different texts",
    "--model run/model --on texts.csv --label-column label --n-way many": "n_way",
    "--model run/model --on texts.csv --label-column label --shape 5": "--shape 5: write it as WAYSxSHOTS",
    "--model run/model --on texts.csv --label-column label --shape 5x": "--shape 5x: write it as WAYSxSHOTS",
    "--model run/model --model run/model --on texts.csv --label-column label": "--model: run/model is given twice",
    "--run-dir run --label-column label": "--label-column: says what is in the file of --on",
    "--run-dir run --output out": "--output: with --run-dir",
    "--model run/model --on texts.csv --label-column label --draw-column d": "--draw-column: says more of given train",
    "--model run/model --on texts.csv --label-column label --part-column label": "which rows are trained on?",
    "--model run/model --on texts.csv --label-column label --part-column p": "has no column 'p'",
    "--model run/model --on texts.csv --label-column label --part-column p --n-way 3": "--n-way: with --part-column",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_nonsense_is_refused_in_a_line(arguments: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    output = [] if "--run-dir" in arguments or not arguments else ["--output", "refused"]
    done = distmeta_here("evaluate", *arguments.split(), *output, cwd=folder)
    assert done.returncode == 2
    (line,) = [each for each in done.stderr.splitlines() if REFUSED[arguments] in each]
    assert line.startswith("distmeta: ")
    assert "Traceback" not in done.stderr
    made = [path for path in sorted(folder.rglob("*")) if path not in before]
    assert not [path for path in made if path.suffix == ".json" and path.parent.name == "evaluations"]
