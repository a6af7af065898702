"""Whole runs through the command line: real Ray, Ray Train, DeepSpeed and W&B, in good and in bad times."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from distmeta.corpus.manifest import Manifest
from distmeta.tracking.view import OF_A_RUN, build, describe, panels
from distmeta.tracking.wandb_file import rows as wandb_rows
from tests.commands import KEY, Running, assert_gone, distmeta, distmeta_here, read_rows
from tests.corpora import tiny_config, write_labelled_csv
from tests.training import is_measured
from tests.wandb_files import logged_steps, offline_records, read_media, summary_of

STEPS, EVERY = 100, 20


def assert_same_rows(run: Path, other: Path, tolerance: float = 0.0, steps: int = STEPS) -> None:
    """Whether a run has the rows of another, up to a step."""
    rows, others = read_rows(run), read_rows(other)[:steps]
    assert [row["outer_step"] for row in rows] == list(range(1, steps + 1))
    validations = [(path / "validation.jsonl").read_text().splitlines() for path in (run, other)]
    validations[1] = [line for line in validations[1] if json.loads(line)["outer_step"] <= steps]
    assert len(validations[0]) == len(validations[1]) == 1 + steps // 50
    if not tolerance:
        assert validations[0] == validations[1]
    for row, expected in zip(rows, others, strict=True):
        for key in filter(lambda key: not is_measured(key), expected):
            allowed = max(tolerance, 1e-14) if key in ("training/grad_norm", "training/clip_factor") else tolerance
            assert row[key] == pytest.approx(expected[key], rel=allowed, abs=allowed), (row["outer_step"], key)


MEDIA = ("evaluation/table", "evaluation/classes", "evaluation/confusion", "tasks/examples", "report")


def assert_in_wandb(run: Path) -> None:
    """Whether W&B has each step once, that of the start included, with the losses that the run has. It may be ahead of
    a run that was stopped before it had made good what it lost: those steps are the same when they come."""
    found = offline_records(run)
    assert len({record.run.run_id for record in found if record.HasField("run")}) == 1
    losses = {row["outer_step"]: row["training/query_loss"] for row in read_rows(run)}
    steps = logged_steps(found)
    assert steps == list(range(len(steps)))
    assert len(steps) > max(losses)
    for row in wandb_rows(iter(found)):
        if row["outer_step"] in losses:
            assert row["training/query_loss"] == pytest.approx(losses[row["outer_step"]], rel=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and its configuration, beside a git remote with a password and a large file that nobody asked for."""
    folder = tmp_path_factory.mktemp("project")
    write_labelled_csv(folder / "texts.csv")
    tree = tiny_config(
        Path("texts.csv"),
        meta={"inner_lr": 0.1, "inner_steps": 3},
        engine={"zero_stage": 1},
        train={"num_workers": 2, "outer_steps": STEPS, "checkpoint_every": EVERY, "validate_every": 50},
        tracking={"wandb": "offline"},
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    remote = ["git", "remote", "add", "origin", "https://me:NOTASECRET77@example.invalid/x.git"]
    subprocess.run(remote, cwd=folder, check=True)
    with (folder / "big.bin").open("wb") as file:
        file.truncate(700_000_000)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nothing disturbs, started from elsewhere."""
    config = f"{folder.name}/run.yaml"
    done = distmeta("pretrain", "--config", config, "--run-dir", folder / "whole", cwd=folder.parent)
    assert "meta-pretrained inner-loop" in done.stdout
    assert "engine.computation: auto takes packed" in done.stderr
    parts = sorted((folder / "whole" / "wandb").glob("offline-run-*"))
    assert f"this uploads it: wandb sync {' '.join(map(str, parts))}\n" in done.stderr
    assert f"in the terminal: wandb leet {folder / 'whole' / 'wandb'}\n" in done.stderr
    assert (
        next(each.run for each in offline_records(folder / "whole") if each.HasField("run")).notes
        == "said by the command"
    )
    return folder / "whole"


# A run that nothing disturbs


def test_a_run_leaves_what_was_promised(whole: Path):
    rows = read_rows(whole)
    assert [row["outer_step"] for row in rows] == list(range(1, STEPS + 1))
    expected = {
        "training/query_loss",
        "training/query_accuracy",
        "training/query_accuracy_before",
        "training/support_loss",
        "training/grad_norm",
        "training/inner_lr",
    }
    expected |= {
        "training/outer_lr",
        "time/tasks_per_second",
        "time/tokens_per_second",
        "time/data_wait_fraction",
        "training/lm_loss",
        "cost/flops",
    }
    assert all(expected <= row.keys() and len(row["training/support_loss"]) == 3 for row in rows)
    assert rows[0]["training/query_accuracy_before"] == pytest.approx(1 / 3)

    evaluation = json.loads((whole / "evaluation.json").read_text())
    names = [method["name"] for method in evaluation["methods"]]
    uses = ("inner-loop", "prototype", "logistic-regression")
    assert {f"{network} {use}" for network in ("meta-pretrained", "starting") for use in uses} <= set(names)
    assert "tf-idf logistic-regression" in names
    for method in evaluation["methods"]:
        assert {"accuracy", "accuracy_ci95", "precision", "recall", "f1", "adapt_seconds"} <= method.keys()
        assert ("paired_gain" in method) == (method["network"] != "starting")
        assert ("accuracy_before" in method) == (method["use"] == "inner-loop")
    assert evaluation["overlap"]["in_training_tasks"] == 0

    summary = json.loads((whole / "summary.json").read_text())
    assert summary["outer_step"] == STEPS
    assert summary["worker_seconds"] == pytest.approx(2 * summary["wall_seconds"])
    assert summary["flops"] == rows[-1]["cost/flops"] > 0
    validations = [json.loads(line) for line in (whole / "validation.jsonl").read_text().splitlines()]
    assert [row["outer_step"] for row in validations] == [0, 50, 100]
    assert summary["best_score"] == max(row["inner-loop"] for row in validations)
    assert yaml.safe_load((whole / "config.yaml").read_text())["corpus"]["sources"][0].endswith("/texts.csv")
    versions = json.loads((whole / "environment.json").read_text())
    assert "2.13.0" in json.dumps(versions)


def test_the_exported_folder_is_the_kept_network(whole: Path):
    model, report = AutoModel.from_pretrained(whole / "model", output_loading_info=True)
    assert not any(report.values())
    weights = load_file(whole / "weights" / "best.safetensors")
    for name, value in model.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(value, weights[f"model.bert.{name}"]), name
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    assert tokenizer.model_max_length == 32


def assert_the_whole_in_wandb(whole: Path) -> None:
    """Each step once, that of the start among them, and the evaluation as figures, tables, tasks and page."""
    found = offline_records(whole)
    assert logged_steps(found) == list(range(STEPS + 1))
    (run, *_) = [record.run for record in found if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    manifest = Manifest.load(whole / "corpus")
    assert config["prepared_corpus"]["content_digest"] == manifest.content_digest == config["environment"]["corpus"]
    assert config["prepared_corpus"]["train"]["classes"] == 11
    rows = read_rows(whole)
    sections = {key.split("/")[0] for row in rows for key in row}
    assert sections | {"machine"} == {"outer_step", "training", "validation", "time", "cost", "machine"}
    report, summary = json.loads((whole / "evaluation.json").read_text()), summary_of(found)
    lines = (whole / "validation.jsonl").read_text().splitlines()
    validations = [json.loads(line)["inner-loop"] for line in lines]
    assert summary["validation/inner-loop"] == {"max": max(validations), "last": validations[-1]}
    assert summary["training/query_loss"]["min"] == min(row["training/query_loss"] for row in rows)
    own = [method for method in report["methods"] if method["network"] == "meta-pretrained"]
    for method in own:
        for key in ("accuracy", "precision", "recall", "f1", "adapt_seconds"):
            assert summary[f"evaluation/{method['use']}/{key}"] == pytest.approx(method[key])
    assert summary["evaluation/accuracy"] == pytest.approx(max(method["accuracy"] for method in own))
    assert summary["evaluation/verdict"] == report["verdict"]["text"]
    media = {key: read_media(whole, summary[key]) for key in MEDIA}
    methods = json.loads(media["evaluation/table"])
    assert [row[0] for row in methods["data"]] == [method["name"] for method in report["methods"]]
    examples = json.loads(media["tasks/examples"])["data"]
    assert {row[2] for row in examples} == {"support", "query"}
    assert "meta-pretrained" in media["report"]
    assert str(whole) not in media["report"]
    classes = json.loads(media["evaluation/classes"])["data"]
    confusion = {(own, other): texts for own, other, texts in json.loads(media["evaluation/confusion"])["data"]}
    assert {row[0] for row in classes} == {own for own, _ in confusion}
    assert len(classes) == 3  # those of the test split
    for name, texts, accuracy, other, share in classes:
        assert texts == sum(count for (own, _), count in confusion.items() if own == name) > 0
        assert accuracy == pytest.approx(confusion.get((name, name), 0) / texts)
        assert share == pytest.approx(confusion.get((name, other), 0) / texts)


def test_weights_and_biases_has_the_whole_of_it(whole: Path):
    assert_the_whole_in_wandb(whole)


def test_no_panel_of_the_view_is_empty(whole: Path):
    found = offline_records(whole)
    there = {key for row in wandb_rows(iter(found)) for key in row} | set(summary_of(found))
    shown = dict(panels(OF_A_RUN, there))
    assert list(shown) == [title for title in OF_A_RUN if title != "Machines" or "machine/cpus/mean" in there]
    _, by_files, sections = describe(whole)
    assert dict(panels(sections, by_files)) == shown, "what the files of the run say is what W&B has"
    for panel in (panel for members in shown.values() for panel in members):
        assert set(panel.names) <= there
    workspaces = pytest.importorskip("wandb_workspaces.workspaces", reason="wandb-workspaces is not installed")
    view = build("me", "shots", "whole", sections, by_files, workspaces)
    assert [section.name for section in view.sections] == list(shown)
    assert "training/query_accuracy" in json.dumps(view._to_model().model_dump(by_alias=True, mode="json"))


def test_nothing_secret_and_nothing_large_is_left(whole: Path, folder: Path):
    """Cases E2, E3 and B3: one W&B run with config and history, no key, no password, no copy of the folder."""
    assert len({each.run.run_id for each in offline_records(whole) if each.HasField("run")}) == 1
    for file in whole.rglob("*"):
        if file.is_file() and not file.is_symlink():
            content = file.read_bytes()
            assert KEY.encode() not in content, file
            assert b"NOTASECRET77" not in content, file
    assert sum(file.stat().st_size for file in whole.rglob("*") if file.is_file()) < 50_000_000


def test_a_run_is_not_overwritten_and_not_changed_by_a_resume(whole: Path, folder: Path):
    before = (whole / "metrics.jsonl").read_bytes()
    refused = distmeta_here("pretrain", "--config", "run.yaml", "--run-dir", "whole", cwd=folder)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    other = ["--resume", "--set", "meta.inner_lr=0.2"]
    changed = distmeta_here("pretrain", "--config", "run.yaml", "--run-dir", "whole", *other, cwd=folder)
    assert changed.returncode == 2
    assert "meta.inner_lr: 0.1 before, 0.2 now" in changed.stderr
    assert "Traceback" not in refused.stderr + changed.stderr
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_the_kept_network_is_scored_again_with_other_ways(whole: Path, folder: Path):
    options = ["--set", "evaluate.n_way=all", "--set", "evaluate.k_shot=1", "--set", "evaluate.split=train"]
    done = distmeta_here("evaluate", "--run-dir", "whole", *options, "--set", "evaluate.episodes=3", cwd=folder)
    (file,) = (whole / "evaluations").glob("train_all-way_1-shot_*.json")
    evaluation = json.loads(file.read_text())
    assert (evaluation["n_way"], evaluation["k_shot"], evaluation["split"]) == (11, 1, "train")
    assert "11-way 1-shot" in done.stdout
    own = json.loads((whole / "evaluation.json").read_text())
    assert own["split"] == "test"
    found = summary_of(offline_records(whole))  # in the same run, beside the run's own evaluation
    accuracy = next(each["accuracy"] for each in evaluation["methods"] if each["name"] == "meta-pretrained prototype")
    assert found[f"evaluation/{file.stem}/prototype/accuracy"] == pytest.approx(accuracy)
    assert found["evaluation/verdict"] == own["verdict"]["text"]


def test_without_inner_learning_accuracy_is_chance(whole: Path, folder: Path):
    """Case A2: nothing about a class may be read off its label's number."""
    options = ["--set", "meta.inner_lr=0", "--set", "evaluate.split=train", "--set", "evaluate.episodes=40"]
    distmeta_here("evaluate", "--run-dir", "whole", *options, cwd=folder)
    (file,) = (whole / "evaluations").glob("train_*_40-episodes_*.json")
    evaluation = json.loads(file.read_text())
    inner = [method for method in evaluation["methods"] if method["use"] == "inner-loop"]
    assert [method["accuracy"] for method in inner] == pytest.approx([1 / 3] * 2)


def test_an_export_can_be_made_again(whole: Path, folder: Path):
    before = (whole / "model" / "model.safetensors").read_bytes()
    done = distmeta_here("export", "--run-dir", "whole", cwd=folder)
    assert done.stdout.strip() == str(whole / "model")
    assert (whole / "model" / "model.safetensors").read_bytes() == before


# Bad times


@pytest.mark.slow  # that of a sweep is killed in test_sweep
def test_a_killed_driver_leaves_a_run_that_goes_on(whole: Path, folder: Path):
    """Cases B1 and E1: the same losses, each step once, one W&B run, also where it goes on with another number of
    workers."""
    run = Running(folder, "run.yaml", "lost-driver")
    for step in (EVERY + 5, 3 * EVERY + 5):
        processes = run.wait_for_step(step)
        run.process.kill()
        run.wait()
        assert_gone(processes)
        assert len(read_rows(run.run)) < STEPS
        more = [] if step < 2 * EVERY else ["--set", "train.num_workers=1"]
        run = Running(folder, "run.yaml", "lost-driver", "--resume", *more)
    resumed = run
    assert resumed.wait() == 0, resumed.log.read_text()[-4000:]
    assert_same_rows(run.run, whole, tolerance=1e-5)
    assert_in_wandb(run.run)
    assert_the_whole_in_wandb(run.run)
    assert re.search(r"going on from the checkpoint of outer step [2468]0\n", resumed.log.read_text())


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(whole: Path, folder: Path):
    """And made again under another name, so that the run can be resumed after that too."""
    run = folder / "damaged"
    shutil.copytree(whole, run)
    newest = sorted((run / "checkpoints").glob("checkpoint_0*"))[-1]
    weights = newest / "part-00001.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    said = ""
    for _ in range(2):
        said += distmeta("pretrain", "--config", "run.yaml", "--run-dir", "damaged", "--resume", cwd=folder).stderr
        assert_same_rows(run, whole)
    assert f"checkpoint {newest.name} is left out" in said


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(whole: Path, folder: Path):
    run = folder / "emptied"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("checkpoint_0*"))
    done = distmeta_here("pretrain", "--config", "run.yaml", "--run-dir", "emptied", "--resume", cwd=folder)
    assert done.returncode == 2
    assert "the checkpoints of this run are gone" in done.stderr
    assert_same_rows(run, whole)


