"""The gradients that the engine is given: not there, not finite, tiny, and left as they are."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from distmeta.engine.checkpoint import read_checkpoint
from tests.engine_runs import (
    CLIPPING,
    HALFWAY,
    LEARNING_RATE,
    STAGES,
    STEPS,
    Tensors,
    TinyModel,
    gradient,
    largest_difference,
    make_engine,
    plain_adamw,
    save,
    train,
)
from tests.workers import World, worlds_of


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 1, 2) as made:
        yield made


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
