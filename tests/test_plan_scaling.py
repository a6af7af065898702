"""The model of an outer step on many workers: its formulas, what is really sent, and what `plan` makes of it."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distmeta.config import Config
from distmeta.corpus.executor import LocalExecutor
from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import Engine
from distmeta.opening import open_run
from distmeta.plan import make_plan, plan_table
from distmeta.plan.profile import dry_run, profile_of
from distmeta.plan.projection import numbers_of_workers, shape_of
from distmeta.plan.scaling import (
    Collective,
    Network,
    Profile,
    collectives_of_partitioned,
    collectives_of_whole,
    step_time,
)
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from tests.corpora import TINY_MODEL, tiny_config, write_labelled_csv
from tests.engine_runs import CPU, STAGES
from tests.sharded import engine_of, make, tasks
from tests.workers import World, worlds_of

NETWORK = Network(bandwidth=1e9, latency=1e-4)


@pytest.mark.parametrize(
    ("kind", "workers", "rounds"), [("all-reduce", 2, 2), ("all-gather", 8, 1), ("reduce-scatter", 1024, 1)]
)
def test_a_ring_sends_a_part_to_each_other_worker(kind: Any, workers: int, rounds: int):
    collective = Collective(kind, 1e6, calls=3)
    nccl = Network(NETWORK.bandwidth, NETWORK.latency, is_nccl=True)
    assert nccl.sent(collective, workers) == pytest.approx(rounds * (workers - 1) / workers * 1e6)
    ring = 3 * rounds * (workers - 1) * 1e-4 + nccl.sent(collective, workers) / 1e9
    assert NETWORK.seconds(Collective(kind, 1e6, calls=3), workers) == pytest.approx(
        ring + (kind == "reduce-scatter") * ring  # gloo reduces to all
    )
    assert NETWORK.seconds(collective, 1) == 0


def test_nccl_reduces_little_in_a_tree_and_much_in_a_ring():
    nccl = Network(NETWORK.bandwidth, NETWORK.latency, is_nccl=True)
    assert nccl.seconds(Collective("all-reduce", 8), 1024) == pytest.approx(2 * 10 * 1e-4, rel=1e-3)
    much = Collective("all-reduce", 1e9)
    assert nccl.seconds(much, 4) == NETWORK.seconds(much, 4) == pytest.approx(1.5, rel=1e-3)


def test_workers_wait_for_the_one_with_more_tasks_larger_ones_or_a_slower_step():
    profile = Profile(per_task=1.0, fixed=0.5, update=1.0, contention=2.0)

    def step(profile: Profile = profile, workers: int = 4, tasks: int = 8, stage: int = 0, **more: Any) -> Any:
        return step_time(profile, NETWORK, [], workers=workers, tasks=tasks, stage=stage, **more)

    assert (step().computing, step().waiting) == (2 * 3.5, 0)
    assert step(workers=1).computing == 9.5  # nobody beside it
    assert step(tasks=9).waiting == pytest.approx(2 * (3 - 9 / 4))
    assert step(stage=1).computing == 2 * (0.5 + 1 / 4 + 2)
    uneven = step(workers=1000, tasks=1000, sizes=[1, 3])
    assert uneven.computing + uneven.waiting == pytest.approx(2 * (1.5 + 1.5), rel=1e-3)  # one has the larger
    varying = Profile(per_task=1.0, variation=(1.0, 1.0, 1.0, 1.5))
    few, many = (step(varying, workers=workers, tasks=workers).waiting for workers in (2, 64))
    assert 0.1 < few < 0.4
    assert many == pytest.approx(0.5, rel=1e-3)


def test_a_profile_is_what_the_metrics_say():
    def rows(tasks: int, slower: float = 1.0) -> list[dict[str, float]]:
        times = {"data": 0.1 * tasks, "inner": tasks, "outer": 0.4 + 0.9 * tasks}
        times = {f"time/{name}": slower * value for name, value in times.items()}
        others = {"time/communication": 0.01, "time/optimizer": 0.2, "training/tokens": 10 * tasks}
        return [{}, *3 * [times | others]]

    profile = profile_of(rows(1), rows(3), 3, rows(3, slower=1.25))
    assert (profile.per_task, profile.fixed) == (pytest.approx(2.0), pytest.approx(0.41))
    assert (profile.update, profile.contention) == (0.2, pytest.approx(1.25))
    assert profile.variation == (1.0,) * 6


class Calls(TorchDispatchMode):
    """Counts the collectives of this process by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.count[func._opname] = self.count.get(func._opname, 0) + 1
        return func(*args, **(kwargs or {}))


KINDS = {"allreduce_": "all-reduce", "_reduce_scatter_base_": "reduce-scatter", "_allgather_base_": "all-gather"}


