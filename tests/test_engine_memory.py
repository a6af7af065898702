"""The table of what ZeRO shares out: bytes of weights and of optimizer states that real engines hold, and the formula.

    pytest -m slow -s tests/test_engine_memory.py

prints it: each ZeRO stage on 1, 2 and 4 workers, weights that stay partitioned, and offloaded optimizer states.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.sharded import ShardedEngine
from distmeta.models import Network
from distmeta.plan.states import FLOAT, ModelStates, PartitionedStates
from tests.workers import World

CPU = torch.device("cpu")
BOUND = 0.001
"""Share by which what is held may differ from the formula: shards are padded to the same length on every worker."""

SETTINGS: list[dict[str, Any]] = [
    *({"zero_stage": stage} for stage in (0, 1, 2, 3)),
    {"zero_stage": 3, "weights": "partitioned"},
    *({"zero_stage": stage, "offload_optimizer": True} for stage in (1, 2, 3)),
]


def bert() -> Network:
    """Sizes that 4 workers cannot share evenly, and a frozen part."""
    config = BertConfig(
        vocab_size=1001,
        hidden_size=66,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=255,
        max_position_embeddings=16,
    )
    network = Network(BertModel(config, add_pooling_layer=False), "mean")
    network.freeze(1)
    return network


def numel(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def held(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of memory, what several tensors share counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def engine_bytes(settings: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Of each worker, the bytes of weights, of optimizer states, and of those with the gradients beside them."""
    network, config = bert(), EngineConfig(**settings)
    if config.weights == "partitioned":
        engine: Engine = ShardedEngine(network, config, adapted_names=[], weight_decay=0.0, device=CPU)
    else:
        engine = Engine(network, config, weight_decay=0.0, device=CPU)
        with engine.full_parameters() as parameters:
            gradients = {name: torch.ones_like(parameters[name]) for name in engine._trained}
        engine.step(gradients, 1e-3)
    # At stage 3 a worker's shard of a parameter hangs on it.
    weights = held(getattr(parameter, "ds_tensor", parameter) for parameter in engine._parameters.values())
    partitions = engine._partitions() if config.zero_stage else []
    moments = [moment for states in engine._adamw.state.values() for key, moment in states.items() if key != "step"]
    optimizer = held([*partitions, *moments])
    host = held([*partitions, *moments, *(p.grad for p in partitions if p.grad is not None)])
    engine.close()
    results: list[Any] = [(weights, optimizer, host)]
    if torch.distributed.is_initialized():
        results = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(results, (weights, optimizer, host))
    return results


@pytest.mark.slow
def test_workers_hold_what_the_formula_says(tmp_path: Path) -> None:
    network = bert()
    parameters, trained = numel(network.parameters()), numel(p for p in network.parameters() if p.requires_grad)
    largest = max(numel(module.parameters(recurse=False)) for module in network.modules())
    print(f"\n{parameters:,} parameters, {trained:,} of them trained; bytes of a worker, measured and by formula")
    print(f"{'workers':>7}  {'ZeRO':24}{'weights':>21}{'optimizer':>22}")
    for workers in (1, 2, 4):
        (tmp_path / str(workers)).mkdir()
        world = World(workers, tmp_path / str(workers))
        for settings in SETTINGS:
            stage, offload = settings["zero_stage"], settings.get("offload_optimizer", False)
            states: Any = ModelStates(parameters, trained, workers, stage, offload=offload)
            if "weights" in settings:
                states = PartitionedStates(parameters, trained, workers, 0, largest, 3)
            found = world.run(engine_bytes, settings)
            assert len(found) == workers
            weights, optimizer, host = (max(each) for each in zip(*found, strict=True))
            name = f"{stage}{', partitioned' * ('weights' in settings)}{', offloaded' * offload}"
            pairs = f"{weights:>10,}{states.weights:>11,.0f}{optimizer:>11,}{states.optimizer:>11,.0f}"
            print(f"{workers:7}  {name:24}{pairs}")
            for each in found:
                assert each[0] == pytest.approx(states.weights, rel=BOUND)
                assert each[1] == pytest.approx(states.optimizer, rel=BOUND)
            if offload:  # and as many numbers again, which the engine does not know of
                assert host == pytest.approx(states.host - FLOAT * trained / workers, rel=BOUND)
        world.close()
