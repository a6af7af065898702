"""The files that hold a network's weights: which they are and what is in them, without reading the numbers."""

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from distmeta.errors import UserError
from distmeta.models.folder import what_is_wrong

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where the weights of a folder are, the first of them that is there."""

INSTEAD = {
    "adapter_config.json": "an adapter (PEFT) and no network: merge it into its base model, and save that",
    "adapter_model.*": "an adapter (PEFT) and no network: merge it into its base model, and save that",
    "*.gguf": "GGUF weights, made for inference: take the model that they were made from",
    "tf_model.h5": "TensorFlow weights: convert them to safetensors",
    "*.ckpt.index": "TensorFlow weights: convert them to safetensors",
    "flax_model.msgpack": "Flax weights: convert them to safetensors",
    "*.msgpack": "Flax weights: convert them to safetensors",
    "*.ckpt": "a checkpoint of a training program such as Lightning: save its `state_dict` as model.safetensors",
    "*.onnx": "ONNX weights, made for inference: take the model that they were made from",
    "*.distcp": "a sharded checkpoint of torch.distributed: convert it, and save it as model.safetensors",
    "global_step*": "the shards of a DeepSpeed checkpoint: convert them by zero_to_fp32.py",
    "*.index.json": "weights under another name: they have to be model.safetensors or pytorch_model.bin",
    "*.safetensors": "weights under another name: they have to be model.safetensors",
    "*.bin": "weights under another name: they have to be model.safetensors or pytorch_model.bin",
    "*.pt": "weights under another name: they have to be model.safetensors or pytorch_model.bin",
    "*.pth": "weights under another name: they have to be model.safetensors or pytorch_model.bin",
}
"""What a folder without any of those files may hold, by a pattern of names."""


@dataclass(frozen=True)
class Outline:
    """What is known of a tensor without its numbers."""

    shape: tuple[int, ...]
    is_float: bool


@dataclass(frozen=True)
class WeightFiles:
    """The files of a network's weights."""

    name: str
    """As errors name it: the file, or the index of several."""
    folder: Path
    paths: tuple[Path, ...]
    outlines: Mapping[str, Outline]

    @contextmanager
    def tensors(self) -> Iterator[dict[str, Any]]:
        """Every tensor, or what gives it when it is sliced, by its name in the file, while this is entered."""
        found: dict[str, Any] = {}
        with ExitStack() as opened:
            for path in self.paths:
                if path.suffix == ".safetensors":
                    file = opened.enter_context(safe_open(path, framework="pt"))
                    found |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
                else:
                    found |= _read_pickled(path, "cpu")
            yield found


def find_weights(name_or_path: str, hf_config: PretrainedConfig) -> WeightFiles:
    """The files of the weights in a folder, or of a model of the hub, which are fetched for that.

    Raises:
        UserError: there are none that can be read, or they are not what their names say.
    """
    path = _weights_path(name_or_path, getattr(hf_config, "transformers_weights", None))
    paths: tuple[Path, ...] = (path,)
    if path.name.endswith(".index.json"):
        paths = _shards(name_or_path, path)
    outlines: dict[str, Outline] = {}
    for each in paths:
        outlines |= _outlines(each)
    return WeightFiles(str(path), path.parent, paths, outlines)


def _weights_path(name_or_path: str, named: str | None) -> Path:
    """The file of the weights, or the index of its shards."""
    folder = Path(name_or_path)
    for file in [named] if named else FILES:
        if folder.is_dir():
            path = folder / file
            if path.exists():
                return path
        else:
            found = cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False)
            if found is not None:
                return Path(found)
    if folder.is_dir():
        for pattern, what in INSTEAD.items():
            if others := sorted(folder.glob(pattern)):
                raise UserError(f"model.name_or_path: {folder} has no model.safetensors; {others[0].name} is {what}")
    raise UserError(f"model.name_or_path: {name_or_path} has no weights, which are to be in model.safetensors")


def _shards(name_or_path: str, index: Path) -> tuple[Path, ...]:
    """The files that an index names."""
    _refuse_what_is_wrong(index)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"model.name_or_path: {index} is no index of weights") from None
    if not Path(name_or_path).is_dir():
        return tuple(Path(file) for file in get_checkpoint_shard_files(name_or_path, str(index))[0])
    paths = tuple(index.parent / name for name in names)
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise UserError(
            f"model.name_or_path: {index} names {len(names)} files, of which {len(missing)} are not there, first "
            f"{missing[0]}; fetch them"
        )
    return paths


def _outlines(path: Path) -> dict[str, Outline]:
    _refuse_what_is_wrong(path)
    if path.suffix != ".safetensors":
        found = _read_pickled(path, "meta")
        return {name: Outline(tuple(value.shape), value.is_floating_point()) for name, value in found.items()}
    outlines = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                outlines[name] = Outline(tuple(part.get_shape()), part.get_dtype().startswith(("F", "BF")))
    except SafetensorError as error:
        if zipfile.is_zipfile(path):
            raise UserError(f"model.name_or_path: {path} is a file of torch.save; name it pytorch_model.bin") from None
        cut = "; it may be cut short" if "incomplete" in str(error).lower() or "header" in str(error).lower() else ""
        raise UserError(f"model.name_or_path: {path} cannot be read ({error}){cut}: fetch it again") from None
    return outlines


def _refuse_what_is_wrong(path: Path) -> None:
    if wrong := what_is_wrong(path):
        raise UserError(f"model.name_or_path: {path} {wrong}")


def _read_pickled(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, mapped into memory where its format allows that."""
    with path.open("rb") as file:
        if not file.read(4).startswith((b"PK", b"\x80")):  # an archive, or in the old format a pickle
            raise UserError(f"model.name_or_path: {path} is not a file of torch.save: fetch it again")
    try:
        found = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise UserError(
                f"model.name_or_path: {path} holds more than tensors, which is not read since it could run code: where "
                "you trust it, load it and save its `state_dict` as model.safetensors"
            ) from None
        raise UserError(f"model.name_or_path: {path} is not a file of torch.save: fetch it again") from None
    except Exception as error:  # whatever a broken archive makes torch raise
        line = str(error).strip().split("\n")[0].split(". ")[0]
        raise UserError(
            f"model.name_or_path: {path} cannot be read ({line}); it may be cut short: fetch it again"
        ) from None
    if isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values()):
        return dict(found)
    inside = [k for k, v in found.items() if isinstance(v, Mapping)] if isinstance(found, Mapping) else []
    hint = f"its weights may stand under {inside[0]!r}: save these alone" if inside else "save a `state_dict`"
    raise UserError(f"model.name_or_path: {path} is not a network's tensors by name; {hint}")
