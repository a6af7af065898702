"""The engine, with real DeepSpeed and gloo, on 1, 2 and 3 workers.

The workers are started once, without a compiler, and make one engine after the other. All of them are held against
`plain_adamw`, which is AdamW of torch in this process.
"""

import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from distmeta.engine.checkpoint import read_checkpoint, write_checkpoint
from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from tests.workers import World

CPU = torch.device("cpu")
STAGES = (0, 1, 2, 3)
WORLDS = (1, 2, 3)
TASKS = 6  # of an outer step, over all workers
STEPS = 6
HALFWAY = 3
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.1
CLIPPING = 1.0  # lies between the norms that occur

Tensors = dict[str, torch.Tensor]


class TinyModel(nn.Module):
    """Sizes that 2 and 3 workers cannot share evenly, a tied parameter and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 5)
        self.norm = nn.LayerNorm(5)
        self.linear = nn.Linear(5, 3)
        self.output = nn.Linear(5, 7)
        self.output.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)


def gradient(parameters: Tensors, step: int, rank: int, world_size: int) -> Tensors:
    """A worker's mean over its share of the tasks: another for every step and task, and for other weights."""
    total = {name: torch.zeros_like(p) for name, p in parameters.items() if name != "frozen"}
    for task in range(rank, TASKS, world_size):
        generator = torch.Generator().manual_seed(1000 * step + task)
        for name, sum_of_tasks in total.items():
            sum_of_tasks += torch.randn(sum_of_tasks.shape, generator=generator) + parameters[name]
    scale = 1.0 if step % 2 else 0.1  # clipped in every second step
    return {name: sum_of_tasks * scale * world_size / TASKS for name, sum_of_tasks in total.items()}


def train(
    engine: Engine, first: int, last: int, change: Callable[[Tensors, int, int], None] | None = None
) -> list[float]:
    """Outer steps `first` to `last`; returns the norms. `change` alters a worker's gradients, given step and rank."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    norms = []
    for step in range(first, last):
        with engine.full_parameters() as parameters:
            gradients = gradient(parameters, step, rank, world_size)
        if change is not None:
            change(gradients, step, rank)
        norms.append(engine.step(gradients, LEARNING_RATE))
    return norms


def make_engine(stage: int, clipping: float, state: EngineState | None = None, offload: bool = False) -> Engine:
    config = EngineConfig(zero_stage=stage, gradient_clipping=clipping, offload_optimizer=offload)
    return Engine(TinyModel(), config, weight_decay=WEIGHT_DECAY, device=CPU, state=state)


def save(engine: Engine, directory: Path, norms: list[float]) -> None:
    state = engine.state()
    if torch.distributed.get_rank() == 0:
        write_checkpoint(directory, state, {"outer_step": state.step, "norms": norms})
    else:
        state.take_part()
    torch.distributed.barrier()


def plain_adamw(clipping: float, drop: str | None = None) -> tuple[EngineState, list[float]]:
    """What the engine has to come to, by torch alone: one process with the mean gradient of all tasks."""
    model = TinyModel()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = [p for p in trained.values() if p.ndim > 1]
    others = [p for p in trained.values() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)
    norms = []
    for step in range(STEPS):
        mean = gradient({name: p.detach() for name, p in model.named_parameters()}, step, rank=0, world_size=1)
        for name, parameter in trained.items():
            parameter.grad = torch.zeros_like(parameter) if name == drop else mean[name]
        norms.append(float(nn.utils.clip_grad_norm_(trained.values(), clipping or math.inf)))
        optimizer.step()
    moments = {key: {n: optimizer.state[p][key] for n, p in trained.items()} for key in ("exp_avg", "exp_avg_sq")}
    return EngineState(STEPS, {n: p.detach() for n, p in model.named_parameters()}, **moments), norms


def largest_difference(one: EngineState, other: EngineState) -> float:
    assert one.step == other.step
    differences = []
    for key in ("weights", "exp_avg", "exp_avg_sq"):
        mine, theirs = getattr(one, key), getattr(other, key)
        assert mine.keys() == theirs.keys()
        differences += [float((mine[name] - theirs[name]).abs().max()) for name in mine]
    return max(differences)


# The workers


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    folder = tmp_path_factory.mktemp("worlds")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DS_ACCELERATOR", "cpu")
        environment.setenv("CC", "/bin/false")
        environment.setenv("CXX", "/bin/false")
        environment.delenv("CUDA_HOME", raising=False)
        environment.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
        made = {}
        for size in WORLDS:
            (folder / str(size)).mkdir()
            made[size] = World(size, folder / str(size))
    yield made
    for world in made.values():
        world.close()


# Equal to plain AdamW


def _train_all_stages(folder: Path) -> None:
    for stage in STAGES:
        for clipping in (0.0, CLIPPING):
            engine = make_engine(stage, clipping)
            norms = train(engine, 0, HALFWAY)
            save(engine, folder / f"stage-{stage}-clipping-{clipping}-halfway", norms)
            norms += train(engine, HALFWAY, STEPS)
            save(engine, folder / f"stage-{stage}-clipping-{clipping}-end", norms)
            engine.close()


@pytest.fixture(scope="module")
def runs(worlds: dict[int, World], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every number of workers, stage and clipping, after HALFWAY steps and after STEPS."""
    folder = tmp_path_factory.mktemp("runs")
    for size, world in worlds.items():
        world.run(_train_all_stages, folder / str(size))
    return folder


