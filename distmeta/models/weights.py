"""Meta-parameters in a safetensors file, by the names that they have in the network (adapters apart, not merged)."""

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from distmeta.errors import UserError
from distmeta.models.network import Parameters


def save_weights(path: Path, parameters: Parameters, outer_step: int) -> None:
    """Writes parameters and the outer step that they are from; atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    weights = {name: value.detach().cpu().contiguous() for name, value in parameters.items()}
    save_file(weights, scratch, metadata={"outer_step": str(outer_step)})
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
