"""Meta-parameters in a safetensors file, by the names that they have in the network (adapters apart, not merged)."""

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
