"""Checkpoints beside the training: a whole one or none, whatever fails, and the last good one stays."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest
import torch

from distmeta.engine.checkpoint import Manifest, Progress, newest_good, read_checkpoint, write_checkpoint
from distmeta.engine.parts import Piece
from distmeta.engine.state import EngineState
from distmeta.train import checkpoint_folder
from distmeta.train import checkpoints as module
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.checkpoints import Checkpoints

LOCAL = pyarrow.fs.LocalFileSystem()


class OneTensor:
    """An engine of one worker: a tensor, which steps change."""

    def __init__(self) -> None:
        self.weight = torch.zeros(4)

    def state(self) -> EngineState:
        tensors = {"weight": self.weight.reshape(2, 2)}
        return EngineState(1, tensors, tensors, tensors)

    def part(self) -> list[Piece]:
        return [Piece(group, "weight", 0, self.weight) for group in ("weights", "exp_avg", "exp_avg_sq")]


class Run:
    """A run of steps that take no time."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.engine = folder / "checkpoints", OneTensor()
        self.best = folder / "best.safetensors"
        self.best.write_bytes(b"of the beginning")
        engine: Any = self.engine
        self.checkpoints = Checkpoints(CheckpointFolder.local(self.folder, keep), engine, rank=0, world_size=1)

    def begin(self, outer_step: int) -> None:
        self.engine.weight.fill_(outer_step)
        self.checkpoints.begin({"outer_step": outer_step, "phase_seconds": {"data": 1.0}}, {"best": self.best})

    def there(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.checkpoints.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The storage takes nothing before it is set."""
    is_open = threading.Event()

    def write_file(*arguments: Any) -> Any:
        assert is_open.wait(20)
        return original(*arguments)

    original = module.write_file
    for each in (module, checkpoint_folder):
        monkeypatch.setattr(each, "write_file", write_file)
    return is_open


def fail(monkeypatch: pytest.MonkeyPatch, times: int, ending: str = ".safetensors") -> None:
    """The storage fails so many times for files that end like this, and leaves half of the file."""
    left = [times]

    def write_file(filesystem: Any, path: str, content: Any) -> Any:
        if path.endswith(ending) and left[0]:
            left[0] -= 1
            Path(path).write_bytes(b"half")
            raise OSError("AWS Error NETWORK_CONNECTION\nduring PutObject")
        return original(filesystem, path, content)

    original = module.write_file
    for each in (module, checkpoint_folder):
        monkeypatch.setattr(each, "write_file", write_file)


def test_what_is_stored_is_the_state_as_it_was_when_it_was_taken(run: Run, gate: threading.Event) -> None:
    progress = {"outer_step": 5, "phase_seconds": {"data": 1.0}}
    run.engine.weight.fill_(5)
    run.checkpoints.begin(progress, {})
    assert not run.checkpoints.is_written
    run.engine.weight.fill_(6)
    progress["phase_seconds"]["data"] = 2.0  # type: ignore[index]
    assert newest_good(LOCAL, str(run.folder)) is None
    gate.set()
    run.checkpoints.finish()
    state, read, _ = read_checkpoint(run.folder / "checkpoint_00000005")
    assert read == {"outer_step": 5, "phase_seconds": {"data": 1.0}}
    assert all(torch.equal(group["weight"], torch.full((2, 2), 5.0)) for group in (state.weights, state.exp_avg))


def test_the_best_weights_are_those_of_that_step(run: Run, gate: threading.Event, tmp_path: Path) -> None:
    run.begin(1)
    (tmp_path / "other").write_bytes(b"better ones")
    (tmp_path / "other").replace(run.best)
    gate.set()
    run.checkpoints.finish()
    assert (run.folder / "checkpoint_00000001" / "extra-best.safetensors").read_bytes() == b"of the beginning"


def test_it_counts_when_the_manifest_is_there_and_not_before(run: Run) -> None:
    run.begin(1)
    while not run.checkpoints.is_written:
        pass
    assert newest_good(LOCAL, str(run.folder)) is None  # the others' parts may not be there
    run.checkpoints.commit()
    run.checkpoints.finish()
    assert newest_good(LOCAL, str(run.folder)) == "checkpoint_00000001"


@pytest.mark.parametrize("ending", ["part-00000.safetensors", "extra-best.safetensors", "checkpoint.json"])
def test_one_that_fails_is_told_and_the_next_one_is_stored(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    run.begin(1)
    run.checkpoints.finish()
    fail(monkeypatch, 1, ending)
    run.begin(2)
    run.begin(3)
    run.checkpoints.finish()
    (warning,) = caplog.messages
    assert "checkpoint of outer step 2 was not stored: worker" in warning or "json" in ending
    assert "AWS Error NETWORK_CONNECTION" in warning
    assert warning.endswith("those before it stay, and the next is tried anew")
    assert "\n" not in warning
    assert run.there() == ["checkpoint_00000001", "checkpoint_00000003"]
    assert newest_good(LOCAL, str(run.folder)) == "checkpoint_00000003"


def test_the_last_good_one_stays_while_all_later_ones_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, keep=1)
    run.begin(1)
    run.checkpoints.finish()
    fail(monkeypatch, 1000, "checkpoint.json")
    for step in (2, 3, 4):
        run.begin(step)
    run.checkpoints.close()
    assert newest_good(LOCAL, str(run.folder)) == "checkpoint_00000001"


@pytest.mark.parametrize(("failures", "is_stored"), [(2, True), (3, False)])
def test_the_last_one_is_tried_again_at_once_and_never_lost_in_silence(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failures: int, is_stored: bool
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.02)
    run.checkpoints._to = replace(run.checkpoints._to, wait=0.05)  # 0.02 and 0.04
    fail(monkeypatch, failures, "part-00000.safetensors")
    run.begin(1)
    if is_stored:
        run.checkpoints.finish()
        assert newest_good(LOCAL, str(run.folder)) == "checkpoint_00000001"
    else:
        with pytest.raises(OSError, match="outer step 1 could not be stored: worker 0: AWS Error NETWORK_CONNECTION"):
            run.checkpoints.finish()
    assert caplog.messages[0].endswith("it is tried again for 0 s at the most (train.wait_for_storage)")


def test_old_ones_go_and_so_does_what_never_was_one(run: Run) -> None:
    state = run.engine.state()
    for step in (1, 2, 3, 9):  # the last one is damaged, else the run would have gone on from there
        write_checkpoint(run.folder / f"checkpoint_{step:08d}-before", state, {"outer_step": step})
    (run.folder / "checkpoint_00000009-before" / "part-00000.safetensors").write_bytes(b"")
    write_checkpoint(run.folder / "something_else", state, {"outer_step": 1})
    (run.folder / "checkpoint_00000004-half").mkdir()
    (run.folder / "checkpoint_manager_snapshot.json").write_text("{}")
    run.begin(5)
    run.checkpoints.finish()
    assert run.there() == ["checkpoint_00000003-before", "checkpoint_00000005", "something_else"]


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 8])
def test_as_many_are_kept_as_are_asked_for(keep: int, tmp_path: Path) -> None:
    folder = CheckpointFolder.local(tmp_path, keep)
    for step in range(1, 13):
        Path(folder.folder(step)).mkdir()
        folder.commit(step, Manifest(step=step, progress=Progress(outer_step=step)))
        folder.remove_old(step)
        newest = [Path(folder.folder(each)).name for each in range(max(1, step - keep + 1), step + 1)]
        assert sorted(each.name for each in tmp_path.iterdir()) == newest


def test_a_part_that_another_node_has_for_itself_is_missed(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_file(filesystem: Any, path: str, content: Any) -> Any:
        record = original(filesystem, path, content)
        if "part" in path:
            Path(path).unlink()
        return record

    original = module.write_file
    for each in (module, checkpoint_folder):
        monkeypatch.setattr(each, "write_file", write_file)
    run.begin(1)
    run.checkpoints.close()
    assert "part-00000.safetensors was written, and the first worker does not find it in" in caplog.text
    assert "set train.storage to a place that all nodes share" in caplog.text


def test_training_that_waits_for_the_storage_is_told_once(
    run: Run, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LONG_WAIT", 0.0)
    gate.set()
    for step in (1, 2, 3):
        run.begin(step)
    assert [line.split(":")[0] for line in caplog.messages] == ["train.checkpoint_every"]


def test_an_object_store(tmp_path: Path) -> None:
    """A storage that is no local folder, through the same interface as s3://."""
    store = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("memory")))
    run = Run(tmp_path)
    engine: Any = run.engine
    run.checkpoints = Checkpoints(CheckpointFolder(store, "/bucket/a-run", keep=1), engine, rank=0, world_size=1)
    for step in (1, 2):
        run.begin(step)
        run.checkpoints.finish()
    run.checkpoints.close()
    found = store.get_file_info(pyarrow.fs.FileSelector("/bucket/a-run"))
    assert [each.base_name for each in found] == ["checkpoint_00000002"]
    assert newest_good(store, "/bucket/a-run") == "checkpoint_00000002"
