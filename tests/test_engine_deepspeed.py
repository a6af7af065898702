"""The engine, with real DeepSpeed and gloo, on 1, 2 and 3 workers.

The workers are started once, without a compiler, and make one engine after the other. All of them are held against
`plain_adamw`, which is AdamW of torch in this process.
"""

import gc
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distmeta.engine.checkpoint import read_checkpoint
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from tests.engine_runs import (
    CLIPPING,
    HALFWAY,
    STAGES,
    STEPS,
    WORLDS,
    Tensors,
    largest_difference,
    make_engine,
    plain_adamw,
    save,
    train,
)
from tests.workers import World, worlds_of

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
        with worlds_of(folder, *WORLDS) as made:
            yield made


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


@pytest.mark.parametrize("size", [*WORLDS[:-1], pytest.param(WORLDS[-1], marks=pytest.mark.slow)])
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
