"""The plan: its formulas against DeepSpeed's own and what an engine really holds, and the whole against a run."""

import gc
import json
import multiprocessing
import re
import resource
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deepspeed.runtime.engine import MEMORY_OPT_ALLREDUCE_SIZE
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from distmeta.config import Config, load_config, with_values
from distmeta.corpus.executor import LocalExecutor
from distmeta.engine import deepspeed_engine
from distmeta.engine.config import EngineConfig
from distmeta.errors import UserError
from distmeta.meta import Learner
from distmeta.pipeline import open_run, prepare_with
from distmeta.plan import (
    asha_share,
    calibrate,
    check_memory,
    check_model_states_fit,
    make_plan,
    plan_table,
    sweep_totals,
)
from distmeta.plan.memory import SIZES, Sizes, choose_weights, gib, network_sizes
from distmeta.plan.states import ALLREDUCE_BUFFER, FLOAT, LARGEST_BUCKET, ModelStates
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, resolve
from distmeta.train.work import WorkSource
from tests.commands import distmeta
from tests.corpora import TINY_MODEL, tiny_config, write_labelled_csv
from tests.workers import World

# Memory, against DeepSpeed


@pytest.mark.parametrize("parameters", [1_000_000, 40_000_000, 7_000_000_000])
@pytest.mark.parametrize("workers", [1, 2, 16])
def test_model_states_are_deepspeed_s_own_estimate_in_fp32(parameters: int, workers: int):
    """At stage 2 DeepSpeed counts 2 bytes of whole weights and shares out 18: half gradients, and fp32 weights,
    gradients and moments. Here whole weights take 4, and between two steps there are no gradients (2 + 4 shared)."""
    _, theirs = estimate_zero2_model_states_mem_needs(
        parameters, num_gpus_per_node=workers, num_nodes=1, cpu_offload=False, additional_buffer_factor=1.0
    )
    ours = ModelStates(parameters, parameters, workers, 2)
    assert ours.resident == pytest.approx(theirs + 2 * parameters - 6 * parameters / workers, rel=1e-6)

    # At stage 3 DeepSpeed shares out 18 bytes; 2 more are the other half of fp32 weights.
    largest_layer = 1000
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        parameters, largest_layer, workers, 1, False, False, False, additional_buffer_factor=1.0
    )
    ours = ModelStates(parameters, parameters, workers, 3)
    expected = theirs - FLOAT * largest_layer + 2 * parameters / workers
    assert ours.resident - ours.bucket == pytest.approx(expected, rel=1e-6)


def test_the_buffers_are_those_of_the_engine_and_of_deepspeed():
    assert LARGEST_BUCKET == deepspeed_engine.LARGEST_BUCKET
    assert ALLREDUCE_BUFFER == MEMORY_OPT_ALLREDUCE_SIZE


class HeldBytes(TorchDispatchMode):
    """Counts the memory of all tensors of this process, shared memory once, while it is entered; `most` at its most."""

    def __init__(self) -> None:
        super().__init__()
        gc.collect()
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.now = self.most = 0
        for each in gc.get_objects():
            if type(each) in (torch.Tensor, nn.Parameter):
                self._count(each)

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or tensor.is_meta:
            return

        def freed(_: object) -> None:
            self.now -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, freed)
        self.now += size
        self.most = max(self.most, self.now)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self._count(each)
        return result


def engine_bytes(stage: int, offload: bool = False) -> tuple[int, int, int]:
    """Numbers of a network, and the bytes that its engine holds between steps and at most, as the loop takes them."""
    before = HeldBytes().now
    network = nn.Sequential(*(nn.Linear(150, 150) for _ in range(16)))
    numbers = sum(parameter.numel() for parameter in network.parameters())
    engine = deepspeed_engine.Engine(
        network,
        EngineConfig(zero_stage=stage, offload_optimizer=offload),
        weight_decay=0.0,
        device=torch.device("cpu"),
    )
    with engine.full_parameters() as parameters:
        gradients = {name: torch.ones_like(each) for name, each in parameters.items()}
    engine.step(gradients, 1e-3)
    with engine.full_parameters() as parameters, HeldBytes() as held:
        gradients = {name: torch.ones_like(each) for name, each in parameters.items()}
        engine.step(gradients, 1e-3)
    most = held.most - before
    del parameters, gradients, held
    resident = HeldBytes().now - before
    engine.close()
    return numbers, resident, most


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, World]]:
    world = World(request.param, tmp_path_factory.mktemp(f"world{request.param}"))
    yield request.param, world
    world.close()


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (1, 2), (1, 3), (3, 1), (3, 2), (3, 3)], indirect=["world"])
def test_an_engine_holds_what_the_formulas_say(world: tuple[int, World], stage: int):
    workers, processes = world
    numbers, resident, most = processes.run(engine_bytes, stage)
    states = ModelStates(numbers, numbers, workers, stage)
    print(f"ZeRO {stage}, {workers} workers:", *(f"{held / numbers / FLOAT:.2f}" for held in (resident, most)))
    assert resident == pytest.approx(states.resident, rel=0.03)
    assert most == pytest.approx(states.peak, rel=0.1)


