"""Meta-parameters in a safetensors file, by the names that they have in the network (adapters apart, not merged)."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from distmeta.errors import UserError
from distmeta.models.network import Parameters
from distmeta.tensors import write_tensors


def save_weights(path: Path, parameters: Mapping[str, torch.Tensor], outer_step: int) -> None:
    """Writes parameters, one at a time, and the outer step that they are from; atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    write_tensors(scratch, parameters, {"outer_step": str(outer_step)})
    os.replace(scratch, path)


def load_weights(path: Path, device: torch.device) -> tuple[Parameters, int]:
    """The parameters in such a file, and their outer step.

    Raises:
        UserError: there is no such file.
    """
    if not path.exists():
        raise UserError(f"{path} is not there: the run has not kept a network yet; finish it with `pretrain --resume`")
    with safe_open(path, framework="pt", device=str(device)) as file:
        step = int(file.metadata()["outer_step"])
        return {name: file.get_tensor(name) for name in file.keys()}, step  # noqa: SIM118 (it is no mapping)


LEARNED = "learned."
"""What the names of parameters that are learned beside the network begin with."""


def weights_digest(path: Path, *, learned: bool) -> str:
    """32 hexadecimal digits that name the network's parameters in such a file, or those `learned` beside it."""
    content = hashlib.blake2b(digest_size=16)
    with safe_open(path, framework="pt") as file:
        for name in sorted(name for name in file.keys() if name.startswith(LEARNED) == learned):  # noqa: SIM118
            value = file.get_tensor(name)
            content.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            content.update(value.reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()
