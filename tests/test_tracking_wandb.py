"""Weights & Biases: real runs by the real client, read back from the .wandb files that `wandb sync` uploads."""

import json
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from distmeta.config import Config
from distmeta.errors import UserError
from distmeta.rundir import RunDirectory
from distmeta.tracking.config import TrackingConfig
from distmeta.tracking.wandb_environment import directory, environment, names, prepare_environment, tags_of_user
from distmeta.tracking.wandb_file import records, rows
from distmeta.tracking.wandb_place import upload_lines, wandb_lines, write_state
from distmeta.tracking.wandb_run import best_and_last, mode_of_user, without_passwords
from distmeta.train import launch
from tests.wandb_files import logged_steps, offline_records, summary_of
from tests.wandb_server import server

API_KEY = "9f3c" * 10
PREAMBLE = """
import logging, os, signal, sys, time
from pathlib import Path
from distmeta.tracking import wandb_run
from distmeta.tracking.config import TrackingConfig
from distmeta.tracking.wandb_run import WandbRun

logging.basicConfig()
run_dir = Path(sys.argv[1])

def start(**config):
    settings = {"meta": {"inner_lr": 0.01}, "train": {"storage": "s3://KEYID:NOTASECRET88@bucket/runs"}}
    return WandbRun(run_dir, TrackingConfig(**config), settings)

def rows(first, last):
    return [{"outer_step": n, "query_loss": 1 / n, "support_loss": [2.0, 1.0], "not_finite": ["grad_norm"]}
            for n in range(first, last + 1)]
"""


def script(tmp_path: Path, code: str, *arguments: str, cwd: Path | None = None, **variables: str) -> tuple[Any, Path]:
    """Starts a process that uses WandbRun in a run directory; its home is an empty folder and its key ours alone."""
    run_dir, home = tmp_path / "run", tmp_path / "home"
    run_dir.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(Path(__file__).resolve().parents[1]), **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), str(run_dir), *arguments],
        env=environment,
        cwd=cwd or tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, run_dir


def output_of(process: Any, timeout: float = 120) -> str:
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return output


def run_script(tmp_path: Path, code: str, *arguments: str, **variables: Any) -> tuple[str, Path]:
    process, run_dir = script(tmp_path, code, *arguments, **variables)
    output = output_of(process)
    assert process.returncode == 0, output
    return output, run_dir


