"""Whether weights fill a network: by which names they are read, what is missing, and what has no place in it."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from distmeta.errors import UserError
from distmeta.library_warnings import warnings_of_transformers
from distmeta.models.weight_files import Outline, WeightFiles

WRAPPERS = {
    "_orig_mod",  # torch.compile
    "module",  # DistributedDataParallel, DeepSpeed
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning Fabric
}
"""What wrappers call the module inside them, wherever it stands in a name."""

_BUFFER = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias|num_batches_tracked)$")
"""Names of what older versions of transformers wrote beside the weights, and newer ones compute."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass
class Fit:
    """How weights fill a network of some class; each name is one of the network."""

    total: int
    """Tensors of the network that have to be there."""
    new_head: list[str] = field(default_factory=list)
    new_pooler: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Names of tensors that it has no place for, such as another head."""


def read_weights(
    model_class: type[PreTrainedModel], hf_config: PretrainedConfig, files: WeightFiles, **arguments: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The network with its weights, in fp32, and what transformers has to say of them, a line each.

    Raises:
        UserError: the weights do not fill it, or are no numbers.
    """
    _, names = check_weights(model_class, hf_config, files)
    with files.tensors() as tensors, warnings_of_transformers() as warnings:
        model, info = _load(model_class, hf_config, {names[name]: tensors[name] for name in tensors}, files, arguments)
    judge(model, info, files, names)
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter.detach()):
            short = name.removeprefix(f"{model.base_model_prefix}.")
            in_files = (each for each, read in names.items() if read == name or read.endswith(short))
            _refuse_numbers(files, next(in_files, name))
    model.config.name_or_path = hf_config.name_or_path
    return model, warnings


def check_weights(
    model_class: type[PreTrainedModel], hf_config: PretrainedConfig, files: WeightFiles
) -> tuple[Fit, dict[str, str]]:
    """How the weights fill a network of that class, and by its name in the files the one that each tensor is read by:
    its own where these fill it, else without what wrappers made of them. The numbers are not looked at.

    Raises:
        UserError: they do not fill it.
    """

    def fit(names: Mapping[str, str]) -> Fit:
        # One zero stands for all numbers of a tensor.
        zeros = {names[name]: torch.zeros(()).expand(outline.shape) for name, outline in files.outlines.items()}
        with no_init_weights(), warnings_of_transformers():
            model, info = _load(model_class, hf_config, zeros, files, {})
        return judge(model, info, files, names)

    own = {name: name for name in files.outlines}
    try:
        return fit(own), own
    except UserError:
        names = names_as_read(files, _names_of_base(model_class, hf_config), model_class.base_model_prefix)
        if names == own:
            raise
        return fit(names), names


