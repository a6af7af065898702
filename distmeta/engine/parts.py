"""Parts of a checkpoint: the flat pieces of an engine's tensors that one worker has, and tensors put together of them.

part-00001.safetensors holds one-dimensional fp32 tensors, each named by whose piece it is and where in that it begins:

  weights/0/linear.weight
  exp_avg/1536/linear.weight
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmeta.tensors import LazyTensors

GROUPS = ("weights", "exp_avg", "exp_avg_sq")
"""What an engine has of tensors by parameter name: the fields of `EngineState`."""

LARGEST_HEADER = 100_000_000
"""Bytes of a header that can be one, as in the safetensors library."""

Shapes = Mapping[str, Mapping[str, list[int]]]
"""Of the tensors, by group and parameter name."""


class Damaged(Exception):
    """A checkpoint is not what its manifest says. The message names the file and the fault, in a line."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some numbers of a tensor of the engine, those from `start` on."""

    group: str
    name: str
    start: int
    values: Tensor
    """One-dimensional, of the engine's own memory."""


class Snapshot:
    """A worker's pieces as they were when they were taken, in memory of the host that is asked for once and kept: to
    get it anew takes longer than the copying."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, pieces: list[Piece]) -> dict[str, Tensor]:
        """Copies of the pieces under their names in a part's file, good until the next call."""
        numbers = sum(piece.values.numel() for piece in pieces)
        if numbers != self._memory.numel():
            self._memory = torch.empty(0)  # the old one goes before the new one comes
            self._memory = torch.empty(numbers, pin_memory=any(piece.values.is_cuda for piece in pieces))
        copies, end = {}, 0
        for piece in pieces:
            begin, end = end, end + piece.values.numel()
            copies[f"{piece.group}/{piece.start}/{piece.name}"] = self._memory[begin:end].copy_(piece.values)
        return copies


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a piece is: numbers `start` to `end` of a tensor, at `offset` of a file (bytes)."""

    start: int
    end: int
    file: str
    offset: int


Pieces = Mapping[tuple[str, str], list[_Stored]]
"""By group and parameter name, in their order."""


def find_pieces(files: Iterable[tuple[str, Any, int]], shapes: Shapes) -> Pieces:
    """Where the pieces of each tensor are in the files of the parts.

    Args:
        files: of each its name, what it is read from (`read` and `seek`), and its bytes.
        shapes: those of all tensors that there have to be.

    Raises:
        Damaged: a file is no part, or the parts have not each number of each tensor once.
    """
    found: dict[tuple[str, str], list[_Stored]] = defaultdict(list)
    for file, stream, size in files:
        for key, outline, offset in _outlines(file, stream, size):
            group, start, name = (*key.split("/", 2), "", "")[:3]
            if name not in shapes.get(group, {}) or not start.isdecimal():
                raise Damaged(f"{file} holds {key!r}, which is no piece of a tensor of the checkpoint")
            found[group, name].append(_Stored(int(start), int(start) + outline, file, offset))
    for group in GROUPS:
        for name, shape in shapes.get(group, {}).items():
            pieces, reached = found[group, name], 0
            pieces.sort(key=lambda piece: (piece.start, piece.end))
            for piece in pieces:
                if piece.start != reached:
                    raise Damaged(f"the parts have numbers of {group} of {name} twice or not at all")
                reached = piece.end
            if reached != math.prod(shape):
                raise Damaged(f"the parts have {reached} numbers of {group} of {name}, not {math.prod(shape)}")
    return found


def _outlines(file: str, stream: Any, size: int) -> Iterable[tuple[str, int, int]]:
    """Of each tensor in a part its name, how many numbers it has, and where they begin (bytes)."""
    length = int.from_bytes(stream.read(8), "little")
    if not 0 < length <= min(size - 8, LARGEST_HEADER):
        raise Damaged(f"{file} is no safetensors file")
    try:
        header = json.loads(stream.read(length))
        for name, outline in header.items():
            (count,), (begin, end) = outline["shape"], outline["data_offsets"]
            if outline["dtype"] != "F32" or not 0 <= begin <= end <= size - 8 - length or end - begin != 4 * count:
                raise Damaged(f"{file} holds {name!r} in a form that no part has")
            yield name, count, 8 + length + begin
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{file} is no safetensors file of a part") from error


def put_together(directory: Path, pieces: Pieces, shapes: Shapes) -> dict[str, LazyTensors]:
    """The tensors of each group, each of which is read from the parts in `directory` when it is asked for."""

    def tensors(group: str) -> LazyTensors:
        outlines = {name: torch.empty(shape, device="meta") for name, shape in shapes.get(group, {}).items()}

        def read(name: str) -> Tensor:
            tensor = torch.empty(outlines[name].shape)
            memory = tensor.reshape(-1).view(torch.uint8).numpy().data
            for piece in pieces[group, name]:
                with (directory / piece.file).open("rb") as file:
                    file.seek(piece.offset)
                    file.readinto(memory[4 * piece.start : 4 * piece.end])
            return tensor

        return LazyTensors(outlines, read)

    return {group: tensors(group) for group in GROUPS}