@pytest.mark.parametrize("clipping", [0.0, CLIPPING])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", WORLDS)
def test_equals_plain_adamw(runs: Path, size: int, stage: int, clipping: float) -> None:
    state, progress, _ = read_checkpoint(runs / str(size) / f"stage-{stage}-clipping-{clipping}-end")
    expected, expected_norms = plain_adamw(clipping)
    difference = largest_difference(state, expected)
    print(f"{size} workers, stage {stage}, clipping {clipping}: largest difference {difference:.1e}")
    assert difference <= 1e-6
    assert progress["norms"] == pytest.approx(expected_norms, rel=1e-6)
    assert max(expected_norms) > CLIPPING > min(expected_norms)


# Resumed on another number of workers, at another stage


def _resume_all(runs: Path, folder: Path, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        for saved_stage in STAGES:
            saved, _, _ = read_checkpoint(runs / str(size) / f"stage-{saved_stage}-clipping-{CLIPPING}-halfway")
            for stage in STAGES:
                engine = make_engine(stage, CLIPPING, saved)
                train(engine, HALFWAY, STEPS)
                save(engine, folder / f"{size}-{saved_stage}-{stage}", [])
                engine.close()


@pytest.mark.parametrize("size", WORLDS)
def test_resumes_on_any_number_of_workers_at_any_stage(
    worlds: dict[int, World], runs: Path, tmp_path: Path, size: int
) -> None:
    saved_sizes = (2, 3) if size == 3 else WORLDS
    worlds[size].run(_resume_all, runs, tmp_path, saved_sizes)
    for saved_size in saved_sizes:
        for saved_stage in STAGES:
            end = f"stage-{saved_stage}-clipping-{CLIPPING}-end"
            left_alone, _, _ = read_checkpoint(runs / str(saved_size) / end)
            for stage in STAGES:
                resumed, _, _ = read_checkpoint(tmp_path / f"{saved_size}-{saved_stage}-{stage}")
                difference = largest_difference(resumed, left_alone)
                print(f"{saved_size} workers at {saved_stage}, then {size} at {stage}: {difference:.1e}")
                # Sums of three numbers depend on their order, and the stages reduce in different orders.
                if saved_size == size and (size < 3 or saved_stage == stage):
                    assert difference == 0.0
                assert difference <= 1e-6


def _state_before_the_first_step(folder: Path, stage: int) -> None:
    engine = make_engine(stage, CLIPPING)
    save(engine, folder / "fresh", [])
    engine.close()
    state, _, _ = read_checkpoint(folder / "fresh")
    engine = make_engine(stage, CLIPPING, state)
    train(engine, 0, STEPS)
    save(engine, folder / "end", [])
    engine.close()


@pytest.mark.parametrize("stage", STAGES)
def test_state_can_be_saved_before_the_first_step(worlds: dict[int, World], tmp_path: Path, stage: int) -> None:
    worlds[2].run(_state_before_the_first_step, tmp_path, stage)
    fresh, _, _ = read_checkpoint(tmp_path / "fresh")
    assert fresh.step == 0
    assert all(not moment.any() for moment in fresh.exp_avg.values())
    end, _, _ = read_checkpoint(tmp_path / "end")
    assert largest_difference(end, plain_adamw(CLIPPING)[0]) <= 1e-6


def _resume_another_model(state: EngineState) -> None:
    make_engine(3, CLIPPING, state)


def test_state_of_another_model_is_refused(worlds: dict[int, World], runs: Path) -> None:
    state, _, _ = read_checkpoint(runs / "1" / "stage-0-clipping-0.0-end")
    wider = {**state.weights, "linear.weight": torch.zeros(4, 5)}
    wider_state = EngineState(0, wider, dict(state.exp_avg), dict(state.exp_avg_sq))
    with pytest.raises(
        UserError, match=r"linear.weight is \[4, 5\] in the checkpoint's weights and \[3, 5\] in the model"
    ):
        worlds[2].run(_resume_another_model, wider_state)


# Optimizer states in the host's memory


def _train_offloaded(runs: Path, folder: Path) -> None:
    """Through a step that is dropped; and from a checkpoint without offloading, and back to there."""
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def spoil(gradients: Tensors, step: int, rank: int) -> None:
        gradients["norm.bias"][0] = math.nan if rank == 0 else 1.0

    for stage in (1, 2, 3):
        engine = make_engine(stage, CLIPPING, offload=True)
        norms = train(engine, 0, HALFWAY)
        save(engine, folder / f"{stage}-halfway", norms)
        assert train(engine, HALFWAY, HALFWAY + 1, spoil) == [math.inf]
        norms += train(engine, HALFWAY, STEPS)
        save(engine, folder / f"{stage}-end", norms)
        engine.close()
        theirs = runs / str(world_size) / f"stage-{stage}-clipping-{CLIPPING}-halfway"
        for name, halfway, offload in (("to", theirs, True), ("from", folder / f"{stage}-halfway", False)):
            engine = make_engine(stage, CLIPPING, read_checkpoint(halfway)[0], offload)
            train(engine, HALFWAY, STEPS)
            save(engine, folder / f"{stage}-{name}", [])
            engine.close()


@pytest.mark.parametrize("size", [1, 2])
def test_offloading_trains_the_same(worlds: dict[int, World], runs: Path, tmp_path: Path, size: int) -> None:
    worlds[size].run(_train_offloaded, runs, tmp_path)
    for stage in (1, 2, 3):
        expected, progress, _ = read_checkpoint(runs / str(size) / f"stage-{stage}-clipping-{CLIPPING}-end")
        norms = read_checkpoint(tmp_path / f"{stage}-end")[1]["norms"]
        assert norms == pytest.approx(progress["norms"], rel=1e-12)  # one sum over all, not over sums of parameters
        for name in ("end", "to", "from"):
            state, _, _ = read_checkpoint(tmp_path / f"{stage}-{name}")
            assert largest_difference(state, expected) <= 1e-7


def test_offloading_what_is_not_shared_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"engine\.offload_optimizer: needs engine\.zero_stage 1, 2 or 3"):
        make_engine(0, CLIPPING, offload=True)


