"""Whole sweeps through the command line: real Ray Tune over Ray Train, DeepSpeed and W&B, in good and in bad times."""

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from distmeta.config import load_config
from distmeta.engine.checkpoint import read_checkpoint
from distmeta.rundir import RunDirectory
from distmeta.sweep.directory import write_trial
from distmeta.sweep.takeover import OWN, copy_newest, take_over
from distmeta.tracking.view import describe, panels
from distmeta.tracking.wandb_file import rows as wandb_rows
from tests.commands import KEY, Running, assert_gone, distmeta, distmeta_here, read_rows
from tests.corpora import tiny_config, write_labelled_csv
from tests.wandb_files import logged_steps, offline_records, read_media, summary_of

STEPS, EVERY = 80, 20
RATES = [0.1, 0.03, 30.0]


def read_trials(sweep: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]


def write_config(folder: Path, name: str, sweep: dict[str, Any], **sections: dict[str, Any]) -> None:
    train = {"outer_steps": STEPS, "checkpoint_every": EVERY, "validate_every": EVERY, "validate_episodes": 6}
    tree = tiny_config(
        Path("texts.csv"),
        meta={"inner_lr": RATES[0], "inner_steps": 3},
        train=train | sections.get("train", {}),
        tracking={"wandb": "offline", "price_per_worker_hour": 3.6},
        sweep=sweep,
    )
    (folder / name).write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    write_labelled_csv(folder / "texts.csv")
    space = {"meta.inner_lr": {"type": "grid", "values": RATES}}
    write_config(folder, "sweep.yaml", {"search": "grid", "scheduler": "none", "num_trials": 3, "space": space})
    with (folder / "big.bin").open("wb") as file:
        file.truncate(700_000_000)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A sweep that nothing disturbs, started from elsewhere: two trials that finish and one that diverges."""
    done = distmeta("sweep", "--config", f"{folder.name}/sweep.yaml", "--run-dir", folder / "whole", cwd=folder.parent)
    assert "Did the sweep help?" in done.stdout
    return folder / "whole"


def test_a_sweep_leaves_what_was_promised(whole: Path):
    rows = read_trials(whole)
    assert [row["trial_id"] for row in rows] == ["0000", "0001", "0002"]
    assert [row["config"] for row in rows] == [{"meta.inner_lr": rate} for rate in RATES]
    assert [row["status"] for row in rows] == ["finished", "finished", "diverged"]
    for row in rows[:2]:
        assert {"accuracy", "accuracy_ci95", "wall_seconds", "worker_seconds", "flops", "startup_seconds"} <= row.keys()
        assert row["cost"] == pytest.approx(row["worker_seconds"] * 3.6 / 3600)
        assert row["outer_step"] == STEPS

    best = max(rows[:2], key=lambda row: row["accuracy"])
    made = load_config(whole / "best.yaml")
    assert made.meta.inner_lr == best["config"]["meta.inner_lr"]
    assert made.meta.distance == "euclidean"  # unset, and written down as the trial had it
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["best_trial"] == best["trial_id"]
    assert summary["worker_seconds"] == pytest.approx(sum(row["worker_seconds"] for row in rows))
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert evaluation["selection"][0]["trial_id"] == best["trial_id"]
    assert {row["trial_id"] for row in evaluation["selection"]} == {"0000", "0001"}
    assert all("test_accuracy" in row and "valid_accuracy_ci95" in row for row in evaluation["selection"])
    networks = {method["network"] for method in evaluation["methods"]}
    assert networks == {"trial 0000", "trial 0001", "starting", "tf-idf"}
    assert "<svg" in (whole / "report.html").read_text()


def test_a_trial_that_diverges_ends_early_and_never_wins(whole: Path):
    rows = read_trials(whole)
    assert re.search(r"query loss .* at outer step \d+", rows[2]["reason"])
    assert rows[2]["outer_step"] < EVERY
    assert "accuracy" not in rows[2]
    assert "accuracy" not in json.loads((whole / "trials" / "0002" / "summary.json").read_text())
    assert "accuracy" not in recorded(whole / "trials" / "0002")[1]
    assert rows[2]["worker_seconds"] < rows[0]["worker_seconds"] / 2
    assert not list((whole / "trials" / "0002").glob("checkpoints/checkpoint_0*"))


def test_the_corpus_is_prepared_once(whole: Path):
    assert (whole / "corpus" / "manifest.json").exists()
    for trial in (whole / "trials").iterdir():
        assert not (trial / "corpus").exists()
        assert load_config(trial / "config.yaml", check=False).corpus.directory == str(whole / "corpus")


def recorded(run: Path) -> tuple[dict[str, Any], dict[str, Any], str, list[int]]:
    """Config, summary, group and logged steps of a trial, as its offline W&B files have them."""
    found = offline_records(run)
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    runs = [record.run for record in found if record.HasField("run")]
    assert len({each.run_id for each in runs}) == 1
    for each in runs:
        config |= {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in each.config.update}
    for record in found:
        for item in record.summary.update if record.HasField("summary") else ():
            summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return config, summary, runs[0].run_group, logged_steps(found)


def test_wandb_has_a_run_a_trial_in_one_group_with_the_swept_values_as_numbers(whole: Path):
    """Case E3: exactly one run a trial."""
    best = json.loads((whole / "summary.json").read_text())["best_trial"]
    for row in read_trials(whole):
        run = whole / "trials" / row["trial_id"]
        # The winner has another part, with its result on the meta-test classes.
        assert len(list(run.glob("wandb/offline-run-*"))) == 1 + (row["trial_id"] == best)
        config, summary, group, steps = recorded(run)
        assert group == "whole"
        assert config["meta.inner_lr"] == row["config"]["meta.inner_lr"]
        assert config["meta"]["inner_lr"] == row["config"]["meta.inner_lr"]
        assert steps == list(range(row["outer_step"] + 1))
        for key in ("wall_seconds", "worker_seconds", "flops", "cost"):
            assert summary[key] == pytest.approx(row[key])
        if row["status"] == "finished":
            assert summary["accuracy"] == pytest.approx(row["accuracy"])
            assert summary["accuracy_ci95"] == pytest.approx(row["accuracy_ci95"])
        else:
            assert summary["diverged"] == row["reason"]


def test_wandb_has_the_sweep_as_a_run_and_the_winner_is_tagged(whole: Path):
    rows, summary = read_trials(whole), json.loads((whole / "summary.json").read_text())
    report = json.loads((whole / "evaluation.json").read_text())
    own = {each["use"]: each for each in report["methods"] if each["network"] == f"trial {summary['best_trial']}"}
    found = offline_records(whole)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.job_type, run.run_group) == ("sweep", "whole")
    values = summary_of(found)
    assert values["best_trial"] == summary["best_trial"]
    assert values["evaluation/prototype/accuracy"] == pytest.approx(own["prototype"]["accuracy"])
    table = json.loads(read_media(whole, values["sweep/trials"]))
    assert [row[table["columns"].index("trial_id")] for row in table["data"]] == [row["trial_id"] for row in rows]
    logged = list(wandb_rows(iter(found)))
    trials = [record for row in rows for record in offline_records(whole / "trials" / row["trial_id"])]
    there = {key for row in wandb_rows(iter([*found, *trials])) for key in row}
    there |= set(values) | set(summary_of(trials)) | set(rows[0]["config"])
    _, _, sections = describe(whole)
    (first, *_) = panels(sections, there)
    assert first == ("The sweep", sections["The sweep"]), "no panel lacks anything"
    assert logged[-1]["sweep/best_accuracy"] == max(row.get("accuracy", 0.0) for row in rows)
    assert logged[-1]["sweep/worker_seconds"] == pytest.approx(summary["worker_seconds"])
    for row in rows:
        trial = offline_records(whole / "trials" / row["trial_id"])
        tags = {tag for record in trial if record.HasField("run") for tag in record.run.tags}
        assert ("winner" in tags) == (row["trial_id"] == summary["best_trial"])
        assert "bert" in tags
        if row["trial_id"] == summary["best_trial"]:
            accuracy = summary_of(trial)["evaluation/prototype/accuracy"]
            assert accuracy == pytest.approx(own["prototype"]["accuracy"])


def test_no_key_and_no_large_file_is_left(whole: Path):
    """Cases E2, E4 and B3."""
    total = 0
    for file in whole.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            total += len(content)
            assert KEY.encode() not in content, file
    assert total < 60_000_000
    assert not list(whole.glob("trials/*/wandb/**/*artifact*/*"))


def test_a_sweep_is_not_overwritten_and_not_changed_by_a_resume(whole: Path, folder: Path):
    before = (whole / "trials.jsonl").read_bytes()
    done = distmeta_here("sweep", "--config", "sweep.yaml", "--run-dir", "whole", cwd=folder)
    assert (done.returncode, "--resume" in done.stderr) == (2, True)
    arguments = ["--config", "sweep.yaml", "--run-dir", "whole", "--resume", "--set", "meta.inner_steps=4"]
    done = distmeta_here("sweep", *arguments, cwd=folder)
    assert done.returncode == 2
    assert "meta.inner_steps: 3 before, 4 now" in done.stderr
    assert (whole / "trials.jsonl").read_bytes() == before


@pytest.mark.slow
def test_killed_workers_and_a_killed_driver_change_nothing_in_the_table(whole: Path, folder: Path):
    """Case B1 for a sweep: finished trials stay, running ones go on, in W&B too."""
    sweep = Running(folder, "sweep.yaml", "killed", verb="sweep")
    processes = sweep.wait_for_step(EVERY + 5, within="trials/0001")
    workers = [process for process in processes if "TrainWorker" in " ".join(process.cmdline())]
    workers[0].kill()
    processes = sweep.wait_for_step(2 * EVERY + 5, within="trials/0001")
    sweep.process.kill()
    sweep.wait()
    assert_gone(processes)
    assert any(row["status"] == "running" for row in read_trials(sweep.run))

    resumed = Running(folder, "sweep.yaml", "killed", "--resume", verb="sweep")
    assert resumed.wait() == 0, resumed.log.read_text()[-4000:]
    same = ("trial_id", "config", "status", "reason", "accuracy", "accuracy_ci95", "outer_step", "best_step", "flops")
    tables = [[{key: row.get(key) for key in same} for row in read_trials(run)] for run in (sweep.run, whole)]
    assert tables[0] == tables[1]
    lost = [run for run in (sweep.run / "trials").iterdir() if (run / "events.jsonl").exists()]
    assert any("was lost" in (run / "events.jsonl").read_text() for run in lost)
    for row in read_trials(whole)[:2]:
        assert len(read_rows(sweep.run / "trials" / row["trial_id"])) == STEPS
        _, _, _, steps = recorded(sweep.run / "trials" / row["trial_id"])
        assert steps == list(range(1, STEPS + 1))


def test_what_is_taken_over_is_the_network_and_not_its_cost(whole: Path, tmp_path: Path):
    good, poor = (RunDirectory(whole / "trials" / name) for name in ("0000", "0001"))
    config = load_config(poor.config, check=False)
    copy_newest(load_config(good.config, check=False), good, "0000", STEPS, tmp_path / "copy")
    run = RunDirectory(tmp_path / "0001")
    run.path.mkdir()
    write_trial(run, {"trial_id": "0001", "config": {}, "status": "running"})
    take_over(config, run, "0001", tmp_path / "copy")

    def newest(folder: Path) -> tuple[Any, dict[str, Any], Any]:
        return read_checkpoint(max(folder.glob("checkpoints/checkpoint_0*")))

    state, progress, extra = newest(run.path)
    donor, donor_progress, donor_extra = newest(good.path)
    for group, donor_group in (
        (state.weights, donor.weights),
        (state.exp_avg_sq, donor.exp_avg_sq),
        (extra["best"], donor_extra["best"]),
    ):
        assert group.keys() == donor_group.keys()
        assert all(torch.equal(group[name], donor_group[name]) for name in group)
    assert (progress["outer_step"], progress["best_score"]) == (STEPS, donor_progress["best_score"])
    assert not progress.keys() & set(OWN)

    # A second time, as after an interruption, nothing is thrown away.
    before = sorted(run.path.glob("checkpoints/*"))
    take_over(config, run, "0001", tmp_path / "copy")
    assert sorted(run.path.glob("checkpoints/*")) == before


@pytest.mark.slow
def test_population_based_training_gives_a_poor_trial_a_better_one_s_weights(folder: Path):
    """The second trial hardly learns in its inner loop until it takes over the first one's network and rates."""
    space = {
        "meta.inner_lr": {"type": "uniform", "low": 1e-9, "high": 0.2},
        "meta.outer_lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
    }
    pbt = {"scheduler": "pbt", "num_trials": 2, "grace_steps": EVERY, "seed": 1, "space": space}
    write_config(folder, "pbt.yaml", pbt, train={"outer_steps": 100})
    done = distmeta("sweep", "--config", "pbt.yaml", "--run-dir", "pbt", cwd=folder)
    said = [
        (run.name, json.loads(line)["text"])
        for run in sorted((folder / "pbt" / "trials").iterdir())
        if (run / "events.jsonl").exists()
        for line in (run / "events.jsonl").read_text().splitlines()
    ]
    takeover = re.compile(r"took over trial (\d+) as it was at outer step (\d+)")
    found = [(name, match) for name, text in said if (match := takeover.fullmatch(text))]
    assert found, done.stderr
    name, match = found[0]
    donor, step = match[1], int(match[2])
    assert donor != name
    # Right after, the two trials are one network: the first rows that the poor one trains itself start from there.
    assert step % EVERY == 0
    rows = {row["outer_step"]: row for row in read_rows(folder / "pbt" / "trials" / name)}
    assert max(rows) == 100
    assert all(row["status"] == "finished" for row in read_trials(folder / "pbt"))


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "workers"), [(8, 1), (3, 2)])
def test_trials_share_two_cores_without_waiting_for_each_other(trials: int, workers: int, folder: Path):
    """Case B4."""
    name = f"shared-{workers}"
    space = {"meta.inner_lr": {"type": "loguniform", "low": 0.01, "high": 0.3}}
    options = {"num_trials": trials, "scheduler": "asha", "grace_steps": EVERY, "space": space}
    write_config(folder, f"{name}.yaml", options, train={"num_workers": workers})
    distmeta("sweep", "--config", f"{name}.yaml", "--run-dir", name, cwd=folder, timeout=600)
    rows = read_trials(folder / name)
    assert len(rows) == trials
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    assert rows[0]["status"] == "finished"


