"""Making a network that is larger than the memory."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from distmeta.errors import UserError


@contextmanager
def parameters_on_disk() -> Iterator[None]:
    """While it is entered, the parameters that modules are given are moved to temporary files that are mapped into
    memory: the system writes them out where memory is short, and takes them away with the last tensor that uses them.

    What they hold, and whatever random numbers make it, stays the same. Files go where `TMPDIR` says.

    Raises UserError where there is no room for them.
    """
    register = nn.Module.register_parameter
    moved: set[int] = set()

    def move_and_register(module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is not None and not parameter.is_meta and id(parameter) not in moved and parameter.numel():
            with tempfile.NamedTemporaryFile(prefix="distmeta-parameter-") as file:
                _make_room(file, parameter.nbytes)
                memory = torch.from_file(file.name, shared=True, size=parameter.numel(), dtype=parameter.dtype)
            parameter.data = memory.view(parameter.shape).copy_(parameter.data)
            moved.add(id(parameter))
        register(module, name, parameter)

    nn.Module.register_parameter = move_and_register  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _make_room(file: Any, size: int) -> None:
    """Take the room for `size` bytes on the disk; without it, the process would be killed when it writes there."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        folder = os.path.dirname(file.name)
        raise UserError(
            f"{folder}: the weights of a network with partitioned weights are made on disk, and {size} bytes more "
            f"cannot be had there ({error.strerror}): name another folder in TMPDIR"
        ) from None