@pytest.mark.slow
def test_the_language_model_baseline_gets_as_many_tokens(whole: Path, folder: Path):
    run = folder / "baseline"
    shutil.copytree(whole, run)
    option = ["--set", "evaluate.language_model_baseline=true"]
    distmeta("pretrain", "--config", "run.yaml", "--run-dir", "baseline", "--resume", *option, cwd=folder)
    tokens = [sum(row["tokens"] for row in read_rows(path)) for path in (run, run / "language-model")]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.05)
    assert not any("training/query_loss" in row for row in read_rows(run / "language-model"))
    methods = json.loads((run / "evaluation.json").read_text())["methods"]
    assert "language-model inner-loop" in [method["name"] for method in methods]


def assert_stops(run: Running, number: signal.Signals) -> int:
    """Sends a signal to the whole process group of a run that is under way; returns the step at which it ends."""
    processes = psutil.Process(run.process.pid).children(recursive=True)
    run.signal_group(number)
    since = time.monotonic()
    assert run.wait() == 130, run.log.read_text()[-4000:]
    assert time.monotonic() - since < 30
    assert_gone(processes)
    steps = len(read_rows(run.run))
    assert 5 <= steps < STEPS
    newest = sorted((run.run / "checkpoints").glob("checkpoint_0*"))[-1]
    assert newest.name.startswith(f"checkpoint_{steps:08d}")
    assert f"stopped after outer step {steps}; --resume goes on" in run.log.read_text()
    return steps