@pytest.mark.parametrize(("world", "stage"), [(1, 3), (3, 1), (3, 3)], indirect=["world"])
def test_with_offloading_the_host_holds_what_the_formulas_say(world: tuple[int, World], stage: int):
    """On a CPU the host's memory is the worker's, and both add up to what is measured."""
    workers, processes = world
    numbers, resident, most = processes.run(engine_bytes, stage, True)
    states = ModelStates(numbers, numbers, workers, stage, offload=True)
    assert resident == pytest.approx(states.resident + states.host, rel=0.06)
    assert most == pytest.approx(states.peak + states.host, rel=0.06)


def test_a_run_that_cannot_fit_is_refused_with_what_would_fit():
    config = Config()
    config.train.num_workers, config.meta.meta_batch_size = 4, 4
    states = [ModelStates(10**9, 10**9, 4, stage).peak for stage in range(4)]
    plan = dict.fromkeys(SIZES, 10**9) | {"peak_memory_bytes": states[0]}
    check_memory(plan, states[0], config)
    with pytest.raises(UserError, match=r"needs 20\.49 GiB, --memory gives it .* engine\.zero_stage 1 needs"):
        check_memory(plan, states[1] * 1.01, config)
    with pytest.raises(UserError, match=r"engine\.zero_stage \d on train\.num_workers \d+ needs"):
        check_memory(plan, min(states) * 0.95, config)
    with pytest.raises(UserError, match="no ZeRO stage and no number of workers"):
        check_memory(plan, 10**9, config)


def chosen(config: Config, memory_bytes: float | None) -> tuple[str, str]:
    """What auto comes to for a copy, and the line that says so."""
    config, lines = config.model_copy(deep=True), []
    choose_weights(config, lines.append, memory_bytes)
    (line,) = lines
    return config.engine.weights, line


def test_weights_are_partitioned_where_they_have_to_be_and_can_be(monkeypatch: pytest.MonkeyPatch):
    config = Config()
    config.engine.zero_stage, config.train.num_workers, config.meta.adapt = 3, 4, "lora"
    sizes = network_sizes(config, config.tokenizer.vocab_size)
    needed = ModelStates(sizes.parameters, sizes.trained, 4, 3, sizes.adapted).peak
    weights, line = chosen(config, needed)
    assert weights == "whole"
    assert f"auto takes whole: a worker with whole weights needs {gib(needed)}" in line
    weights, line = chosen(config, needed * 0.99)
    assert weights == "partitioned"
    assert re.search(r"needs 0\.\d\d GiB .*, with partitioned ones 0\.\d\d GiB, --memory gives it 0\.\d\d GiB", line)

    # Told, at another stage, for another algorithm, or where it does not help, whole is what is checked and refused.
    told, lines = config.model_copy(deep=True), []
    told.engine.weights = "whole"
    choose_weights(told, lines.append, 1.0)
    assert (told.engine.weights, lines) == ("whole", [])
    for key, value in (("engine.zero_stage", 1), ("meta.algorithm", "reptile"), ("train.select_by", "prototype")):
        weights, line = chosen(with_values(config, {key: value}), needed * 0.5)
        assert weights == "whole"
        assert "partitioned" not in line
    assert chosen(config, 1000.0)[0] == "whole"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "not known here" in chosen(config, None)[1]


def test_partitioned_weights_are_what_a_refusal_points_to():
    config = Config()
    config.engine.zero_stage, config.train.num_workers, config.meta.meta_batch_size = 3, 4, 4
    config.meta.adapt = "head"
    whole = ModelStates(10**9, 10**9, 4, 3).peak
    plan = dict(zip(SIZES, (10**9, 10**9, 0, 10**7), strict=True)) | {"peak_memory_bytes": whole}
    with pytest.raises(
        UserError, match=r"stage 3 with whole weights .*: .* 3 with engine\.weights partitioned needs 7\."
    ):
        check_memory(plan, whole * 0.5, config)
    config.meta.algorithm = "reptile"
    with pytest.raises(UserError, match=r": engine\.zero_stage 3 on train\.num_workers \d+ needs|makes it fit"):
        check_memory(plan, whole * 0.5, config)