def _written() -> int:
    """Bytes that this process has written so far: gloo writes what it sends to sockets, and no one else writes here."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def _sent(step: Any) -> tuple[int, dict[str, int]]:
    """Bytes that this worker sends in a step, and its calls by kind."""
    torch.distributed.barrier()
    time.sleep(0.1)  # the others have passed too
    before = _written()
    with Calls() as calls:
        step()
    time.sleep(0.1)
    return _written() - before, {KINDS[name]: count for name, count in calls.count.items()}


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(200, 200) for _ in range(5))
        self.frozen = nn.Parameter(torch.zeros(300, 300), requires_grad=False)


def _whole(stage: int) -> tuple[Any, int, dict[str, int]]:
    module = Layers()
    shape = shape_of(module)
    engine = Engine(module, EngineConfig(zero_stage=stage), weight_decay=0.1, device=CPU)

    def step() -> None:
        with engine.full_parameters() as parameters:
            gradients = {name: torch.ones_like(value) for name, value in parameters.items() if name != "frozen"}
        engine.step(gradients, 1e-3)
        torch.distributed.all_reduce(torch.zeros(1))  # the loop's metrics

    found = _sent(step)
    engine.close()
    return shape, *found


def _partitioned(second_order: bool) -> tuple[Any, int, dict[str, int]]:
    network, adapted = make("bert", "lora")
    shape = shape_of(network)
    engine = engine_of(network, adapted)

    def step() -> None:
        engine.meta_gradient_step(
            tasks(2), 4, 1e-3, inner_lr=0.1, inner_steps=3, second_order=second_order, texts=(), seeds=(0, 1)
        )
        torch.distributed.all_reduce(torch.zeros(1))

    found = _sent(step)
    engine.close()
    return shape, *found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 2) as made:
        yield made[2]


def _by_kind(collectives: list[Collective]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in collectives:
        counts[each.kind] = counts.get(each.kind, 0) + each.calls
    return counts


@pytest.mark.parametrize("stage", STAGES)
def test_as_much_is_sent_as_the_model_says(world: World, stage: int):
    shape, sent, calls = world.run(_whole, stage)
    collectives = collectives_of_whole(shape, stage)
    assert calls == _by_kind(collectives)
    assert sent == pytest.approx(sum(NETWORK.sent(each, 2) for each in collectives), rel=0.02)


@pytest.mark.parametrize("second_order", [False, True])
def test_as_much_is_sent_with_partitioned_weights_at_most(world: World, second_order: bool):
    """In this network most of an inner pass's way back is left out: the word embeddings are a large part of it."""
    shape, sent, calls = world.run(_partitioned, second_order)
    inner, outer = 2 * 3, 2 * (1 + (6 if second_order else 0))
    collectives = collectives_of_partitioned(shape, inner, outer)
    assert 0.7 < sent / sum(NETWORK.sent(each, 2) for each in collectives) < 1.02
    assert calls["all-reduce"] == 6
    assert 0.7 < calls["all-gather"] / _by_kind(collectives)["all-gather"] < 1.02


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunDirectory]:
    folder = tmp_path_factory.mktemp("plan")
    tree = tiny_config(
        write_labelled_csv(folder / "texts.csv"),
        tokenizer={"vocab_size": 600, "max_length": 8},
        model={"config": TINY_MODEL},
        meta={"lm_warmup_steps": 4, "lm_weight": 1.0, "inner_lr": 0.05, "inner_steps": 2, "meta_batch_size": 6},
        train={"outer_steps": 50, "num_workers": 2},
        tracking={"price_per_worker_hour": 3.6},
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    config, run = open_run(folder / "run.yaml", [], folder / "run")
    prepare_with(LocalExecutor(), config, run, lambda _: None)
    return config, run


def _rows(plan: Mapping[str, Any], key: str) -> list[Any]:
    return [row[key] for row in plan["scaling"]]


def test_a_plan_says_what_more_workers_would_bring(opened: tuple[Config, RunDirectory]):
    plan = make_plan(*opened, rate=1e9, say=lambda _: None, workers=20, bandwidth=1e20)
    assert _rows(plan, "workers") == [1, 2, 4, 8, 16, 20]
    assert _rows(plan, "meta_batch_size") == [6, 6, 6, 8, 16, 20]
    task = plan["flops_per_step"] / 6 / 1e9
    slowest = [
        computing + waiting for computing, waiting in zip(_rows(plan, "computing"), _rows(plan, "waiting"), strict=True)
    ]
    assert slowest == pytest.approx([6 * task, 3 * task, 2 * task, task, task, task])
    assert plan["scaling"][0]["wall_seconds"] == pytest.approx(plan["flops"] / 1e9)
    for row in plan["scaling"]:
        assert row["cost"] == pytest.approx(row["wall_seconds"] * row["workers"] / 1000)
        assert row["efficiency"] == pytest.approx(
            row["meta_batch_size"] * 6 * task / 6 / row["seconds_per_step"] / row["workers"]
        )
    text = plan_table(plan)
    assert "with more than 6 workers meta.meta_batch_size has to grow" in text
    assert max(map(len, text.splitlines())) <= 115
    slower = make_plan(*opened, rate=1e9, say=lambda _: None, workers=20, bandwidth=1e6)
    assert slower["scaling"][-1]["exchanging"] > 10 * plan["scaling"][-1]["exchanging"]
    assert numbers_of_workers(64) == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "weights"), [(1, "whole"), (3, "whole"), (3, "partitioned")])
def test_one_of_many_workers_is_tried_out(opened: tuple[Config, RunDirectory], stage: int, weights: str):
    config, run = opened[0].model_copy(deep=True), opened[1]
    config.engine.zero_stage, config.engine.weights = stage, weights
    assert 2e8 < dry_run(config, run, 64) < 2e9
