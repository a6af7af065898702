"""Tensors by name that are never held all at once, and their safetensors files, written and read one at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "I64": torch.int64}
"""The names that a safetensors file has for the formats of numbers."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, of which each is made anew when it is asked for.

    Args:
        outlines: what is known beforehand, as tensors on the meta device: names, shapes and number formats.
        make: gives a tensor by its name. It may be collective: all workers have to ask for the same in the same order.
    """

    def __init__(self, outlines: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
        self.outlines = outlines
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.outlines:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)


def outlines_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of the same names, shapes and number formats: of lazy ones those that are known without making any."""
    return tensors.outlines if isinstance(tensors, LazyTensors) else tensors


def take_part(tensors: Mapping[str, Tensor]) -> None:
    """Have each tensor made in turn and keep none, where that is collective and another worker wants them."""
    if isinstance(tensors, LazyTensors):
        for name in tensors:
            tensors[name]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, holding one tensor at a time. The library's own writer wants all of them in memory."""
    with path.open("wb") as file:
        file.writelines(written(tensors, metadata))


def written(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The content of a safetensors file (https://github.com/huggingface/safetensors#format), one tensor at a time."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, outline in outlines_of(tensors).items():
        end = start + outline.numel() * outline.dtype.itemsize
        header[name] = {"dtype": NAMES[outline.dtype], "shape": list(outline.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    yield len(text).to_bytes(8, "little") + text
    for name in tensors:
        yield _numbers(tensors[name])  # without a name, which would hold it while the next one is made


def _numbers(tensor: Tensor) -> memoryview:
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> LazyTensors:
    """The tensors in a safetensors file, each read from there, to the CPU, when it is asked for."""
    with safe_open(path, framework="pt") as file:
        outlines = {}
        for name in file.offset_keys():
            part = file.get_slice(name)
            outlines[name] = torch.empty(part.get_shape(), dtype=DTYPES[part.get_dtype()], device="meta")

    def read(name: str) -> Tensor:
        # Opened for each anew, since what was read stays in memory for as long as the file is open.
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return LazyTensors(outlines, read)
