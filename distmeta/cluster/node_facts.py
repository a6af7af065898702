"""What one node says of itself: its software, memory, network and disks, and what it sees of a run's storage."""

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import distmeta
from distmeta.cluster.machine import available_memory
from distmeta.cluster.places import Place, look, within
from distmeta.errors import first_line
from distmeta.tracking.versions import versions

SEEN = 8.0
"""Seconds that a place has to be read and written; with those of all places a node still answers in time."""

REACHED = 5.0
"""Seconds that a W&B server has to say anything at all."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a node is asked."""

    address: str
    """That by which Ray reaches the node; empty: there is no cluster."""
    own: str = ""
    """What its files are named after."""
    places: tuple[Place, ...] = ()
    with_gpus: bool = False
    """Whether to look at its GPUs, which loads torch."""
    is_whole: bool = False
    """Whether to ask also for what takes longer: DeepSpeed and W&B."""
    tracking: Mapping[str, object] = field(default_factory=dict)
    """The section `tracking` of the run."""
    wandb: Mapping[str, str] = field(default_factory=dict)
    """The variables of W&B that are passed on to workers."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What it says."""

    host: str
    versions: Mapping[str, str]
    """Of Python, of packages, of CUDA as torch was built for it, and of distmeta with a digest of its code."""
    memory: int
    """Bytes that its processes may use."""
    gpu_memory: tuple[int, ...] = ()
    """Bytes of each GPU that torch sees."""
    accelerator: str = ""
    """What DeepSpeed would work on; empty: it was not asked."""
    interface: str = ""
    """The network interface that holds the node's address; empty: none does."""
    own_address: str = ""
    """The address that the host's own name stands for; empty: none."""
    free: Mapping[str, int] = field(default_factory=dict)
    """Bytes that are left by setting, and for temporary files, which checkpoints are until they are stored."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with a place, by its setting."""
    wandb: str = ""
    """How W&B would record there: online, offline or disabled; empty: it was not asked."""
    wandb_fault: str = ""
    """Why it could not be online, if it was to be."""


TEMPORARY = "temporary files"


def node_facts(question: Question) -> NodeFacts:
    """Answers, in a process of the node."""
    mode, fault = _wandb(question) if question.is_whole else ("", "")
    return NodeFacts(
        host=socket.gethostname(),
        versions=versions() | {"distmeta": f"{distmeta.__version__} ({code_digest()})", "CUDA": built_for()},
        memory=available_memory(),
        gpu_memory=_gpu_memory() if question.with_gpus else (),
        accelerator=_accelerator() if question.is_whole else "",
        interface=interface_of(question.address),
        own_address=_own_address(),
        free=_free(question.places),
        unseen=_unseen(question),
        wandb=mode,
        wandb_fault=fault,
    )


def code_digest() -> str:
    """Tells distmeta apart from what it was before a change of its code that has no version yet."""
    digest = hashlib.blake2b(digest_size=4)
    for file in sorted(Path(distmeta.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def built_for() -> str:
    """The version of CUDA or ROCm that torch was built for, or `none`, without loading torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "none"
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^(?:cuda|hip)\b.* = '(.+)'", text, re.MULTILINE)
    return found[1] if found else "none"


def interface_of(address: str) -> str:
    """The network interface that holds an IP address; empty: none does, as behind address translation."""
    import psutil

    for name, held in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in held):
            return name
    return ""


def _own_address() -> str:
    try:
        return str(socket.getaddrinfo(socket.gethostname(), None)[0][4][0])
    except OSError:
        return ""


def _unseen(question: Question) -> dict[str, str]:
    looked = {place.key: within(SEEN, partial(look, place, question.own)) for place in question.places}
    return {key: reason for key, reason in looked.items() if reason}


def _free(places: tuple[Place, ...]) -> dict[str, int]:
    folders = {place.key: Path(place.address) for place in places if place.is_path and place.marker}
    folders[TEMPORARY] = Path(tempfile.gettempdir())
    return {key: shutil.disk_usage(folder).free for key, folder in folders.items() if folder.is_dir()}


def _gpu_memory() -> tuple[int, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_properties(each).total_memory for each in range(torch.cuda.device_count()))


def _accelerator() -> str:
    logging.disable(logging.WARNING)  # that there is no GPU; it is compared with what Ray counts
    try:
        from deepspeed.accelerator import get_accelerator

        found = get_accelerator()
        name = found.device_name()
        return name if name == "cpu" else f"{found.device_count()} x {name}"
    except Exception as error:  # whatever an installation that is not whole raises
        return f"nothing: {first_line(error)}"
    finally:
        logging.disable(logging.NOTSET)


def _wandb(question: Question) -> tuple[str, str]:
    """How W&B would record here, and why that fails."""
    from distmeta.tracking.config import TrackingConfig
    from distmeta.tracking.wandb_environment import prepare_environment
    from distmeta.tracking.wandb_run import has_login, mode_of_user

    prepare_environment(question.wandb)
    mode = mode_of_user(TrackingConfig.model_validate(question.tracking))
    if mode != "online":
        return mode, ""
    if not has_login():
        return mode, "there is no login there"
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        urllib.request.urlopen(server, timeout=REACHED).close()
    except urllib.error.HTTPError:
        pass  # it says something
    except (OSError, ValueError) as error:
        return mode, f"{server} does not answer ({first_line(error)})"
    return mode, ""
