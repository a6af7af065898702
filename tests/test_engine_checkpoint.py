"""Checkpoints: what is read is what was written, and nothing that is damaged is ever read."""

import hashlib
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distmeta.engine.checkpoint import (
    MANIFEST,
    Manifest,
    Progress,
    check_copy,
    newest_good,
    part_name,
    read_checkpoint,
    shapes_of,
    write_checkpoint,
    write_file,
)
from distmeta.engine.parts import GROUPS
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from distmeta.tensors import written

LOCAL = pyarrow.fs.LocalFileSystem()


def some_state(step: int) -> EngineState:
    generator = torch.Generator().manual_seed(step)
    shapes = {"linear.weight": (3, 5), "linear.bias": (3,)}
    made = [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(3)]
    return EngineState(step, *made)


def write(folder: Path, name: str, outer_step: int) -> Path:
    write_checkpoint(folder / name, some_state(outer_step), {"outer_step": outer_step})
    return folder / name


def write_parts(folder: Path, step: int) -> EngineState:
    """A checkpoint of three workers, the last of which has next to nothing; returns what is in it."""
    state = some_state(step)
    cuts = {"linear.weight": (0, 6, 14, 15), "linear.bias": (0, 0, 3, 3)}
    folder.mkdir()
    files = {}
    for rank in range(3):
        part = {
            f"{group}/{cuts[name][rank]}/{name}": tensor.reshape(-1)[slice(*cuts[name][rank : rank + 2])]
            for group in GROUPS
            for name, tensor in getattr(state, group).items()
            if cuts[name][rank] < cuts[name][rank + 1]
        }
        files[part_name(rank)] = part
    files["extra-best.safetensors"] = dict(state.weights)
    records = {name: write_file(LOCAL, str(folder / name), written(tensors)) for name, tensors in files.items()}
    progress = Progress(outer_step=step, tokens=12345, score=0.25)
    manifest = Manifest(step=step, progress=progress, shapes=shapes_of(state), files=records)
    (folder / MANIFEST).write_bytes(manifest.written())
    return state


def write_format_1(folder: Path, state: EngineState, progress: dict[str, Any], extra: dict[str, Any]) -> None:
    """A checkpoint as the first worker wrote it before there were parts."""
    folder.mkdir()
    files = {}
    tensors = {group: getattr(state, group) for group in GROUPS} | {
        f"extra-{name}": each for name, each in extra.items()
    }
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        save_file(dict(group), path)
        files[path.name] = {"bytes": path.stat().st_size, "blake2b": hashlib.blake2b(path.read_bytes()).hexdigest()}
    manifest = {"format": 1, "step": state.step, "progress": progress, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def read_json(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / MANIFEST).read_text())


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


def test_parts_of_several_workers_are_put_together(tmp_path: Path) -> None:
    """In whatever order; a worker may have nothing of a tensor."""
    state = write_parts(tmp_path / "c", 3)
    read, progress, extra = read_checkpoint(tmp_path / "c")
    assert (read.step, progress["outer_step"]) == (3, 3)
    for group in GROUPS:
        assert same(getattr(read, group), getattr(state, group))
    assert same(extra["best"], state.weights)


def test_a_checkpoint_of_the_format_before_is_read(tmp_path: Path) -> None:
    state = some_state(5)
    write_format_1(tmp_path / "checkpoint_1", state, {"outer_step": 6, "flops": 1.5}, {"best": state.weights})
    assert newest_good(LOCAL, str(tmp_path)) == "checkpoint_1"
    read, progress, extra = read_checkpoint(tmp_path / "checkpoint_1")
    assert (read.step, progress) == (5, {"outer_step": 6, "flops": 1.5})
    for group in GROUPS:
        assert same(getattr(read, group), getattr(state, group))
    assert same(extra["best"], state.weights)
    (tmp_path / "checkpoint_1" / "exp_avg.safetensors").unlink()
    with pytest.raises(UserError, match=r"exp_avg.safetensors is missing"):
        read_checkpoint(tmp_path / "checkpoint_1")
    manifest = read_json(tmp_path / "checkpoint_1")
    del manifest["files"]["exp_avg.safetensors"]
    (tmp_path / "checkpoint_1" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"checkpoint.json does not list exp_avg.safetensors"):
        read_checkpoint(tmp_path / "checkpoint_1")


def test_newest_is_the_one_with_the_highest_outer_step(tmp_path: Path) -> None:
    write(tmp_path, "checkpoint_a", 9)
    write(tmp_path, "checkpoint_b", 100)
    write(tmp_path, "checkpoint_c", 20)
    write(tmp_path, "something_else", 1000)
    assert newest_good(LOCAL, str(tmp_path)) == "checkpoint_b"


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest_good(LOCAL, str(tmp_path)) is None
    assert newest_good(LOCAL, str(tmp_path / "not there")) is None


def cut_a_part(checkpoint: Path) -> None:
    file = checkpoint / "part-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "part-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose_a_part(checkpoint: Path) -> None:
    (checkpoint / "part-00000.safetensors").unlink()


def lose_manifest(checkpoint: Path) -> None:
    (checkpoint / "checkpoint.json").unlink()


def cut_manifest(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(file.read_text()[:-30])


def garbage_manifest(checkpoint: Path) -> None:
    (checkpoint / "checkpoint.json").write_bytes(b"\xff\x00" * 50)


def other_version(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 3}))


