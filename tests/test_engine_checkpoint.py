"""Checkpoints: what is read is what was written, and nothing that is damaged is ever read."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest
import torch
from torch import nn

from distmeta.engine.checkpoint import fetch_checkpoint, newest_good, read_checkpoint, write_checkpoint
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from distmeta.tensors import LazyTensors

LOCAL = pyarrow.fs.LocalFileSystem()


def some_state(step: int) -> EngineState:
    generator = torch.Generator().manual_seed(step)
    shapes = {"linear.weight": (3, 5), "linear.bias": (3,)}
    made = [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(3)]
    return EngineState(step, *made)


def write(folder: Path, name: str, outer_step: int) -> Path:
    write_checkpoint(folder / name, some_state(outer_step), {"outer_step": outer_step})
    return folder / name


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_reads_what_was_written(tmp_path: Path) -> None:
    state = some_state(7)
    progress = {"outer_step": 9, "best": {"accuracy": 0.1, "at": None}}
    write_checkpoint(tmp_path / "c", state, progress, {"best": state.weights, "text": {"t": torch.arange(3)[::2]}})
    read, read_progress, extra = read_checkpoint(tmp_path / "c")
    assert read.step == 7
    assert same(read.weights, state.weights)
    assert same(read.exp_avg, state.exp_avg)
    assert same(read.exp_avg_sq, state.exp_avg_sq)
    assert read_progress == progress
    assert extra.keys() == {"best", "text"}
    assert same(extra["best"], state.weights)
    assert extra["text"]["t"].tolist() == [0, 2]


def test_who_writes_and_who_helps_gather_in_the_same_order(tmp_path: Path) -> None:
    asked: list[str] = []

    def state() -> EngineState:
        def gathered(group: str, names: str) -> LazyTensors:
            def gather(name: str) -> torch.Tensor:
                asked.append(f"{group} {name}")
                return torch.zeros(2)

            return LazyTensors({name: torch.empty(2, device="meta") for name in names}, gather)

        return EngineState(0, gathered("weights", "cba"), gathered("exp_avg", "ca"), gathered("exp_avg_sq", "ca"))

    write_checkpoint(tmp_path / "c", state(), {"outer_step": 0})
    written = asked.copy()
    asked.clear()
    state().take_part()
    assert len(written) == 7
    assert asked == written


def test_newest_is_the_one_with_the_highest_outer_step(tmp_path: Path) -> None:
    write(tmp_path, "checkpoint_a", 9)
    write(tmp_path, "checkpoint_b", 100)
    write(tmp_path, "checkpoint_c", 20)
    write(tmp_path, "something_else", 1000)
    assert newest_good(LOCAL, str(tmp_path)) == "checkpoint_b"


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest_good(LOCAL, str(tmp_path)) is None
    assert newest_good(LOCAL, str(tmp_path / "not there")) is None


def cut_weights(checkpoint: Path) -> None:
    file = checkpoint / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "exp_avg.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose_moments(checkpoint: Path) -> None:
    (checkpoint / "exp_avg_sq.safetensors").unlink()


def lose_manifest(checkpoint: Path) -> None:
    (checkpoint / "checkpoint.json").unlink()


def cut_manifest(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(file.read_text()[:-30])


def garbage_manifest(checkpoint: Path) -> None:
    (checkpoint / "checkpoint.json").write_bytes(b"\xff\x00" * 50)


def other_version(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (cut_weights, "weights.safetensors has 2[0-9]+ bytes, not 2[0-9]+"),
    (flip_a_bit, "the content of exp_avg.safetensors is not what was written"),
    (lose_moments, "exp_avg_sq.safetensors is missing"),
    (lose_manifest, "it has no checkpoint.json, so its writing was not finished"),
    (cut_manifest, "checkpoint.json is damaged or of another version: Invalid JSON"),
    (garbage_manifest, "checkpoint.json is damaged or of another version: Invalid JSON"),
    (other_version, "checkpoint.json.format is damaged or of another version: Input should be 1"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], message: str
) -> None:
    write(tmp_path, "checkpoint_1", 1)
    write(tmp_path, "checkpoint_2", 2)
    damage(write(tmp_path, "checkpoint_3", 3))
    with caplog.at_level(logging.WARNING):
        assert newest_good(LOCAL, str(tmp_path)) == "checkpoint_2"
    (warning,) = caplog.messages
    assert "checkpoint_3" in warning
    assert "\n" not in warning
    with pytest.raises(UserError, match=message) as refusal:
        read_checkpoint(tmp_path / "checkpoint_3")
    assert str(refusal.value).split(": ", 1)[1] in warning


def test_all_of_them_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut_weights(write(tmp_path, "checkpoint_1", 1))
    lose_manifest(write(tmp_path, "checkpoint_2", 2))
    with caplog.at_level(logging.WARNING):
        assert newest_good(LOCAL, str(tmp_path)) is None
    assert len(caplog.messages) == 2


def test_a_local_checkpoint_is_used_where_it_is(tmp_path: Path) -> None:
    written = write(tmp_path, "checkpoint_1", 1)
    assert fetch_checkpoint(LOCAL, str(written), tmp_path / "copy") == written
    assert not (tmp_path / "copy").exists()


def test_an_object_store(tmp_path: Path) -> None:
    """A storage that is no local folder, through the same interface as s3://."""
    store = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("memory")))
    write(tmp_path, "checkpoint_1", 1)
    lose_moments(write(tmp_path, "checkpoint_2", 2))
    pyarrow.fs.copy_files(str(tmp_path), "/bucket/run", destination_filesystem=store)
    assert newest_good(store, "/bucket/run") == "checkpoint_1"
    fetched = fetch_checkpoint(store, "/bucket/run/checkpoint_1", tmp_path / "copy")
    assert fetched == tmp_path / "copy"
    state, progress, _ = read_checkpoint(fetched)
    assert progress == {"outer_step": 1}
    assert same(state.weights, some_state(1).weights)