def test_an_offline_run_holds_configuration_history_and_summary(tmp_path: Path) -> None:
    code = """
    run = start(project="shots", group="sweep-1", wandb="auto")
    run.log(rows(1, 2))
    run.log(rows(3, 3))
    run.summary({"cost": 1.5, "best": {"accuracy": 0.75}})
    run.finish()
    print("folder", run.where)
    """
    output, run_dir = run_script(tmp_path, code)
    found = offline_records(run_dir)
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.project, run.run_group, run.display_name) == ("shots", "sweep-1", "run")
    assert run.run_id == json.loads((run_dir / "wandb.json").read_text())["run_id"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["meta"] == {"inner_lr": 0.01}
    assert config["train"] == {"storage": "s3://bucket/runs"}
    logged = list(rows(iter(found)))
    assert [(row["outer_step"], row["query_loss"]) for row in logged] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert logged[0]["support_loss/2"] == 1.0
    assert "not_finite" not in logged[0]
    metrics = [record.metric for record in found if record.HasField("metric")]
    assert ("*", "outer_step") in {(metric.glob_name, metric.step_metric) for metric in metrics}
    summary = summary_of(found)
    assert summary["cost"] == 1.5
    assert summary["best"] == {"accuracy": 0.75}
    (folder,) = run_dir.glob("wandb/offline-run-*")
    assert f"folder {folder}" in output


def test_killed_between_two_logs_and_resumed_each_step_is_logged_once_in_one_run(tmp_path: Path) -> None:
    killed = """
    run = start()
    run.log(rows(1, 5))
    time.sleep(wandb_run.FLUSH_INTERVAL + 2)
    print("logged", flush=True)
    time.sleep(60)
    """
    process, run_dir = script(tmp_path, killed)
    assert process.stdout.readline() == "logged\n"
    (core,) = [child for child in psutil.Process(process.pid).children() if "wandb-core" in child.name()]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    core.wait(timeout=30)  # W&B's own process goes with its parent
    run_script(tmp_path, "run = start(); run.log(rows(1, 5)); run.log(rows(4, 8)); run.log(rows(9, 12)); run.finish()")
    found = offline_records(run_dir)
    assert logged_steps(found) == list(range(1, 13))
    assert len({record.run.run_id for record in found if record.HasField("run")}) == 1


def test_the_best_of_a_metric_is_that_of_all_parts() -> None:
    """W&B itself has that of the last part alone."""
    rows = [{"outer_step": 0, "validation/prototype": 0.1}, {"outer_step": 1, "training/query_loss": 2.0}]
    rows += [{"outer_step": 2, "training/query_loss": 1.0, "validation/prototype": 0.9}]
    rows += [{"outer_step": 3, "training/query_loss": 1.5, "validation/prototype": 0.4}]
    expected = {"training/query_loss": {"min": 1.0, "last": 1.5}, "validation/prototype": {"max": 0.9, "last": 0.4}}
    assert best_and_last(rows) == expected


def test_a_row_is_on_disk_soon_though_nothing_comes_after_it(tmp_path: Path) -> None:
    code = """
    run = start()
    run.log(rows(1, 1))
    print(time.time(), flush=True)
    time.sleep(60)
    """
    process, run_dir = script(tmp_path, code)
    try:
        logged = float(process.stdout.readline())
        until = time.monotonic() + 20
        while not (steps := logged_steps(offline_records(run_dir))) and time.monotonic() < until:
            time.sleep(0.05)
        print(f"{time.time() - logged:.1f} s from the step to the disk")
    finally:
        process.kill()
    assert steps == [1]


def test_what_is_added_later_is_in_the_same_run_and_makes_none(tmp_path: Path) -> None:
    """Where no run is there, nothing is recorded."""
    code = """
    from distmeta.tracking.wandb_run import WandbRun
    run = WandbRun(run_dir, TrackingConfig(), None, tags=["winner"])
    run.summary({"found": 0.5})
    run.finish()
    print("recorded", run.where or "nowhere")
    """
    output, run_dir = run_script(tmp_path, code)
    assert "recorded nowhere" in output
    assert not (run_dir / "wandb").exists()
    run_script(tmp_path, "run = start(tags=['mine']); run.log(rows(1, 2)); run.summary({'cost': 1.5}); run.finish()")
    time.sleep(1)  # W&B names its folders by the second
    run_script(tmp_path, code)
    found = offline_records(run_dir)
    runs = [record.run for record in found if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1
    assert list(runs[-1].tags) == ["mine", "winner"]
    assert (logged_steps(found), summary_of(found)["found"], summary_of(found)["cost"]) == ([1, 2], 0.5, 1.5)


def test_what_a_crash_took_from_w_b_is_logged_again(tmp_path: Path) -> None:
    """Rows that W&B was given in the second before its process died are in no file of it."""
    crash = """
    import psutil
    wandb_run.FLUSH_INTERVAL = 3600.0
    run = start()
    run.log(rows(1, 5))
    time.sleep(1)
    for child in psutil.Process().children():
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    process, run_dir = script(tmp_path, crash)
    output_of(process)
    assert process.returncode == -signal.SIGKILL
    assert logged_steps(offline_records(run_dir)) == []
    run_script(tmp_path, "run = start(); run.log(rows(1, 8)); run.finish()")
    assert logged_steps(offline_records(run_dir)) == list(range(1, 9))


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_file_that_was_not_written_to_its_end_is_gone_on_from(tmp_path: Path, cut: int) -> None:
    _, run_dir = run_script(tmp_path, "run = start(); run.log(rows(1, 300)); run.finish()")
    (run_file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    size = run_file.stat().st_size
    os.truncate(run_file, size // 2 - cut)
    kept = logged_steps(offline_records(run_dir))
    assert 100 < len(kept) < 200
    time.sleep(1)  # W&B names its folders by the second
    run_script(tmp_path, "run = start(); run.log(rows(1, 310)); run.finish()")
    assert logged_steps(offline_records(run_dir)) == list(range(1, 311))


def test_no_key_command_line_remote_or_host_is_recorded(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=me", "-c", "user.email=me@example.invalid"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://me:NOTASECRET77@example.invalid/x.git"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    code = """
    os.environ["MY_TOKEN"] = "NOTASECRET66"
    run = start(wandb="offline")
    print("a line on NOTASECRET55's console")
    run.log(rows(1, 2))
    run.finish()
    """
    output, run_dir = run_script(tmp_path, code, "--token", "NOTASECRET99", cwd=repository, WANDB_API_KEY=API_KEY)
    written = [path for folder in (run_dir, tmp_path / "home") for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    content = b"".join(path.read_bytes() for path in written)
    for secret in ("NOTASECRET55", "NOTASECRET66", "NOTASECRET77", "NOTASECRET88", "NOTASECRET99", API_KEY):
        assert secret.encode() not in content, secret
    assert API_KEY not in output
    assert "example.invalid" not in content.decode(errors="replace")
    found = offline_records(run_dir)
    assert all(record.run.host == "" for record in found)
    assert not any(record.HasField(kind) for record in found for kind in ("output", "output_raw", "stats", "files"))
    recorded = b"".join(path.read_bytes() for path in run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert str(tmp_path).encode() not in recorded
    assert sys.executable.encode() not in recorded
    if len(platform.node()) > 4:  # a shorter one stands in any file by chance
        assert platform.node().encode() not in recorded
    (folder,) = run_dir.glob("wandb/offline-run-*")
    assert list((folder / "files").iterdir()) == []


def test_disabled_leaves_no_trace(tmp_path: Path) -> None:
    code = """
    run = start(wandb="disabled")
    run.log(rows(1, 2)); run.summary({"cost": 1}); run.finish()
    assert "wandb" not in sys.modules
    """
    output, run_dir = run_script(tmp_path, code, WANDB_API_KEY=API_KEY)
    assert output == ""
    assert list(run_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("configured", "variable", "key", "mode"),
    [
        ("auto", None, None, "offline"),
        ("auto", None, API_KEY, "online"),
        ("auto", "offline", API_KEY, "offline"),
        ("auto", "disabled", API_KEY, "disabled"),
        ("auto", "online", None, "online"),
        ("auto", "", API_KEY, "online"),
        ("auto", "", None, "offline"),
        ("auto", "Offline ", API_KEY, "offline"),
        ("online", "", None, "online"),
        ("online", "offline", API_KEY, "offline"),
        ("online", "dryrun", API_KEY, "offline"),
        ("offline", "online", API_KEY, "offline"),
        ("disabled", "online", API_KEY, "disabled"),
        ("offline", None, API_KEY, "offline"),
    ],
)
def test_the_more_private_wish_wins(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    configured: Any,
    variable: str | None,
    key: str | None,
    mode: str,
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in (("WANDB_MODE", variable), ("WANDB_API_KEY", key)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert mode_of_user(TrackingConfig(wandb=configured)) == mode


@pytest.mark.parametrize(
    ("value", "mode"), [("true", "disabled"), ("1", "disabled"), ("false", "offline"), ("", "offline")]
)
def test_wandb_disabled_is_heard(monkeypatch: pytest.MonkeyPatch, value: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DISABLED", value)
    assert mode_of_user(TrackingConfig(wandb="online")) == mode


def test_a_mode_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "off")
    with pytest.raises(UserError, match="WANDB_MODE: off is none of online, run, shared, offline"):
        mode_of_user(TrackingConfig())


def test_the_environment_counts_where_the_configuration_is_silent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_dir = tmp_path / "0003"
    run_dir.mkdir()
    unset = {"project": "distmeta", "entity": None, "group": None, "name": "0003", "job_type": "pretrain"}
    for name in ("PROJECT", "ENTITY", "RUN_GROUP", "NAME", "DIR", "JOB_TYPE", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", "")
    assert (names(TrackingConfig(), run_dir), directory(run_dir)) == (unset, run_dir)
    assert tags_of_user(TrackingConfig()) == []
    for name in ("PROJECT", "ENTITY", "RUN_GROUP", "NAME"):
        monkeypatch.setenv(f"WANDB_{name}", f"my-{name.lower()}")
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_TAGS", "a, b")
    said = {"project": "my-project", "entity": "my-entity", "group": "my-run_group", "name": "my-name"}
    said["job_type"] = "pretrain"
    assert (names(TrackingConfig(), run_dir), directory(run_dir)) == (said, tmp_path / "elsewhere")
    chosen = {"project": "a", "entity": "b", "group": "c", "name": "d"}
    assert names(TrackingConfig(**chosen), run_dir) == chosen | {"job_type": "pretrain"}
    assert (tags_of_user(TrackingConfig()), tags_of_user(TrackingConfig(tags=["c"]))) == (["a", "b"], ["c"])
    (run_dir / "trial.json").touch()
    trial = names(TrackingConfig(), run_dir)
    assert (trial["name"], trial["job_type"]) == ("my-name-0003", "trial")


def test_what_the_command_is_told_holds_for_its_workers_and_a_key_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_PROJECT", "the command's")
    monkeypatch.setenv("WANDB_MODE", "")
    passed_on = environment()
    assert passed_on == {"WANDB_PROJECT": "the command's"}
    monkeypatch.setenv("WANDB_PROJECT", "the node's")
    monkeypatch.setenv("WANDB_NOTES", "the node's")
    prepare_environment(passed_on)
    assert environment() == {"WANDB_PROJECT": "the command's", "WANDB_NOTES": "the node's"}
    assert "WANDB_MODE" not in os.environ


def test_a_run_hands_it_to_its_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def trainer(*_: Any, train_loop_config: dict[str, Any], **options: Any) -> None:
        given.append(train_loop_config)
        raise InterruptedError

    given: list[dict[str, Any]] = []
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setattr(launch, "workers_of", lambda config: ({"CPU": 1.0}, 1))
    monkeypatch.setattr(launch, "_Trainer", trainer)
    with pytest.raises(InterruptedError):
        launch.TrainingRun(Config(), RunDirectory(tmp_path))
    assert given[0]["wandb"]["WANDB_PROJECT"] == "mine"
    assert API_KEY not in str(given)


def test_all_that_the_environment_says_is_in_the_run_and_its_files_are_where_it_says(tmp_path: Path) -> None:
    variables = {"WANDB_MODE": "", "WANDB_PROJECT": "shots", "WANDB_ENTITY": "team", "WANDB_NAME": "mine"}
    variables |= {"WANDB_RUN_GROUP": "some", "WANDB_TAGS": "a,b", "WANDB_NOTES": "a note"}
    variables["WANDB_DIR"] = str(tmp_path / "else where")
    code = "run = start(); run.log(rows(1, 3)); run.finish()"
    _, run_dir = run_script(tmp_path, code, **variables)
    time.sleep(1)  # W&B names its folders by the second
    run_script(tmp_path, code.replace("3", "5"), **variables)
    assert not (run_dir / "wandb").exists()
    found = offline_records(tmp_path / "else where")
    assert logged_steps(found) == [1, 2, 3, 4, 5]
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.project, run.entity, run.display_name, run.run_group) == ("shots", "team", "mine", "some")
    assert (list(run.tags), run.notes) == (["a", "b"], "a note")
    folders = sorted((tmp_path / "else where" / "wandb").glob("offline-run-*"))
    line, shown = wandb_lines([run_dir])
    assert shown.endswith(f"wandb leet '{folders[0].parent}'")
    assert line.endswith(f"this uploads it: wandb sync '{folders[0]}' '{folders[1]}'")
    for folder in folders:
        (file,) = folder.glob("*.wandb")
        file.with_suffix(".wandb.synced").touch()
    assert wandb_lines([run_dir]) == []


def test_of_a_sweep_it_is_said_how_many_runs_are_where(tmp_path: Path) -> None:
    runs = [tmp_path / "trials" / f"000{number}" for number in range(3)]
    for number, run in enumerate(runs):
        (run / "wandb" / f"offline-run-1-id{number}").mkdir(parents=True)
        write_state(run, {"run_id": f"id{number}", "url": None})
    assert wandb_lines(runs) == [
        f"W&B: recorded offline in 3 folders; this uploads it: wandb sync {tmp_path}/trials/*/wandb/offline-run-*"
    ]
    for number, run in enumerate(runs):
        (run / "wandb" / f"offline-run-1-id{number}").rmdir()
        write_state(run, {"run_id": f"id{number}", "url": f"https://wandb.invalid/me/shots/runs/id{number}"})
    assert wandb_lines(runs) == ["W&B: 3 runs at https://wandb.invalid/me/shots"]
    assert wandb_lines([tmp_path]) == []


def test_a_netrc_login_is_enough_and_another_host_s_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    netrc.write_text(f"machine example.invalid\n  login user\n  password {API_KEY}\n")
    assert mode_of_user(TrackingConfig()) == "offline"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {API_KEY}\n")
    assert mode_of_user(TrackingConfig()) == "online"


TRAIN = """
started = time.perf_counter()
run = start(wandb=sys.argv[2])
print("start took", round(time.perf_counter() - started, 1))
run.log(rows(1, 3))
run.finish()
print("went on")
"""


@pytest.mark.parametrize("key", [None, "tooshort"])
def test_online_without_a_login_asks_nothing_and_records_offline(tmp_path: Path, key: str | None) -> None:
    variables = {"WANDB_API_KEY": key} if key else {}
    output, run_dir = run_script(tmp_path, TRAIN, "online", **variables)
    assert "went on" in output
    assert output.count("recording offline") == 1
    assert logged_steps(offline_records(run_dir)) == [1, 2, 3]


def test_a_server_that_refuses_costs_seconds_and_the_run_is_recorded_offline(tmp_path: Path) -> None:
    variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    started = time.monotonic()
    output, run_dir = run_script(tmp_path, TRAIN, "auto", **variables)
    assert time.monotonic() - started < 60
    assert "went on" in output
    assert output.count("recording offline") == 1
    assert API_KEY not in output
    assert logged_steps(offline_records(run_dir)) == [1, 2, 3]


def test_a_server_that_never_answers_costs_its_timeout(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(50)
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}"}
        started = time.monotonic()
        output, run_dir = run_script(tmp_path, "wandb_run.INIT_TIMEOUT = 3" + TRAIN, "auto", **variables)
    # 25 s more than that if W&B's error reports were on.
    assert time.monotonic() - started < 20
    assert "went on" in output
    assert logged_steps(offline_records(run_dir)) == [1, 2, 3]


def test_online_each_step_is_sent_once_and_nothing_but_configuration_and_metrics(tmp_path: Path) -> None:
    with server() as running:
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        code = "run = start(); run.log(rows(1, 5)); run.finish(); print(run.where)"
        output, run_dir = run_script(tmp_path, code, "NOTASECRET99", **variables)
        address = f"http://127.0.0.1:{running.server_port}/me/distmeta/runs/"
        assert address in output
        (line,) = wandb_lines([run_dir])
        assert line.startswith(f"W&B: {address}")
        run_script(tmp_path, "run = start(); run.log(rows(1, 8)); run.finish()", **variables)
        assert [row["outer_step"] for row in running.history] == list(range(1, 9))
        # What the server did not get counts as not logged.
        del running.sent[:]
        run_script(tmp_path, "run = start(); run.log(rows(1, 8)); run.finish()", **variables)
        assert [row["outer_step"] for row in running.history] == list(range(1, 9))
    sent = "".join(running.sent)
    for unwanted in ("NOTASECRET", API_KEY, str(tmp_path), sys.executable, "requirements.txt", "output.log"):
        assert unwanted not in sent, unwanted


RECORDS = """
from distmeta.rundir import RunDirectory
from distmeta.tracking.wandb_results import record_evaluation
wandb_run.FINISH_TIMEOUT = 8
run = start()
run.log(rows(1, 2))
run.finish()
method = {"name": "meta-pretrained prototype", "network": "meta-pretrained", "use": "prototype", "accuracy": 0.625}
report = {"methods": [method | dict.fromkeys(("precision", "recall", "f1", "adapt_seconds"), 0.5)]}
report["verdict"] = {"text": "Yes: it did.", "answer": "yes", "against": "tf-idf logistic-regression", "gain": 0.25}
begin = time.perf_counter()
where = record_evaluation(RunDirectory(run_dir), TrackingConfig(), {"": report})
print("recorded", where, "seconds", time.perf_counter() - begin)
"""


def test_online_an_evaluation_arrives_as_figures_verdict_and_table(tmp_path: Path) -> None:
    with server() as running:
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        output, _ = run_script(tmp_path, RECORDS, **variables)
        assert f"recorded http://127.0.0.1:{running.server_port}/me/distmeta/runs/" in output
        sent = [json.loads(body).get("files") or {} for body in running.sent]
        summaries = [line for files in sent for line in files.get("wandb-summary.json", {}).get("content", [])]
        summary = json.loads(summaries[-1])
        assert (summary["evaluation/accuracy"], summary["evaluation/verdict"]) == (0.625, "Yes: it did.")
        assert (summary["evaluation/prototype/f1"], summary["evaluation/gain_over_rival"]) == (0.5, 0.25)
        (table,) = {content for path, content in running.uploaded.items() if path.endswith(".table.json")}
        assert json.loads(table)["data"][0][:3] == ["meta-pretrained prototype", "meta-pretrained", "prototype"]
        assert [row["outer_step"] for row in running.history] == [1, 2]


@pytest.mark.parametrize("uploads", ["refused", "unanswered"])
def test_a_server_without_room_for_files_costs_seconds_and_the_figures_arrive(tmp_path: Path, uploads: Any) -> None:
    with server() as running:
        running.uploads = uploads
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        output, _ = run_script(tmp_path, RECORDS, **variables)
        assert float(output.partition("seconds ")[2].split()[0]) < 30
        assert [row["outer_step"] for row in running.history] == [1, 2]
        assert any("evaluation/verdict" in body for body in running.sent)


def test_a_server_that_falls_silent_holds_up_neither_training_nor_the_end(tmp_path: Path) -> None:
    """What it has not taken is sent later by the line that is told."""
    code = """
    wandb_run.FINISH_TIMEOUT = 3
    run = start()
    print("started", flush=True)
    time.sleep(1)
    begin = time.perf_counter()
    run.log(rows(1, 3))
    logged = time.perf_counter()
    run.finish()
    print("seconds", logged - begin, time.perf_counter() - logged)
    """
    with server() as running:
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        process, run_dir = script(tmp_path, code, cwd=tmp_path, **variables)
        while "started" not in process.stdout.readline():
            assert process.poll() is None
        running.silent.set()
        begin = time.monotonic()
        output = output_of(process)
        assert process.returncode == 0, output
        assert time.monotonic() - begin < 25
        to_log, to_finish = (float(word) for word in output.partition("seconds ")[2].split()[:2])
        assert to_log < 2
        assert to_finish < 15
        (run_file,) = run_dir.glob("wandb/run-*/*.wandb")
        assert logged_steps(list(records(run_file))) == [1, 2, 3]
        running.silent.clear()
        assert running.history == []
        send_the_rest(run_dir, variables)
        assert [row["outer_step"] for row in running.history] == [1, 2, 3]
    assert upload_lines([run_dir]) == []


def test_what_a_server_refuses_is_told_with_the_line_that_sends_it(tmp_path: Path) -> None:
    with server() as running:
        running.refuses_rows = True
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        code = "run = start(); run.log(rows(1, 3)); time.sleep(1); run.log(rows(4, 5)); run.finish()"
        _, run_dir = run_script(tmp_path, code, **variables)
        assert running.history == []
        running.refuses_rows = False
        send_the_rest(run_dir, variables)
        assert [row["outer_step"] for row in running.history] == [1, 2, 3, 4, 5]


def test_what_a_server_has_not_taken_is_sent_by_a_run_that_goes_on(tmp_path: Path) -> None:
    """And is to be sent still where that one is offline."""
    with server() as running:
        running.refuses_rows = True
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        _, run_dir = run_script(tmp_path, "run = start(); run.log(rows(1, 3)); run.finish()", **variables)
        time.sleep(1)  # W&B names its folders by the second
        run_script(tmp_path, "run = start(wandb='offline'); run.log(rows(1, 5)); run.finish()", **variables)
        line, _ = upload_lines([run_dir])
        first, second = (part for kind in ("run-*", "offline-run-*") for part in run_dir.glob(f"wandb/{kind}"))
        assert line.endswith(f"wandb sync --include-online {first} {second}")
        second.rename(tmp_path / "elsewhere")
        running.refuses_rows = False
        run_script(tmp_path, "run = start(); run.log(rows(1, 8)); run.finish()", **variables)
        assert [row["outer_step"] for row in running.history] == list(range(1, 9))
    assert upload_lines([run_dir]) == []


def send_the_rest(run_dir: Path, variables: dict[str, str]) -> None:
    """Does what the line says that tells of it."""
    line, _ = upload_lines([run_dir])
    assert line.startswith(f"W&B: what the server has not taken is in {run_dir}/wandb; this uploads it: wandb sync ")
    command = [sys.executable, "-m", *shlex.split(line.partition("uploads it: ")[2])]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(run_dir.parent / "home"), **variables}
    subprocess.run(command, env=environment, cwd=run_dir.parent, check=True, timeout=120)


def test_no_step_waits_for_a_server_that_is_slow(tmp_path: Path) -> None:
    """Steps are made while it has yet to answer, and in the end it has all of them."""
    code = """
    wandb_run.SEND_INTERVAL = 1
    run = start()
    made = []
    for step in range(1, 31):
        run.log(rows(step, step))
        made.append(time.time())
        time.sleep(0.1)
    run.finish()
    print("made", *made)
    """
    with server() as running:
        running.delay = 2.0
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        output, run_dir = run_script(tmp_path, code, **variables)
        made = [float(word) for word in output.partition("made ")[2].split()]
        meanwhile = [sum(came < step < answered for step in made) for came, answered in running.waits]
        assert [row["outer_step"] for row in running.history] == list(range(1, 31))
    assert max(meanwhile) >= 5
    assert upload_lines([run_dir]) == []


def test_rows_are_sent_while_the_run_goes_on(tmp_path: Path) -> None:
    """W&B by itself would send them after 15 seconds."""
    code = """
    wandb_run.SEND_INTERVAL = 1
    run = start()
    run.log(rows(1, 1))
    print("logged", flush=True)
    time.sleep(60)
    """
    with server() as running:
        variables = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{running.server_port}"}
        process, _ = script(tmp_path, code, **variables)
        while "logged" not in process.stdout.readline():
            assert process.poll() is None
        deadline = time.monotonic() + 10
        while not running.history and time.monotonic() < deadline:
            time.sleep(0.05)
        sent = [row["outer_step"] for row in running.history]
        process.kill()
        output_of(process)
    assert sent == [1]


def test_when_wandb_s_own_process_dies_training_goes_on_and_it_is_said_once(tmp_path: Path) -> None:
    code = """
    import psutil
    run = start()
    run.log(rows(1, 3))
    for child in psutil.Process().children():
        child.kill()
        child.wait()
    for step in range(4, 8):
        run.log(rows(step, step))
        time.sleep(0.2)
    run.summary({"cost": 1.0})
    run.finish()
    print("went on")
    """
    output, _ = run_script(tmp_path, code)
    assert "went on" in output
    assert output.count("nothing more is logged there") == 1


def test_a_broken_state_file_or_folder_ends_the_logging_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb.json").write_text("{")
    output, _ = run_script(tmp_path, TRAIN, "offline")
    assert "went on" in output
    assert output.count("nothing more is logged there") == 1


def test_passwords_in_addresses_are_taken_out_at_any_depth() -> None:
    settings = {
        "a": ["s3://key:secret@bucket/x", {"b": "https://me:pw@host/x.git"}],
        "c": 1,
        "d": "mail@host",
        "e": None,
    }
    expected = {"a": ["s3://bucket/x", {"b": "https://host/x.git"}], "c": 1, "d": "mail@host", "e": None}
    assert without_passwords(settings) == expected
