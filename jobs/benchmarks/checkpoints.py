"""How long a checkpoint stops training: two workers (gloo), ZeRO 2, AdamW, models of 22 and 110 million parameters.

    python jobs/benchmarks/checkpoints.py

In turns, each worker storing in the same folder:

- at once: the state is gathered on the first worker, written to a scratch folder and copied into the storage, as Ray
  Train does with what is reported to it, while training waits. So it was before each worker stored its own part.
- beside: each worker copies its part, and a thread stores it while outer steps are taken (here of ready gradients, of
  which the engine's averaging and update remain: the shortest steps there can be).

The network's best weights so far go into each checkpoint. Printed are medians over the checkpoints: the seconds that
training is stopped, of them those after the first, which also asks for memory; the seconds until the checkpoint is
whole; and the seconds of a step alone and beside.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.fs
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from transformers import AutoModel, BertConfig

from distmeta.engine.checkpoint import write_checkpoint
from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import Engine
from distmeta.models import save_weights
from distmeta.tensors import read_tensors
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.checkpoints import Checkpoints

WORKERS = 2
MODELS = {"22M": (384, 6, 12), "110M": (768, 12, 12)}
"""Width, layers and attention heads of a BERT with a vocabulary of 30,522."""


def make_engine(size: str) -> Engine:
    """That of a new model."""
    width, layers, heads = MODELS[size]
    shape: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    module: nn.Module = AutoModel.from_config(BertConfig(**shape, intermediate_size=4 * width))
    return Engine(module, EngineConfig(zero_stage=2), weight_decay=0.01, device=torch.device("cpu"))


def at_once(engine: Engine, outer_step: int, folder: Path, best: Path) -> float:
    """Seconds for which training waits."""
    torch.distributed.barrier()
    started, storage = time.perf_counter(), CheckpointFolder.local(folder, keep=1)
    if torch.distributed.get_rank() == 0:
        with tempfile.TemporaryDirectory() as scratch:
            write_checkpoint(Path(scratch), engine.state(), {"outer_step": outer_step}, {"best": read_tensors(best)})
            target = storage.folder(outer_step)
            storage.filesystem.create_dir(target)
            pyarrow.fs.copy_files(scratch, target, destination_filesystem=storage.filesystem)
    else:
        engine.state().take_part()
    torch.distributed.barrier()
    seconds = time.perf_counter() - started
    if torch.distributed.get_rank() == 0:
        storage.remove_old(outer_step)
    return seconds


def beside(
    engine: Engine, checkpoints: Checkpoints, outer_step: int, best: Path, gradients: dict[str, torch.Tensor]
) -> tuple[float, float, list[float]]:
    """Seconds for which training waits, seconds until the checkpoint is whole, and those of each step meanwhile."""
    torch.distributed.barrier()
    started, steps = time.perf_counter(), []
    checkpoints.begin({"outer_step": outer_step}, {"best": best})
    stop = time.perf_counter() - started
    is_written = False
    while not is_written:
        steps.append(step(engine, gradients))
        told = torch.tensor(float(checkpoints.is_written))
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MIN)
        is_written = bool(told)
    since = time.perf_counter()
    checkpoints.commit()
    stop += time.perf_counter() - since
    checkpoints.finish()
    return stop, time.perf_counter() - started, steps


def step(engine: Engine, gradients: dict[str, torch.Tensor]) -> float:
    """Seconds of a step of ready gradients."""
    started = time.perf_counter()
    engine.step(gradients, 1e-5)
    return time.perf_counter() - started


def work(rank: int, size: str, number: int, scratch: str) -> None:
    """Runs in each worker; the first one prints."""
    torch.set_num_threads(1)
    folder = Path(scratch)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/{size}", rank=rank, world_size=WORKERS)
    engine = make_engine(size)
    with engine.full_parameters() as parameters:
        gradients = {name: torch.full_like(value, 1e-3) for name, value in parameters.items()}
        best = folder / f"{size}-best.safetensors"
        if rank == 0:
            save_weights(best, parameters, 0)
    engine.step(gradients, 1e-5)
    alone = [step(engine, gradients) for _ in range(5)]
    checkpoints = Checkpoints(CheckpointFolder.local(folder / f"{size}-beside", keep=1), engine, rank, WORKERS)
    waited, found = [], []
    for outer_step in range(1, number + 1):
        waited.append(at_once(engine, outer_step, folder / f"{size}-at-once", best))
        found.append(beside(engine, checkpoints, outer_step, best, gradients))
    checkpoints.close()
    engine.close()
    stops: list[list[float]] = [[] for _ in range(WORKERS)]
    torch.distributed.all_gather_object(stops, [stop for stop, _, _ in found])
    longest = [max(each) for each in zip(*stops, strict=True)]
    if rank == 0:
        print(
            f"{size:5} {median(waited):13.2f} {median(longest):13.3f} {median(longest[1:] or longest):13.3f} "
            f"{median(whole for _, whole, _ in found):13.2f} {median(alone):13.2f} "
            f"{median(each for _, _, steps in found for each in steps):13.2f}",
            flush=True,
        )
    torch.distributed.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=5, help="of each kind")
    parser.add_argument("--size", choices=MODELS, action="append", help="a model; repeatable; default: all")
    options = parser.parse_args(arguments)
    if options.checkpoints < 1:
        parser.error("--checkpoints must be at least 1")
    os.environ["DS_ACCELERATOR"] = "cpu"
    heads = ("at once, s", "beside, s", "but the first", "whole, s", "step, alone", "step, beside")
    print(f"{'':5} " + " ".join(f"{head:>13}" for head in heads))
    for size in options.size or MODELS:
        with tempfile.TemporaryDirectory(prefix="distmeta-checkpoints-") as scratch:
            torch.multiprocessing.spawn(work, (size, options.checkpoints, scratch), nprocs=WORKERS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