def check_numbers(files: WeightFiles, names: Mapping[str, str], fit: Fit) -> None:
    """Reads every tensor that fills the network, one at a time.

    Raises:
        UserError: one has numbers that are not finite.
    """
    unused = set(fit.unused)
    with files.tensors() as tensors:
        for name, tensor in tensors.items():
            outline, read = files.outlines[name], names[name]
            if not outline.is_float or _is_buffer(read, outline) or any(read.endswith(each) for each in unused):
                continue
            if not _is_finite(tensor[...].float()):
                _refuse_numbers(files, name)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Ten times as fast as to look at each number for itself: what is no number is the least and the largest of all."""
    return not tensor.numel() or all(map(math.isfinite, tensor.aminmax()))


def _refuse_numbers(files: WeightFiles, name: str) -> None:
    raise UserError(f"model.name_or_path: {name} of {files.name} has numbers that are not finite (NaN or inf)")


def _load(
    model_class: type[PreTrainedModel],
    hf_config: PretrainedConfig,
    tensors: Mapping[str, Any],
    files: WeightFiles,
    arguments: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    try:
        return model_class.from_pretrained(  # type: ignore[return-value]
            None,
            config=hf_config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused by name
            output_loading_info=True,
            **arguments,
        )
    except RuntimeError as error:
        line = str(error).strip().split("\n")[0]
        kind = hf_config.model_type
        raise UserError(f"model.name_or_path: {files.name} cannot be made the weights of {kind}: {line}") from None


def _names_of_base(model_class: type[PreTrainedModel], hf_config: PretrainedConfig) -> set[str]:
    with torch.device("meta"):
        return set(model_class(hf_config).base_model.state_dict())


def names_as_read(files: WeightFiles, expected: set[str], base_prefix: str) -> dict[str, str]:
    """By its name in the files, the name by which each tensor is read: without what a wrapper put before or into it.

    That is any one beginning that most names have in common before a name of the base network, `expected`, whatever it
    is called, and the known names of `WRAPPERS` anywhere.

    Raises:
        UserError: there is more than one network in the files, and none of them at the top.
    """
    own = {part for name in expected for part in name.split(".")}
    wrappers = WRAPPERS - own
    names = {name: ".".join(part for part in name.split(".") if part not in wrappers) for name in files.outlines}
    counts = Counter(before for name in names.values() if (before := _before(name, expected)) is not None)
    if counts:
        most = max(counts.values())
        fullest = [before for before, count in counts.items() if count == most]
        if not {"", f"{base_prefix}."} & set(fullest):
            if len(fullest) > 1:
                several = " and ".join(f"{before}*" for before in sorted(fullest)[:2])
                raise UserError(
                    f"model.name_or_path: {files.name} holds {len(fullest)} networks, {several}; save the one that is "
                    "meant alone"
                )
            wrapped = fullest[0].removesuffix(f"{base_prefix}.")
            names = {name: read.removeprefix(wrapped) for name, read in names.items()}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        both = " and ".join(sorted(name for name, read in names.items() if read == repeated[0])[:2])
        raise UserError(f"model.name_or_path: {files.name} has two tensors for {repeated[0]}: {both}; save one of them")
    return names


def _before(name: str, expected: set[str]) -> str | None:
    """What stands before the name of a tensor of the base network; None: the name of none ends it."""
    parts = name.split(".")
    for start in range(len(parts)):
        if ".".join(parts[start:]) in expected:
            return "".join(f"{part}." for part in parts[:start])
    return None


def judge(model: PreTrainedModel, info: Mapping[str, Any], files: WeightFiles, names: Mapping[str, str]) -> Fit:
    """What transformers found as it loaded weights into a model.

    Raises:
        UserError: the base network or a head is not filled, a shape differs, or the files have weights of the base
            network that this one has no place for.
    """
    kind, tensors = model.config.model_type, model.state_dict()
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})

    def refuse(what: str) -> None:
        raise UserError(f"model.name_or_path: {files.name} {what}")

    def is_pooler(name: str) -> bool:
        return name.startswith(f"{prefix}pooler.")

    # Before what is missing: a tensor of another shape is there.
    for name, found, wanted in sorted(info["mismatched_keys"]):
        if 0 in found:
            refuse(f"has nothing in {name}, as ZeRO 3 leaves it: gather the weights first, by zero_to_fp32.py")
        refuse(
            f"does not fit config.json: {name} is {_shape(found)}, and a {kind} network of that configuration has "
            f"{_shape(wanted)}"
        )
    base = [name for name in tensors if name.startswith(prefix) and not is_pooler(name)]
    head = [name for name in tensors if not name.startswith(prefix) and name not in tied]
    missing = [name for name in tensors if name in info["missing_keys"]]
    lacking = [name for name in base if name in info["missing_keys"]]
    unexpected = sorted(info["unexpected_keys"], key=_in_order)
    if lacking:
        layers = f" of {counted(_layers(model.config), 'layer')}" if _layers(model.config) else ""
        is_other = len(lacking) == len(base) and unexpected
        instead = f"; it has none of them, but {unexpected[0]} and the like" if is_other else ""
        refuse(
            f"lacks {len(lacking)} of the {len(base)} tensors of a {kind} network{layers}, as config.json describes "
            f"it, first {lacking[0]}{instead}"
        )
    read = {read: files.outlines[name] for name, read in names.items()}
    if integers := [name for name, _ in model.named_parameters() if _is_integer(name, read, prefix)]:
        refuse(f"has integers in {integers[0]}: it is quantized, and training needs the weights that it was made from")

    new_head = [name for name in head if name in info["missing_keys"]]
    if new_head and len(new_head) < len(head):
        refuse(f"lacks {len(new_head)} of the {len(head)} tensors of its head, first {new_head[0]}")
    inside = {name.removeprefix(prefix).split(".")[0] for name in base}
    misplaced: list[str] = []
    unused: list[str] = []
    for name in unexpected:
        short = name.removeprefix(f"{model.base_model_prefix}.")
        if _is_buffer(short, read.get(name)):
            continue
        (misplaced if short.split(".")[0] in inside else unused).append(short)
    if misplaced:
        known = {_NUMBER.sub("*", name.removeprefix(prefix)) for name in base}
        says = ""
        if _NUMBER.sub("*", misplaced[0]) in known and _layers(model.config):
            says = f": config.json says {counted(_layers(model.config), 'layer')}"
        refuse(
            f"has {counted(len(misplaced), 'tensor')} that a {kind} network as config.json describes it has no place "
            f"for, first {misplaced[0]}{says}"
        )
    return Fit(len(base), new_head, [name for name in missing if is_pooler(name)], unused)


def _layers(config: PretrainedConfig) -> int:
    """How many layers a configuration says; 0 where it says nothing."""
    layers = getattr(config, "num_hidden_layers", None)
    return layers if isinstance(layers, int) else 0


def counted(number: int, thing: str) -> str:
    """Such as 1 tensor, or 2 tensors."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(str(size) for size in shape) or "a single number"


def _in_order(name: str) -> list[tuple[int, str]]:
    """For names in the order of their layers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _is_integer(name: str, read: Mapping[str, Outline], prefix: str) -> bool:
    found = read.get(name) or read.get(name.removeprefix(prefix))
    return found is not None and not found.is_float


def _is_buffer(name: str, outline: Outline | None) -> bool:
    """Whether a tensor is no weight: a mask, a table of positions or a number that newer versions compute."""
    if _BUFFER.search(name):
        return True
    return outline is not None and (not outline.is_float or not outline.shape or outline.shape[:2] == (1, 1))