@pytest.mark.slow
def test_a_signal_leaves_a_sweep_that_goes_on(whole: Path, folder: Path):
    sweep = Running(folder, "sweep.yaml", "stopped", verb="sweep")
    processes = sweep.wait_for_step(5, within="trials/0001")
    sweep.signal_group(signal.SIGTERM)
    since = time.monotonic()
    assert sweep.wait() == 130, sweep.log.read_text()[-4000:]
    assert time.monotonic() - since < 30
    assert_gone(processes)
    assert "interrupted" in {row["status"] for row in read_trials(sweep.run)}
    resumed = Running(folder, "sweep.yaml", "stopped", "--resume", verb="sweep")
    assert resumed.wait() == 0, resumed.log.read_text()[-4000:]
    same = ("trial_id", "status", "accuracy", "outer_step", "flops")
    tables = [[{key: row.get(key) for key in same} for row in read_trials(run)] for run in (sweep.run, whole)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_trial_whose_own_process_is_lost_goes_on(folder: Path, whole: Path):
    sweep = Running(folder, "sweep.yaml", "lost-trial", verb="sweep")
    processes = sweep.wait_for_step(EVERY + 5, within="trials/0001")
    trials = [process for process in processes if is_trial(process)]
    trials[0].kill()
    assert sweep.wait() == 0, sweep.log.read_text()[-4000:]
    same = ("trial_id", "status", "accuracy", "outer_step", "flops")
    tables = [[{key: row.get(key) for key in same} for row in read_trials(run)] for run in (sweep.run, whole)]
    assert tables[0] == tables[1]


def is_trial(process: psutil.Process) -> bool:
    try:
        return "ray::ResourceTrainable" in " ".join(process.cmdline()) or "ray::Trial" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_optuna_seeks_accuracy_against_cost(folder: Path):
    space = {
        "meta.inner_lr": {"type": "loguniform", "low": 0.01, "high": 0.3},
        "meta.inner_steps": {"type": "randint", "low": 1, "high": 3},
    }
    options = {
        "search": "optuna",
        "metric": ["accuracy", "flops"],
        "mode": ["max", "min"],
        "num_trials": 4,
        "space": space,
    }
    write_config(folder, "optuna.yaml", options | {"scheduler": "none"}, train={"outer_steps": EVERY})
    distmeta("sweep", "--config", "optuna.yaml", "--run-dir", "optuna", cwd=folder)
    rows = read_trials(folder / "optuna")
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert len({row["config"]["meta.inner_lr"] for row in rows}) == 4
