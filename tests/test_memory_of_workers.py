"""What workers hold at most, measured, while a network that they share is made, written down and read again.

    pytest -m slow -s tests/test_memory_of_workers.py

prints it. Counted is memory that only the process itself has: what is mapped from a file the system can take away.
"""

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from distmeta.allocator import freed_at_once
from distmeta.engine.checkpoint import read_checkpoint
from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.sharded import ShardedEngine
from distmeta.engine.state import EngineState
from distmeta.models import Network, load_network
from distmeta.models.config import ModelConfig
from distmeta.models.on_disk import parameters_on_disk
from distmeta.plan.states import FLOAT, PartitionedStates
from tests.engine_runs import save
from tests.helpers import word_tokenizer
from tests.workers import World

CPU = torch.device("cpu")
VOCABULARY = 4000
MODEL = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
PIECES = 2
"""Tensors that may be held beside a worker's own part: one as it is gathered, and as it is handed on."""
PARTS = 3
"""Copies of a worker's share of the weights that its part of a checkpoint is as large as: with AdamW's two moments."""
OVERHEAD = 15 * 2**20
"""Bytes of all that is no tensor."""


class Peak:
    """The most memory of this process alone, looked at every millisecond, beside what it had before."""

    def __init__(self) -> None:
        self.bytes = 0

    @classmethod
    @contextmanager
    def watch(cls) -> Iterator["Peak"]:
        gc.collect()
        peak, before, is_over = cls(), own_memory(), threading.Event()

        def look() -> None:
            while not is_over.is_set():
                peak.bytes = max(peak.bytes, own_memory() - before)
                time.sleep(0.001)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield peak
        finally:
            is_over.set()
            thread.join()


def own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def load(*, empty: bool) -> Network:
    return load_network(
        ModelConfig(config=MODEL),
        word_tokenizer(VOCABULARY),
        pooling="mean",
        attention="sdpa",
        lora=False,
        language_model=True,
        seed=0,
        max_length=32,
        tasks_side_by_side=False,
        empty=empty,
    )


def make_engine(weights: Any, stage: Any, state: EngineState | None) -> Engine:
    """As `train` does."""
    config, is_partitioned = EngineConfig(zero_stage=stage, weights=weights), weights == "partitioned"
    with parameters_on_disk() if is_partitioned else nullcontext():
        network = load(empty=is_partitioned and torch.distributed.get_rank() > 0)
    if is_partitioned:
        return ShardedEngine(network, config, adapted_names=[], weight_decay=0.0, device=CPU, state=state)
    return Engine(network, config, weight_decay=0.0, device=CPU, state=state)


def _peaks(weights: str, stage: int, folder: Path) -> list[dict[str, int]]:
    """Peaks of each worker while it starts, while a checkpoint is written, and while it starts from that (bytes)."""
    # What libraries set up once is no part of it.
    Engine(torch.nn.Linear(3, 3), EngineConfig(zero_stage=stage), weight_decay=0.0, device=CPU).close()
    peaks = {}
    with freed_at_once(), Peak.watch() as peak:
        engine = make_engine(weights, stage, None)
    peaks["start"] = peak.bytes
    with freed_at_once(), Peak.watch() as peak:
        save(engine, folder, [])
    peaks["checkpoint"] = peak.bytes
    engine.close()
    del engine
    torch.distributed.barrier()
    with freed_at_once(), Peak.watch() as peak:
        state, _, _ = read_checkpoint(folder)
        engine = make_engine(weights, stage, state)
    peaks["resume"] = peak.bytes
    engine.close()
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, peaks)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "stage", "workers"), [("partitioned", 3, 8), ("whole", 3, 2), ("whole", 1, 2)])
def test_no_worker_holds_more_than_its_part_and_a_piece(weights: str, stage: int, workers: int, tmp_path: Path) -> None:
    sizes = [parameter.numel() for parameter in load(empty=True).parameters()]
    copy, piece = FLOAT * sum(sizes), FLOAT * max(sizes)
    world = World(workers, tmp_path)
    found = world.run(_peaks, weights, stage, tmp_path / "checkpoint")
    world.close()
    print(
        f"\n{weights} weights, ZeRO {stage}: a copy has {copy / 2**20:.0f} MiB, its largest piece {piece / 2**20:.0f}"
    )
    for rank, peaks in enumerate(found):
        print(f"  worker {rank}: " + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in peaks.items()))
    pieces = PIECES * piece + OVERHEAD
    # What whole weights need at a start is a copy, and what their engine makes of it.
    own = PartitionedStates(sum(sizes), sum(sizes), workers, 0, max(sizes), 3).resident
    for peaks in found:
        start = own if weights == "partitioned" else peaks["start"]
        assert weights == "whole" or own + pieces < copy
        assert start / 2 < peaks["start"] < start + pieces
        assert peaks["checkpoint"] < PARTS * copy / workers + OVERHEAD
        assert peaks["resume"] < start + pieces
