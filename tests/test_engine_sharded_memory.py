"""What a worker with partitioned weights holds in a step, looked at in every operation."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from distmeta.compute.batch import TaskBatch, TokenBatch
from distmeta.engine.config import EngineConfig
from distmeta.engine.sharded import ShardedEngine
from distmeta.models import Network
from distmeta.plan.states import PartitionedStates
from tests.sharded import (
    CPU,
    INNER_LR,
    LEARNING_RATE,
    share,
)
from tests.test_plan import HeldBytes
from tests.workers import World, worlds_of


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 2) as made:
        yield made


class MostGathered(TorchDispatchMode):
    """The most numbers that the parameters of a network hold at once, looked at in every operation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.parameters = list(network.parameters())
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.most = max(self.most, sum(parameter.numel() for parameter in self.parameters))
        return function(*args, **(kwargs or {}))


class _Watched(ShardedEngine):
    """Notes what is held at most until AdamW, which works on partitions, begins its update."""

    held: HeldBytes | None = None
    most = 0

    def _apply(self, learning_rate: float) -> float:
        self.most = self.held.most if self.held else 0
        return super()._apply(learning_rate)


def _memory() -> tuple[int, int, int, int]:
    """Numbers of the network, of its largest module, gathered at most, and bytes held at most beside the rest."""
    config = BertConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=16,
    )
    network = Network(BertModel(config, add_pooling_layer=False), "mean", lora_rank=2)
    numbers = sum(parameter.numel() for parameter in network.parameters())
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in network.modules())
    settings = EngineConfig(zero_stage=3, gradient_clipping=0)
    # The lowest that is adapted is the one of which DeepSpeed does not see where its backward pass ends.
    adapted = ["model.encoder.layer.0.attention.self.query.weight"]
    engine = _Watched(network, settings, adapted_names=adapted, weight_decay=0.0, device=CPU)
    ids, labels = torch.tensor([[5, 6], [7, 8]]), torch.tensor([0, 1])
    batch = TokenBatch(ids, torch.ones_like(ids), torch.full((2,), -1), (2, 2))
    task = TaskBatch(batch, labels, batch, labels, 2)
    # DeepSpeed may do otherwise when it has seen the order of the modules once.
    for watched in (False, True):
        gc.collect()
        with ExitStack() as stack:
            if watched:
                gathered, engine.held = (stack.enter_context(mode) for mode in (MostGathered(network), HeldBytes()))
                before = engine.held.now
            mine = share([task], (1, 0))
            engine.meta_gradient_step(mine, 1, LEARNING_RATE, inner_lr=INNER_LR, inner_steps=2, second_order=True)
    assert not engine._deltas.values, "fast weights are held between two steps"
    engine.close()
    return numbers, largest, gathered.most, engine.most - before


@pytest.mark.slow
def test_no_worker_ever_holds_the_network(worlds: dict[int, World]) -> None:
    numbers, largest, gathered, extra = worlds[2].run(_memory)
    print(f"of {numbers} numbers at most {gathered} gathered, {extra} bytes held beside the partitions")
    # The three embeddings and their norm are held to the end of a backward pass, since nothing goes back through them.
    assert largest <= gathered < 1.1 * largest < 0.1 * numbers
    # The rest are activations, gradients on their way, and the deltas.
    states = PartitionedStates(numbers, 0, 2, adapted=64 * 64, largest=largest, fast_copies=2 + 6)
    print(f"the formula has {states.peak - states.resident:.0f} bytes")
    assert states.peak - states.resident == pytest.approx(extra, rel=0.3)