# Gradients


def _train_dropping(folder: Path, stage: int, name: str) -> None:
    def drop(gradients: Tensors, step: int, rank: int) -> None:
        del gradients[name]

    engine = make_engine(stage, CLIPPING)
    train(engine, 0, STEPS, drop)
    save(engine, folder / "end", [])
    engine.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_there_is_zero(worlds: dict[int, World], tmp_path: Path, stage: int) -> None:
    worlds[2].run(_train_dropping, tmp_path, stage, "linear.weight")
    end, _, _ = read_checkpoint(tmp_path / "end")
    assert largest_difference(end, plain_adamw(CLIPPING, drop="linear.weight")[0]) <= 1e-6


def _train_dropping_by_rank(folder: Path, stage: int) -> None:
    """Each rank has no gradient for a parameter of its own: once as zeros, once not there at all."""
    names = ("linear.weight", "norm.bias")

    def change(as_zero: bool) -> Callable[[Tensors, int, int], None]:
        def apply(gradients: Tensors, step: int, rank: int) -> None:
            if as_zero:
                gradients[names[rank]].zero_()
            else:
                del gradients[names[rank]]

        return apply

    for as_zero in (True, False):
        engine = make_engine(stage, CLIPPING)
        train(engine, 0, STEPS, change(as_zero))
        save(engine, folder / f"as-zero-{as_zero}", [])
        engine.close()


@pytest.mark.parametrize("stage", STAGES)
def test_workers_may_lack_different_gradients(worlds: dict[int, World], tmp_path: Path, stage: int) -> None:
    worlds[2].run(_train_dropping_by_rank, tmp_path, stage)
    zero, _, _ = read_checkpoint(tmp_path / "as-zero-True")
    missing, _, _ = read_checkpoint(tmp_path / "as-zero-False")
    assert largest_difference(zero, missing) == 0.0


