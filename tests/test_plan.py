"""The memory of a plan: its formulas against DeepSpeed's own and what an engine really holds."""

import gc
import re
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.engine import MEMORY_OPT_ALLREDUCE_SIZE
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distmeta.config import Config, load_config, with_values
from distmeta.engine import deepspeed_engine
from distmeta.engine.config import EngineConfig
from distmeta.errors import UserError
from distmeta.plan import check_memory, check_model_states_fit, make_plan
from distmeta.plan.memory import SIZES, choose_weights, gib, network_sizes
from distmeta.plan.states import ALLREDUCE_BUFFER, FLOAT, LARGEST_BUCKET, ModelStates
from distmeta.recipes import filled
from distmeta.rundir import RunDirectory
from distmeta.setup import resolve
from tests.workers import World


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


BETWEEN = [pytest.param(3, stage, marks=pytest.mark.slow) for stage in (1, 2)]


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (1, 2), (1, 3), (3, 3), *BETWEEN], indirect=["world"])
def test_an_engine_holds_what_the_formulas_say(world: tuple[int, World], stage: int):
    workers, processes = world
    numbers, resident, most = processes.run(engine_bytes, stage)
    states = ModelStates(numbers, numbers, workers, stage)
    print(f"ZeRO {stage}, {workers} workers:", *(f"{held / numbers / FLOAT:.2f}" for held in (resident, most)))
    assert resident == pytest.approx(states.resident, rel=0.03)
    assert most == pytest.approx(states.peak, rel=0.1)


@pytest.mark.parametrize(("world", "stage"), [(1, 3), (3, 3), BETWEEN[0]], indirect=["world"])
def test_with_offloading_the_host_holds_what_the_formulas_say(world: tuple[int, World], stage: int):
    """On a CPU the host's memory is the worker's, and both add up to what is measured."""
    workers, processes = world
    numbers, resident, most = processes.run(engine_bytes, stage, True)
    states = ModelStates(numbers, numbers, workers, stage, offload=True)
    assert resident == pytest.approx(states.resident + states.host, rel=0.06)
    assert most == pytest.approx(states.peak + states.host, rel=0.06)


def test_a_run_that_cannot_fit_is_refused_with_what_would_fit():
    config = filled(Config())
    config.train.num_workers, config.meta.meta_batch_size = 4, 4
    states = [each.peak + each.checkpoint for each in (ModelStates(10**9, 10**9, 4, stage) for stage in range(4))]
    plan = dict.fromkeys(SIZES, 10**9) | {"peak_memory_bytes": states[0]}
    check_memory(plan, states[0], config)
    with pytest.raises(UserError, match=r"needs 23\.28 GiB, --memory gives it .* set engine\.zero_stage 1, which"):
        check_memory(plan, states[1] * 1.01, config)
    with pytest.raises(UserError, match=r"engine\.zero_stage \d, train\.num_workers \d+, meta\.meta_batch_size \d+,"):
        check_memory(plan, min(states) * 0.95, config)


BERT_LARGE = (
    "model.config={model_type: bert, hidden_size: 1024, num_hidden_layers: 24, num_attention_heads: 16, "
    "intermediate_size: 4096, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
)
PROTONET = ["meta.algorithm=protonet", "meta.distance=cosine", "meta.learn_temperature=true"]


