"""Whole runs and sweeps at an address, as on a disk, also where the next attempt has nothing of the one before."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.commands import Running, assert_gone, distmeta, read_rows
from tests.corpora import tiny_config, write_labelled_csv
from tests.s3 import Server, s3_server
from tests.training import is_measured

STEPS = 40


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as server:
        yield server


def below(server: Server, run: str) -> dict[str, bytes]:
    prefix = f"{run}/"
    return {
        key.removeprefix(prefix): server.read("bucket", key) for key in server.keys("bucket") if key.startswith(prefix)
    }


def rows_of(found: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in found["metrics.jsonl"].decode().splitlines()]


class AtAddress(Running):
    """A command under way whose run is at an address."""

    def __init__(self, server: Server, folder: Path, run: str, *arguments: str, verb: str = "pretrain") -> None:
        self.server, self.key = server, run
        super().__init__(folder, "run.yaml", f"s3://bucket/{run}", *arguments, verb=verb)

    def wait_for_rows(self, count: int, file: str = "metrics.jsonl") -> list[psutil.Process]:
        deadline = time.time() + 180
        while time.time() < deadline and self.process.poll() is None:
            if len(below(self.server, self.key).get(file, b"").splitlines()) >= count:
                return psutil.Process(self.process.pid).children(recursive=True)
            time.sleep(0.2)
        raise AssertionError(self.log.read_text()[-4000:])


@pytest.mark.slow
def test_a_run_at_an_address_goes_on_where_nothing_of_it_is_on_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the loss of the node that led it."""
    write_labelled_csv(tmp_path / "texts.csv")
    settings = tiny_config(
        Path("texts.csv"),
        train={"outer_steps": STEPS, "checkpoint_every": 5, "num_workers": 2, "cpus_per_worker": 0.5},
        engine={"zero_stage": 2},
        tracking={"wandb": "offline"},
    )
    settings["train"]["validate_every"] = 10
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    distmeta("pretrain", "--config", "run.yaml", "--run-dir", "plain", cwd=tmp_path)
    for number in range(2):
        monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / f"node-{number}"))
        run = AtAddress(server, tmp_path, "runs/one", *(["--resume"] if number else []))
        processes = run.wait_for_rows(10 + 10 * number)
        run.process.kill()
        run.wait()
        assert_gone(processes)
    monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / "node-2"))
    done = distmeta("pretrain", "--run-dir", "s3://bucket/runs/one", "--resume", cwd=tmp_path)
    assert "gives no sign; waiting up to 60 s" in done.stderr
    assert str(tmp_path / "node-2") not in done.stderr
    found = below(server, "runs/one")
    rows, expected = rows_of(found), read_rows(tmp_path / "plain")
    assert [row["outer_step"] for row in rows] == list(range(1, STEPS + 1))
    for row, other in zip(rows, expected, strict=True):
        for key in filter(lambda key: not is_measured(key), other):
            assert row[key] == pytest.approx(other[key], rel=1e-12, abs=1e-12), key
    on_disk = {
        path.relative_to(tmp_path / "plain").as_posix() for path in (tmp_path / "plain").rglob("*") if path.is_file()
    }
    left_out = ("checkpoints/", "corpus/work/", "wandb/", "events")
    kept = {name for name in on_disk if not name.startswith(left_out) and not Path(name).name.startswith(".")}
    assert kept <= set(found)
    assert found["model/model.safetensors"] == (tmp_path / "plain/model/model.safetensors").read_bytes()
    assert not list((tmp_path / "node-2" / "mirrors").iterdir())
    page = distmeta("report", "s3://bucket/runs/one", cwd=tmp_path).stdout
    assert page == "s3://bucket/runs/one/report.html\n"
    assert b"<html" in below(server, "runs/one")["report.html"]


@pytest.mark.slow
def test_a_sweep_at_an_address_goes_on_as_well(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labelled_csv(tmp_path / "texts.csv")
    settings = tiny_config(
        Path("texts.csv"),
        train={"outer_steps": 20, "checkpoint_every": 5, "cpus_per_worker": 0.5},
        sweep={
            "num_trials": 3,
            "max_concurrent": 2,
            "search": "random",
            "scheduler": "asha",
            "space": {"meta.outer_lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
        },
    )
    settings["train"]["validate_every"] = 5
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    run = AtAddress(server, tmp_path, "sweeps/one", verb="sweep")
    processes = run.wait_for_rows(5, "trials/0000/metrics.jsonl")
    run.process.send_signal(signal.SIGKILL)
    run.wait()
    assert_gone(processes)
    monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / "elsewhere"))
    done = distmeta("sweep", "--run-dir", "s3://bucket/sweeps/one", "--resume", cwd=tmp_path)
    found = below(server, "sweeps/one")
    trials = [json.loads(line) for line in found["trials.jsonl"].decode().splitlines()]
    assert [trial["status"] in ("finished", "stopped") for trial in trials] == [True] * 3, trials
    assert {"best.yaml", "summary.json", "evaluation.json", "report.html"} <= set(found)
    best = json.loads(found["summary.json"])["best_trial"]
    assert f"trials/{best}/model/model.safetensors" in found
    assert str(tmp_path / "elsewhere") not in done.stdout + done.stderr
