"""Several steps with partitioned weights: equal to plain AdamW, resumed, offloaded, and with a gradient that is bad."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from distmeta.engine.checkpoint import read_checkpoint
from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.state import EngineState
from tests.engine_runs import save
from tests.helpers import in_memory, state_on_first_worker
from tests.sharded import (
    CLIPPING,
    CPU,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Tensors,
    difference,
    engine_of,
    in_float64,
    make,
    norm,
    outer_step,
    reference_mean,
    share,
    tasks,
    texts,
)
from tests.workers import World, worlds_of


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 1, 2) as made:
        yield made


STEPS, HALFWAY = 3, 1


def _train(first: int, last: int, saved: EngineState | None) -> tuple[EngineState | None, list[tuple[float, float]]]:
    counts = {1: (3,), 2: (1, 2)}[torch.distributed.get_world_size()] if torch.distributed.is_initialized() else (3,)
    engine = engine_of(*make("bert", "lora"), clipping=CLIPPING, state=saved)
    results = [outer_step(engine, tasks(3, 3 * step), counts, second_order=False) for step in range(first, last)]
    state = state_on_first_worker(engine)
    engine.close()
    return state, results


def plain_training() -> tuple[Tensors, list[tuple[float, float]]]:
    """Mean of the gradients at the end, and norms and losses, by torch's AdamW in float64."""
    network, adapted = make("bert", "lora")
    network, theta = in_float64(network)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in theta.values() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in theta.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    results = []
    for step in range(STEPS):
        gradients, loss = reference_mean(network, theta, adapted, tasks(3, 3 * step), second_order=False)
        for name, value in theta.items():
            value.grad = gradients[name]
        results.append((float(nn.utils.clip_grad_norm_(theta.values(), CLIPPING)), loss))
        optimizer.step()
    return {name: optimizer.state[value]["exp_avg"] for name, value in theta.items()}, results


def test_training_equals_plain_adamw_and_resumes_on_another_number_of_workers(worlds: dict[int, World]) -> None:
    means, expected = plain_training()
    state, results = worlds[2].run(_train, 0, STEPS, None)
    assert state.step == STEPS
    assert difference(dict(state.exp_avg), means) < 1e-4
    halfway, before = worlds[1].run(_train, 0, HALFWAY, None)
    resumed, after = worlds[2].run(_train, HALFWAY, STEPS, halfway)
    assert difference(dict(resumed.exp_avg), means) < 1e-4
    for found in (results, before + after):
        assert [n for n, _ in found] == pytest.approx([n for n, _ in expected], rel=1e-4)
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], abs=1e-5)


def _written_and_read(folder: Path) -> tuple[EngineState | None, EngineState | None, EngineState | None]:
    """A state after a step, as it is in the files of a checkpoint, and in an engine that goes on from them."""
    engine = engine_of(*make("bert", "lora"))
    outer_step(engine, tasks(2), {1: (2,), 2: (1, 1)}[torch.distributed.get_world_size()], second_order=False)
    before = state_on_first_worker(engine)
    save(engine, folder / "saved", [])
    engine.close()
    read, _, _ = read_checkpoint(folder / "saved")
    engine = engine_of(*make("bert", "lora"), state=read)
    after = state_on_first_worker(engine)
    engine.close()
    return before, in_memory(read), after


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_written_is_what_is_read(worlds: dict[int, World], size: int, tmp_path: Path) -> None:
    before, read, after = worlds[size].run(_written_and_read, tmp_path)
    for key in ("weights", "exp_avg", "exp_avg_sq"):
        expected = getattr(before, key)
        assert any(tensor.any() for tensor in expected.values())
        for found in (getattr(read, key), getattr(after, key)):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert before.step == read.step == after.step == 1


def _handed_over() -> tuple[EngineState | None, EngineState | None]:
    """A state, and what an engine with whole weights makes of it, which a run may go on with."""
    partitioned, _ = _train(0, 1, None)
    network, _ = make("bert", "lora")
    engine = Engine(network, EngineConfig(), weight_decay=WEIGHT_DECAY, device=CPU, state=partitioned)
    whole = state_on_first_worker(engine)
    engine.close()
    return partitioned, whole


def test_a_run_may_go_on_with_whole_weights(worlds: dict[int, World]) -> None:
    partitioned, whole = worlds[1].run(_handed_over)
    for key in ("weights", "exp_avg", "exp_avg_sq"):
        found, expected = getattr(whole, key), getattr(partitioned, key)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def _bad_step() -> tuple[float, bool, float]:
    network, adapted = make("bert", "lora")
    engine = engine_of(network, adapted, clipping=CLIPPING)
    before = state_on_first_worker(engine)
    bad = tasks(2)
    if torch.distributed.get_rank() == 0:
        adapter = network.lora_scale
        network.lora[0].scale = math.nan
    skipped, _ = outer_step(engine, bad, (1, 1), second_order=True)
    if torch.distributed.get_rank() == 0:
        network.lora[0].scale = adapter
    after = state_on_first_worker(engine)
    same = after is None or all(torch.equal(after.weights[name], before.weights[name]) for name in after.weights)
    good, _ = outer_step(engine, bad, (1, 1), second_order=True)
    engine.close()
    return skipped, same, good


def test_a_gradient_that_is_not_finite_changes_nothing_and_leaves_nothing_behind(worlds: dict[int, World]) -> None:
    skipped, same, good = worlds[2].run(_bad_step)
    assert (skipped, same) == (math.inf, True)
    network, adapted = make("bert", "lora")
    expected, _ = reference_mean(*in_float64(network), adapted, tasks(2), second_order=True)
    assert good == pytest.approx(norm(expected), rel=1e-4)


def _offloaded(offload: bool) -> EngineState | None:
    """After a step with text, and one without, in which the language model's head has no gradient."""
    engine = engine_of(*make("bert", "bias"), offload_optimizer=offload)
    outer_step(engine, tasks(2), (1, 1), second_order=False, texts=share(texts(), (2, 1)))
    outer_step(engine, tasks(2), (1, 1), second_order=False)
    state = state_on_first_worker(engine)
    engine.close()
    return state


def test_offloading_trains_the_same(worlds: dict[int, World]) -> None:
    offloaded, plain = (worlds[2].run(_offloaded, offload) for offload in (True, False))
    for key in ("weights", "exp_avg", "exp_avg_sq"):
        found, expected = getattr(offloaded, key), getattr(plain, key)
        assert difference(dict(found), dict(expected)) < 1e-6
