"""Who writes in a folder: one process at a time, and none that is no more."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import SoftFileLease

from distmeta import ownership
from distmeta.config import Config, load_config
from distmeta.errors import UserError
from distmeta.ownership import LOCK, OWNER, own
from distmeta.rundir import RunDirectory
from distmeta.sweep.directory import SweepDirectory
from distmeta.sweep.prepare import TrialMaker
from distmeta.sweep.run import check_sweep_storage
from distmeta.train.storage import own_storage, storage_path
from tests.corpora import write_labelled_csv
from tests.runs import quiet, write_config

HOLDER = """
import sys, time
from pathlib import Path
from distmeta import ownership
ownership.HEARTBEAT, ownership.EXPIRY = 0.2, 3.0
if len(sys.argv) > 2:  # as if it were on another machine: of its processes nothing is known
    import filelock._soft._exclusive._marker as marker
    marker.host_name = lambda: sys.argv[2]
    ownership.socket.gethostname = lambda: sys.argv[2]
    ownership.machine_name = lambda: sys.argv[2]
with ownership.own(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, *host: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns a folder until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, str(folder), *host]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.2)
    monkeypatch.setattr(ownership, "EXPIRY", 3.0)


def test_a_second_writer_is_refused_by_name_and_changes_nothing(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
        started = time.monotonic()
        with (
            pytest.raises(UserError, match=rf"{tmp_path}/run: process {process.pid} on .* \(-c .*since 20"),
            own(tmp_path / "run"),
        ):
            pass
        assert time.monotonic() - started < 5
        assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
        # Also in the parts of the whole, a trial of a sweep or the baseline of a run.
        (tmp_path / "run/trials/0003").mkdir(parents=True)
        (tmp_path / "run/trials/0003/trial.json").write_text("{}")
        (tmp_path / "run/config.yaml").write_text("")
        for part in ("trials/0003", "language-model", "multitask"):
            with pytest.raises(UserError, match=f"process {process.pid} "), own(tmp_path / "run" / part):
                pass
        process.communicate("")  # ends in good order
        with own(tmp_path / "run"):
            pass


def test_an_owner_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        process.kill()
        process.wait()
    assert (tmp_path / "run" / LOCK).exists()
    started = time.monotonic()
    with own(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / OWNER).read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("of", ["another start of the process number", "another start of the machine"])
def test_a_process_that_has_the_number_of_the_owner_is_not_taken_for_it(of: str, tmp_path: Path) -> None:
    """As in a container, where the first process is always 1, or after the machine was started again."""
    with holder(tmp_path / "run") as process:
        process.kill()
        process.wait()
        lock = tmp_path / "run" / LOCK
        lines = dict(line.partition("=")[::2] for line in lock.read_text().splitlines())
        lines["pid"] = str(os.getppid())  # which lives
        if of == "another start of the machine":
            start = int(lines["start"])
            lines["start"] = str((start ^ (1 << 80)) if start >> 64 else start + 1)
        lock.write_text("".join(f"{key}={value}\n" if value else f"{key}\n" for key, value in lines.items()))
    with own(tmp_path / "run"):
        pass


def test_an_owner_on_another_machine_is_known_by_its_touch(tmp_path: Path) -> None:
    """Refused while it is heard of; taken for lost, and told so, when it is not."""
    with holder(tmp_path / "run", "node7") as process:
        started = time.monotonic()
        with pytest.raises(UserError, match=rf"process {process.pid} on node7"), own(tmp_path / "run"):
            pass
        assert time.monotonic() - started < 2.5
        process.kill()
        process.wait()
        started = time.monotonic()
        with own(tmp_path / "run"):
            assert 2.5 < time.monotonic() - started < 10


def test_a_lease_that_was_removed_is_taken_up_again_and_one_that_another_has_ends_the_process(tmp_path: Path) -> None:
    with own(tmp_path / "run"):
        (tmp_path / "run" / LOCK).unlink()
        deadline = time.monotonic() + 5
        while not (tmp_path / "run" / LOCK).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / "run" / LOCK).exists()
    with holder(tmp_path / "run") as process:
        (tmp_path / "run" / LOCK).unlink()
        with own(tmp_path / "run"):
            assert process.wait(timeout=10) == 1


def test_a_lease_is_not_taken_up_again_after_it_was_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where both happen at once."""
    taken = threading.Event()
    acquire = SoftFileLease.acquire

    def slowly(self: SoftFileLease, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            taken.set()
            time.sleep(0.5)  # until it was given back
        return acquire(self, *arguments, **options)

    monkeypatch.setattr(SoftFileLease, "acquire", slowly)
    with own(tmp_path / "run"):
        (tmp_path / "run" / "texts.csv").touch()
        (tmp_path / "run" / LOCK).unlink()
        assert taken.wait(10)
    time.sleep(1)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["texts.csv"]


def test_a_folder_that_was_made_for_nothing_is_removed_and_one_that_is_used_is_not(tmp_path: Path) -> None:
    with own(tmp_path / "a/b/run"), own(tmp_path / "a/b/run"):
        assert (tmp_path / "a/b/run" / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with own(tmp_path / "a/b/run"):
        write_labelled_csv(tmp_path / "a/b/run/texts.csv")
    assert [file.name for file in (tmp_path / "a/b/run").iterdir()] == ["texts.csv"]
    with pytest.raises(UserError, match="no folder can be made there"), own(tmp_path / "a/b/run/texts.csv/run"):
        pass


def test_a_storage_has_one_writer_though_the_run_directories_are_two(tmp_path: Path) -> None:
    """Checkpoints lie under the name of the run directory, which others may have elsewhere."""
    config = Config.model_validate({"train": {"storage": str(tmp_path / "storage")}})
    with holder(tmp_path / "storage/run") as process:
        for place in ("here/run", "there/run"):
            with (
                pytest.raises(UserError, match=f"storage/run: process {process.pid} "),
                own_storage(config, RunDirectory(tmp_path / place)),
            ):
                pass
        with own_storage(config, RunDirectory(tmp_path / "here/other")):
            assert (tmp_path / "storage/other" / LOCK).exists()


def test_trials_of_the_same_number_have_storages_of_their_own(tmp_path: Path) -> None:
    """Else the first trial of a sweep would go on from the checkpoints of another sweep's first trial."""
    config = load_config(write_config(tmp_path, train={"storage": "storage", "validate_every": 2}))
    places = set()
    for name in ("first", "second"):
        sweep = SweepDirectory(tmp_path / name)
        made = TrialMaker(config, sweep, quiet).resolved({})
        places.add(storage_path(made, sweep.trial("0000")))
    assert places == {f"{tmp_path}/storage/first/0000", f"{tmp_path}/storage/second/0000"}
    (tmp_path / "storage/first/0000/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train\.storage: .*/storage/first holds what another sweep has left"):
        check_sweep_storage(config, SweepDirectory(tmp_path / "first"))
    check_sweep_storage(config, SweepDirectory(tmp_path / "second"))
