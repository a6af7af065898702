"""Tensors made one at a time, and their files: the library reads what is written, and what it writes is read."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distmeta.tensors import LazyTensors, outlines_of, read_tensors, take_part, write_tensors

EVERY_KIND = {
    "matrix": torch.arange(15.0).view(3, 5),
    "transposed": torch.arange(12.0).view(4, 3).t(),
    "number": torch.tensor(1.5),
    "nothing": torch.zeros(0, 4),
    "every second": torch.arange(6)[::2],
    "odd": torch.arange(7).bfloat16(),
    "after it": torch.arange(5, dtype=torch.float64),
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, EVERY_KIND, {"outer_step": "3", "note": '"é"'})
    read = load_file(path)
    assert read.keys() == EVERY_KIND.keys()
    assert all(same(read[name], tensor) for name, tensor in EVERY_KIND.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"outer_step": "3", "note": '"é"'}


def test_what_the_library_writes_is_read_as_are_lazy_ones(tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in EVERY_KIND.items()}, tmp_path / "library.safetensors")
    read = read_tensors(tmp_path / "library.safetensors")
    write_tensors(tmp_path / "again.safetensors", read)
    for lazy in (read, read_tensors(tmp_path / "again.safetensors")):
        assert lazy.keys() == EVERY_KIND.keys()
        assert all(same(lazy[name], tensor) for name, tensor in EVERY_KIND.items())
        assert {name: each.shape for name, each in outlines_of(lazy).items()} == {
            name: tensor.shape for name, tensor in EVERY_KIND.items()
        }
    with pytest.raises(KeyError, match="missing"):
        read["missing"]


class OneAtATime:
    """Makes tensors, and fails where one is asked for before the one before was let go of."""

    def __init__(self, names: str) -> None:
        self.names = names
        self.made: list[str] = []
        self._last: weakref.ref[np.ndarray] | None = None

    def tensors(self) -> LazyTensors:
        return LazyTensors({name: torch.empty(4, 2, device="meta") for name in self.names}, self._make)

    def _make(self, name: str) -> torch.Tensor:
        assert self._last is None or self._last() is None, f"{self.made[-1]} is still held"
        memory = np.full((4, 2), len(self.made), dtype=np.float32)
        self.made.append(name)
        self._last = weakref.ref(memory)
        return torch.from_numpy(memory)


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    written, helped = OneAtATime("cab"), OneAtATime("cab")
    write_tensors(tmp_path / "tensors.safetensors", written.tensors())
    take_part(helped.tensors())
    # Where making one is collective, who writes and who helps have to ask in the same order.
    assert written.made == helped.made == ["c", "a", "b"]
    assert [float(tensor[0, 0]) for tensor in read_tensors(tmp_path / "tensors.safetensors").values()] == [
        0.0,
        1.0,
        2.0,
    ]
    with pytest.raises(AssertionError, match="c is still held"):
        dict(OneAtATime("cab").tensors())