def _train_through_a_bad_step(folder: Path, stage: int, clipping: float) -> list[float]:
    def spoil(gradients: Tensors, step: int, rank: int) -> None:
        if step == HALFWAY and rank == 0:
            gradients["linear.weight"][0, 0] = math.nan
            gradients["norm.bias"][0] = math.inf

    engine = make_engine(stage, clipping)
    norms = train(engine, 0, HALFWAY)
    save(engine, folder / "before", norms)
    norms += train(engine, HALFWAY, HALFWAY + 1, spoil)
    save(engine, folder / "after", norms)
    norms += train(engine, HALFWAY, STEPS)
    save(engine, folder / "end", norms)
    engine.close()
    return norms


@pytest.mark.parametrize("clipping", [0.0, CLIPPING])
@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_changes_nothing(
    worlds: dict[int, World], tmp_path: Path, stage: int, clipping: float
) -> None:
    norms = worlds[2].run(_train_through_a_bad_step, tmp_path, stage, clipping)
    assert norms[HALFWAY] == math.inf
    before, _, _ = read_checkpoint(tmp_path / "before")
    after, _, _ = read_checkpoint(tmp_path / "after")
    assert largest_difference(before, after) == 0.0
    end, _, _ = read_checkpoint(tmp_path / "end")
    assert largest_difference(end, plain_adamw(clipping)[0]) <= 1e-6


def _one_small_step(stage: int) -> list[float]:
    engine = make_engine(stage, CLIPPING)
    with engine.full_parameters() as parameters:
        ones = {name: torch.ones_like(p) for name, p in parameters.items() if name != "frozen"}
    engine.step(ones, learning_rate=1e-5)
    with engine.full_parameters() as parameters:
        weights = parameters["norm.weight"].tolist()
    engine.close()
    return weights


@pytest.mark.parametrize("stage", STAGES)
def test_updates_far_below_the_precision_of_bf16_are_kept(worlds: dict[int, World], stage: int) -> None:
    assert worlds[2].run(_one_small_step, stage) == pytest.approx([1 - 1e-5] * 5, abs=1e-7)


def _full_parameters_outlive_their_context(stage: int) -> tuple[bool, bool, bool]:
    engine = make_engine(stage, CLIPPING)
    expected = {name: p.detach().clone() for name, p in TinyModel().named_parameters()}
    with engine.full_parameters() as parameters:
        inside = all(torch.equal(parameters[name], value) for name, value in expected.items())
    with engine.full_parameters():
        pass
    after = parameters.keys() == expected.keys() and all(torch.equal(parameters[n], v) for n, v in expected.items())
    gradients = gradient(parameters, 1, torch.distributed.get_rank(), torch.distributed.get_world_size())
    copies = {name: value.clone() for name, value in gradients.items()}
    engine.step(gradients, LEARNING_RATE)
    untouched = all(torch.equal(gradients[name], value) for name, value in copies.items())
    engine.close()
    return inside, after, untouched


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", [1, 2])
def test_parameters_are_whole_and_gradients_left_as_they_are(worlds: dict[int, World], size: int, stage: int) -> None:
    assert worlds[size].run(_full_parameters_outlive_their_context, stage) == (True, True, True)


# What it needs and what it leaves


def _alone(stage: int) -> tuple[bool, bool, int]:
    """Whether the environment is as it was, whether a process group is left, and how many DeepSpeed engines."""
    environment = dict(os.environ)
    make_engine(stage, CLIPPING).close()
    gc.collect()
    engines = sum(type(thing).__name__ == "DeepSpeedEngine" for thing in gc.get_objects())
    return dict(os.environ) == environment, torch.distributed.is_initialized(), engines


@pytest.mark.parametrize("stage", STAGES)
def test_alone_it_makes_its_process_group_and_takes_it_back(worlds: dict[int, World], stage: int) -> None:
    assert worlds[1].run(_alone, stage) == (True, False, 0)


def test_needs_no_compiler_and_says_nothing(worlds: dict[int, World], runs: Path) -> None:
    for world in worlds.values():
        # DeepSpeed's one line for each gradient that is not finite is welcome.
        lines = [line for line in world.output().splitlines() if "Gradients are non-finite" not in line]
        assert lines == []
        assert not (world.folder.parent / "extensions").exists()


def test_deepspeed_is_imported_only_when_an_engine_is_made() -> None:
    code = (
        "import sys, distmeta.engine.checkpoint, distmeta.engine.deepspeed_engine\n"
        "assert not {'ray', 'deepspeed'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