def another_step(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(file.read_text().replace('"outer_step": 3', '"outer_step": 4'))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (cut_a_part, "part-00000.safetensors has [0-9]+ bytes, not [0-9]+"),
    (flip_a_bit, "the content of part-00000.safetensors is not what was written"),
    (lose_a_part, "part-00000.safetensors is missing"),
    (lose_manifest, "it has no checkpoint.json, so its writing was not finished"),
    (cut_manifest, "checkpoint.json is damaged or of another version: Invalid JSON"),
    (garbage_manifest, "checkpoint.json is damaged or of another version: Invalid JSON"),
    (other_version, "checkpoint.json.format is damaged or of another version: Input should be 1 or 2"),
    (another_step, "the content of checkpoint.json is not what was written"),
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


# Fifty that a seed has made malformed


def truncate(checkpoint: Path, chance: random.Random) -> None:
    file = chance.choice(sorted(checkpoint.iterdir()))
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])


def flip(checkpoint: Path, chance: random.Random) -> None:
    file = chance.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def remove(checkpoint: Path, chance: random.Random) -> None:
    chance.choice(sorted(checkpoint.iterdir())).unlink()


def swap(checkpoint: Path, chance: random.Random) -> None:
    one, other = chance.sample(sorted(checkpoint.glob("*.safetensors")), 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


WRONG = [None, -1, 1.5, True, "x", "../../up", [], [1], {}, {"a": []}, 10**30, "\n", float("nan")]


def mistype(checkpoint: Path, chance: random.Random) -> None:
    """A value of the manifest is another one, or is not there; sometimes with the right digest."""
    manifest = read_json(checkpoint)
    within: Any = manifest
    while True:
        key = chance.choice([*within] if isinstance(within, dict) else range(len(within)))
        if not within[key] or not isinstance(within[key], dict | list) or chance.random() < 0.3:
            break
        within = within[key]
    before = within[key]
    while within[key] == before and isinstance(within[key], bool) == isinstance(before, bool):
        within[key] = chance.choice(WRONG)
    if chance.random() < 0.3 and isinstance(within, dict):
        del within[key]
    digest = {}
    if "progress" in manifest and manifest["progress"] == {"outer_step": 2, "tokens": 12345, "score": 0.25}:
        content = json.dumps({name: manifest[name] for name in manifest if name != "blake2b"}, sort_keys=True)
        digest = {"blake2b": hashlib.blake2b(content.encode()).hexdigest()} if within is not manifest else {}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | digest))


def another_part(checkpoint: Path, chance: random.Random) -> None:
    """A part that is not what it should be, of which the manifest says that it is."""
    file = chance.choice(sorted(checkpoint.glob("part-*")))
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header, manifest = json.loads(content[8:end]), read_json(checkpoint)
    key = chance.choice(sorted(header))
    kind = chance.randrange(6)
    outline = header.pop(key)
    if kind == 1:
        header[key.replace("/", "/1", 1)] = outline
    elif kind == 2:
        header[key] = outline | {"data_offsets": [0, 10**9]}
    elif kind == 3:
        header[key] = outline | {"dtype": "I64"}
    elif kind == 4:
        header["other"] = header[key] = outline
    elif kind == 5:
        header[key] = chance.choice(WRONG)
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + content[end:]
    file.write_bytes(content)
    manifest["files"][file.name] = {"bytes": len(content), "blake2b": hashlib.blake2b(content).hexdigest()}
    del manifest["blake2b"]
    (checkpoint / MANIFEST).write_bytes(Manifest.model_validate(manifest).written())


MUTATIONS = [truncate, flip, remove, swap, mistype, another_part]


@pytest.mark.parametrize("seed", range(54))
def test_a_malformed_checkpoint_is_never_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    write_parts(tmp_path / "checkpoint_1", 1)
    write_parts(tmp_path / "checkpoint_2", 2)
    MUTATIONS[seed % len(MUTATIONS)](tmp_path / "checkpoint_2", random.Random(seed))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level(logging.WARNING):
        assert newest_good(LOCAL, str(tmp_path)) == "checkpoint_1"
    (warning,) = caplog.messages
    print(warning)
    assert "checkpoint_2 is left out" in warning
    assert len(warning.splitlines()) == 1
    with pytest.raises(UserError, match="cannot be used") as refusal:
        read_checkpoint(tmp_path / "checkpoint_2")
    assert len(str(refusal.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_all_of_them_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut_a_part(write(tmp_path, "checkpoint_1", 1))
    lose_manifest(write(tmp_path, "checkpoint_2", 2))
    with caplog.at_level(logging.WARNING):
        assert newest_good(LOCAL, str(tmp_path)) is None
    assert len(caplog.messages) == 2


def test_of_one_whose_digests_are_right_the_sizes_are_looked_at(tmp_path: Path) -> None:
    """A bit that has changed since is not seen; what would be read beyond the end of a file is."""
    checkpoint = write(tmp_path, "checkpoint_1", 1)
    part = next(checkpoint.glob("part-*"))
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is not what was written"):
        read_checkpoint(checkpoint)
    with pytest.raises(
        OSError, match=r"the copy of a checkpoint in .* is not what is stored: the content of part-00000"
    ):
        check_copy(checkpoint)
    assert read_checkpoint(checkpoint, has_digests_right=True)[1] == {"outer_step": 1}
    part.write_bytes(content[:-1])
    with pytest.raises(UserError, match="bytes, not"):
        read_checkpoint(checkpoint, has_digests_right=True)


def test_an_object_store(tmp_path: Path) -> None:
    """A storage that is no local folder, through the same interface as s3://."""
    store = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("memory")))
    write(tmp_path, "checkpoint_1", 1)
    lose_a_part(write(tmp_path, "checkpoint_2", 2))
    pyarrow.fs.copy_files(str(tmp_path), "/bucket/run", destination_filesystem=store)
    assert newest_good(store, "/bucket/run") == "checkpoint_1"


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