def huge() -> Config:
    config = Config()
    config.model.config = {"model_type": "gpt2", "n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 64}
    return resolve(config)


def test_a_model_that_is_far_too_large_is_refused_before_anything_is_made(tmp_path: Path):
    config = huge()
    started = time.perf_counter()
    with pytest.raises(
        UserError, match=r"weights partitioned and meta\.adapt head \(or lora\) on train\.num_workers 256"
    ):
        check_model_states_fit(config, 24 * 2**30)
    assert time.perf_counter() - started < 2
    sizes = network_sizes(config, 1)
    needed = ModelStates(sizes.parameters, sizes.trained, 1, 0, sizes.adapted).peak
    check_model_states_fit(config, needed)
    with pytest.raises(UserError, match="--memory gives it"):
        make_plan(config, RunDirectory(tmp_path / "run"), rate=None, say=lambda _: None, memory_bytes=needed * 0.99)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("adapt", ["all", "lora"])
@pytest.mark.parametrize("lm_weight", [0.0, 1.0])
def test_parameters_are_counted_as_the_network_has_them(
    opened: tuple[Config, RunDirectory], adapt: str, lm_weight: float
):
    config, run = opened[0].model_copy(deep=True), opened[1]
    config.meta.adapt, config.meta.lm_weight, config.meta.lm_warmup_steps = adapt, lm_weight, 0
    config.meta.freeze_lowest, config.meta.algorithm = 1, "leopard"
    setup = Setup(config, run)
    expected = Sizes.of(setup.network(), config)
    assert expected.trained < expected.parameters
    assert network_sizes(config, len(setup.tokenizer)) == expected
    # What is checked first of all never counts more.
    assert network_sizes(config, 1).parameters < expected.parameters


# Operations, time and money


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunDirectory]:
    folder = tmp_path_factory.mktemp("plan")
    tree = tiny_config(
        write_labelled_csv(folder / "texts.csv"),
        # As torch counts: no text is padded, as all are cut off at the same length, and attention is made of products.
        tokenizer={"vocab_size": 600, "max_length": 8},
        model={"config": TINY_MODEL, "attention": "eager"},
        engine={"computation": "plain"},  # the others leave out what the algorithm asks for and need not be done
        meta={"lm_warmup_steps": 4, "lm_weight": 1.0, "inner_lr": 0.05, "inner_steps": 2, "meta_batch_size": 4},
        train={"outer_steps": 50, "validate_every": 10, "checkpoint_every": 25, "num_workers": 2},
        tracking={"price_per_worker_hour": 3.6},
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    config, run = open_run(folder / "run.yaml", [], folder / "run")
    prepare_with(LocalExecutor(), config, run, lambda _: None)
    return config, run


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_the_operations_of_a_step_are_those_that_torch_counts(opened: tuple[Config, RunDirectory], algorithm: str):
    config, run = opened[0].model_copy(deep=True), opened[1]
    config.meta.algorithm = algorithm
    plan = make_plan(config, run, rate=1e9, say=lambda _: None)
    setup = Setup(config, run)
    network = setup.network()
    learner = Learner(network, config.meta, "fp32", 0)
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    source = WorkSource(setup, torch.device("cpu"), 0, 1)
    steps = range(4, 6)
    counted = 0
    for step in steps:
        with FlopCounterMode(display=False) as counter:
            learner.gradient(parameters, source.take(step), config.meta.meta_batch_size)
        counted += counter.get_total_flops()
    source.close()
    print(algorithm, plan["flops_per_step"] / (counted / len(steps)))
    assert plan["flops_per_step"] == pytest.approx(counted / len(steps), rel=0.05)
    assert plan["flops"] == pytest.approx(46 * plan["flops_per_step"] + 4 * plan["flops_per_warmup_step"])
    assert plan["wall_seconds"] == pytest.approx(plan["flops"] / 2e9)
    assert plan["cost"] == pytest.approx(2 * plan["wall_seconds"] * 3.6 / 3600)
    assert all(len(line) <= 100 for line in plan_table(plan).splitlines())


def test_a_rate_needs_no_deepspeed_and_no_ray(opened: tuple[Config, RunDirectory]):
    """Case C4."""
    _, run = opened
    code = (
        "import sys; from pathlib import Path; from distmeta.sweep.command import plan; run = Path(sys.argv[1])\n"
        "plan(run.parent / 'run.yaml', [], run, rate=1e9, memory=None, say=print)\n"
        "print(sorted({'deepspeed', 'ray'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_a_sweep_takes_what_its_scheduler_leaves():
    plan: dict[str, Any] = {"wall_seconds": 100.0, "worker_seconds": 200.0, "flops": 5.0, "currency": "USD"}
    total = sweep_totals(plan, num_trials=9, concurrent=2, expected_share=0.5, price=36.0)
    assert (total["wall_seconds"], total["worker_seconds"], total["flops"]) == (250.0, 900.0, 22.5)
    assert total["cost"] == pytest.approx(9.0)
    assert total["run"] == plan


@pytest.mark.parametrize(
    ("max_steps", "grace", "factor", "share"),
    [(100, 100, 3, 1.0), (100, 200, 3, 1.0), (90, 10, 3, (10 + 20 / 3 + 60 / 9) / 90), (40, 20, 2, 0.75)],
)
def test_the_share_of_successive_halving(max_steps: int, grace: int, factor: int, share: float):
    assert asha_share(max_steps, grace, factor) == pytest.approx(share)


# The plan against what happens


def test_steps_are_run_and_what_the_command_takes_is_added_up(opened: tuple[Config, RunDirectory]):
    config, run = opened[0].model_copy(deep=True), opened[1]
    config.train.num_workers = 1
    largest = torch.ones(10**9 // FLOAT)  # a calibration is not to count what the process that asks for it once held
    del largest
    plan = make_plan(config, run, rate=None, say=lambda _: None)
    assert plan["peak_memory_bytes"] < 1e9 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert plan["peak_memory_bytes"] == pytest.approx(sum(plan["memory"].values()))
    assert min(plan["memory"].values()) > 0 < plan["memory"]["without_model"] > 0.5 * plan["peak_memory_bytes"]
    parts = [plan[f"{part}_seconds"] for part in ("wall", "startup", "export", "evaluation")]
    assert min(parts) > 0
    assert plan["command_seconds"] == pytest.approx(sum(parts))
    assert plan["wall_seconds"] == pytest.approx(sum(plan["seconds_of"].values()))
    table = plan_table(plan)
    print(table)
    assert "without a model" in table
    assert "the whole command" in table
    assert all(len(line) <= 100 for line in table.splitlines())


def processes_of_a_calibration() -> list[multiprocessing.process.BaseProcess]:
    return [each for each in multiprocessing.active_children() if each.name.startswith("SpawnProcess")]


def test_a_calibration_that_takes_too_long_is_ended(
    opened: tuple[Config, RunDirectory], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibrate, "PATIENCE", 0.5)
    with pytest.raises(UserError, match=r"not done in .* give --rate"):
        calibrate.calibrate(*opened)
    assert not processes_of_a_calibration()


def test_a_process_of_the_calibration_that_the_system_kills_is_told(opened: tuple[Config, RunDirectory]):
    def kill() -> None:
        while not (processes := processes_of_a_calibration()):
            time.sleep(0.05)
        processes[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="was killed"):
        calibrate.calibrate(*opened)
    killer.join()
    assert not processes_of_a_calibration()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_time_within_a_fifth_and_memory_within_a_tenth(workers: int, tmp_path: Path):
    demo = load_config(Path(__file__).parent.parent / "jobs" / "configs" / "demo.yaml")
    assert demo.train.outer_steps == 760
    config = Path(__file__).parent.parent / "jobs" / "configs" / "demo.yaml"
    options = ["meta.lm_warmup_steps=120", "train.outer_steps=160", "evaluate.episodes=5", "corpus.executor=local"]
    options += [f"train.num_workers={workers}", "train.validate_every=40", "tracking.wandb=offline"]
    arguments = ["--config", config, *(part for option in options for part in ("--set", option)), "--run-dir", "run"]
    distmeta("plan", *arguments, cwd=tmp_path)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    started = time.perf_counter()
    distmeta("pretrain", *arguments, cwd=tmp_path, timeout=600)
    taken = time.perf_counter() - started
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    print({key: (plan[key], summary[key]) for key in ("wall_seconds", "peak_memory_bytes", "flops")})
    print({key: plan[key] for key in ("command_seconds", "memory", "evaluation_seconds")}, f"command {taken:.0f} s")
    assert plan["wall_seconds"] == pytest.approx(summary["wall_seconds"], rel=0.2)
    assert plan["peak_memory_bytes"] == pytest.approx(summary["peak_memory_bytes"], rel=0.1)
    assert plan["flops"] == pytest.approx(summary["flops"], rel=0.1)