def test_a_storage_that_cannot_be_read_is_no_damage(tmp_path: Path) -> None:
    """Else a run would begin anew because the network failed."""
    checkpoint = write(tmp_path, "checkpoint_1", 1)
    lose_manifest(checkpoint)
    (checkpoint / "checkpoint.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        newest_good(LOCAL, str(tmp_path))


def fitting_module(frozen: bool = False) -> nn.Module:
    module = nn.Module()
    module.linear = nn.Linear(5, 3)
    module.linear.bias.requires_grad = not frozen
    return module


def test_state_that_fits() -> None:
    some_state(1).check_fits(fitting_module())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.weights.pop("linear.bias"), "the checkpoint's weights lack linear.bias, which the model has"),
        (lambda s: s.weights.update(head=torch.zeros(2)), "the checkpoint's weights hold head, which the model lacks"),
        (
            lambda s: s.weights.update({"linear.weight": torch.zeros(4, 5)}),
            r"linear.weight is \[4, 5\] in the checkpoint's weights and \[3, 5\] in the model",
        ),
        (lambda s: s.exp_avg.pop("linear.bias"), "the checkpoint's exp_avg lack linear.bias"),
        (
            lambda s: s.exp_avg_sq.update({"linear.bias": torch.zeros(5)}),
            r"linear.bias is \[5\] in the checkpoint's exp_avg_sq and \[3\] in the model",
        ),
    ],
)
def test_state_that_does_not_fit(change: Callable[[EngineState], Any], message: str) -> None:
    state = some_state(1)
    change(state)
    with pytest.raises(UserError, match=message):
        state.check_fits(fitting_module())


def test_state_of_other_frozen_parameters() -> None:
    with pytest.raises(UserError, match=r"exp_avg hold linear\.bias, which the model lacks"):
        some_state(1).check_fits(fitting_module(frozen=True))