def test_a_killed_worker_is_made_good_and_a_signal_leaves_a_checkpoint_of_the_step(whole: Path, folder: Path):
    """A signal to the whole process group, of which Ray's own processes must not die before."""
    run = Running(folder, "run.yaml", "disturbed")
    workers = [process for process in run.wait_for_step(EVERY + 5) if "TrainWorker" in " ".join(process.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    assert_gone(workers[1:])
    run.wait_for_line("going on from the checkpoint of outer step")
    steps = assert_stops(run, signal.SIGTERM)
    assert_same_rows(run.run, whole, steps=steps)
    assert_in_wandb(run.run)
    loss = r"\nworker \d was lost \(process \d+ on node [\d.]+\): its process ended without a word.*\(loss 1 of 3 .*\n"
    assert len(re.findall(loss, run.log.read_text())) == 1
    assert "raylet" not in run.log.read_text(), "Ray's own words are in its log files"
    assert re.search(r"going on from the checkpoint of outer step [2468]0\n", run.log.read_text())


@pytest.mark.slow  # that it makes no difference to the run is held in test_train_loop
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_a_run_that_goes_on(number: signal.Signals, whole: Path, folder: Path):
    """Case B1: and on one worker, at another ZeRO stage."""
    run = Running(folder, "run.yaml", f"stopped-{number.name}")
    run.wait_for_step(5)
    assert_stops(run, number)
    other = ["--set", "train.num_workers=1", "--set", "engine.zero_stage=3"]
    resumed = Running(folder, "run.yaml", run.run.name, "--resume", *other)
    assert resumed.wait() == 0, resumed.log.read_text()[-4000:]
    assert_same_rows(run.run, whole, tolerance=1e-5)
    assert_in_wandb(run.run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "train.num_workers=400", "--set", "meta.meta_batch_size=400"], ["400 workers", "this machine has"]),
        (["--set", "tasks.n_way=9"], ["meta-valid", "n_way"]),
        (["--set", "tasks.k_shot=18"], ["21", "20"]),
        (["--set", "tasks.label_column=topic"], ["topic", "texts.csv"]),
        (["--set", "model.name_or_path=/nowhere"], ["model.name_or_path"]),
    ],
)
def test_what_cannot_work_is_refused_before_a_cluster_starts(options: list[str], words: list[str], folder: Path):
    """Cases B4 and F1."""
    refused = distmeta_here("pretrain", "--config", "run.yaml", "--run-dir", "refused", *options, cwd=folder)
    assert refused.returncode == 2, refused.stderr
    assert not ray.is_initialized()
    for word in words:
        assert word in refused.stderr
    assert "Traceback" not in refused.stderr