def refused(overrides: list[str], memory_bytes: float) -> str:
    """Why a run cannot fit; nothing where it can."""
    config = resolve(load_config(None, overrides))
    choose_weights(config, lambda _: None, memory_bytes)
    try:
        check_model_states_fit(config, memory_bytes)
    except UserError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize(
    ("overrides", "gibibytes", "named"),
    [
        *(
            ([f"meta.algorithm={name}"], memory, "meta.algorithm fomaml, meta.adapt lora")
            for name in ("anil", "protomaml", "reptile")
            for memory in (1.0, 2.3)
        ),
        (PROTONET, 1.0, "meta.algorithm fomaml, meta.distance euclidean, meta.learn_temperature false"),
        (["meta.algorithm=metasgd"], 1.0, "meta.algorithm fomaml"),
        (["meta.algorithm=protomaml", "meta.second_order=true", "meta.recompute=true"], 1.0, "meta.second_order null"),
        (["meta.algorithm=reptile", "train.num_workers=4"], 5.5, "set engine.zero_stage 1, which"),
        (["meta.algorithm=maml", "engine.precision=bf16"], 2.3, "engine.precision fp32, meta.adapt lora"),
        (["train.select_by=prototype", "engine.zero_stage=3"], 2.3, "set engine.weights partitioned, train.select_by"),
        (
            ["engine.computation=bucketed", "meta.inner_clipping=1.0"],
            1.0,
            "engine.computation auto, meta.inner_clipping 0",
        ),
        (["engine.tasks_at_a_time=4"], 1.0, "engine.tasks_at_a_time 1"),
        (["meta.meta_batch_size=1"], 1.0, "meta.meta_batch_size 16"),
        (["meta.adapt=head", "meta.inner_optimizer=adam", "engine.zero_stage=3"], 1.0, "inner_optimizer sgd, train"),
    ],
)
def test_what_a_refusal_names_is_accepted(overrides: list[str], gibibytes: float, named: str):
    overrides = [BERT_LARGE, *overrides]
    refusal = refused(overrides, gibibytes * 2**30)
    assert named in refusal
    (remedy,) = re.findall(r": set (.*), which needs", refusal)
    assert not refused([*overrides, *(each.replace(" ", "=", 1) for each in remedy.split(", "))], gibibytes * 2**30)


def test_a_refusal_says_where_nothing_fits():
    refusal = refused([BERT_LARGE, "meta.algorithm=anil"], 2**26)
    least = re.search(
        r"no ZeRO stage and no number of workers .* to need is (0\.\d\d) GiB \(.*fomaml.*\): take a", refusal
    )
    assert least
    assert float(least[1]) * 2**30 > 2**26


def chosen(config: Config, memory_bytes: float | None) -> tuple[str, str]:
    """What auto comes to for a copy, and the line that says so."""
    config, lines = config.model_copy(deep=True), []
    choose_weights(config, lines.append, memory_bytes)
    (line,) = lines
    return config.engine.weights, line


def test_weights_are_partitioned_where_they_have_to_be_and_can_be(monkeypatch: pytest.MonkeyPatch):
    config = filled(Config())
    config.engine.zero_stage, config.train.num_workers, config.meta.adapt = 3, 4, "lora"
    sizes = network_sizes(config, config.tokenizer.vocab_size)
    states = ModelStates(sizes.parameters, sizes.trained, 4, 3, sizes.adapted)
    needed = states.peak + states.checkpoint
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
    config = filled(Config())
    config.engine.zero_stage, config.train.num_workers, config.meta.meta_batch_size = 3, 4, 4
    config.meta.adapt = "head"
    states = ModelStates(10**9, 10**9, 4, 3)
    whole = states.peak + states.checkpoint
    plan = dict(zip(SIZES, (10**9, 10**9, 0, 10**7), strict=True)) | {"peak_memory_bytes": whole}
    with pytest.raises(
        UserError, match=r"stage 3 with whole weights .*: set engine\.weights partitioned, which needs 10\."
    ):
        check_memory(plan, whole * 0.55, config)


def huge() -> Config:
    config = filled(Config())
    config.model.config = {"model_type": "gpt2", "n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 64}
    return resolve(config)


def test_a_model_that_is_far_too_large_is_refused_before_anything_is_made(tmp_path: Path):
    config = huge()
    started = time.process_time()
    with pytest.raises(UserError, match=r"weights partitioned, meta\.adapt lora, train\.num_workers 512"):
        check_model_states_fit(config, 24 * 2**30)
    assert time.process_time() - started < 2
    sizes = network_sizes(config, 8)
    states = ModelStates(sizes.parameters, sizes.trained, 1, 0, sizes.adapted)
    needed = states.peak + states.checkpoint
    check_model_states_fit(config, needed)
    with pytest.raises(UserError, match="--memory gives it"):
        make_plan(config, RunDirectory(tmp_path / "run"), rate=None, say=lambda _: None, memory_bytes=needed * 0.99)
    assert not list(tmp_path.iterdir())
