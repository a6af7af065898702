"""Training on a mixture: tasks of several data sets, ways and shots in one meta-batch, whoever computes them."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from distmeta.config import Config
from distmeta.meta import Learner, Work
from distmeta.meta.registry import algorithm_names
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.train.work import WorkSource
from tests.corpora import TINY_MODEL
from tests.mixtures import mixture, prepared_mixture
from tests.training import CPU, GPT2, assert_same, read_rows, run_steps
from tests.workers import World, worlds_of

STEPS = 3
TRAIN = {"outer_steps": STEPS, "checkpoint_every": 2, "validate_every": STEPS, "validate_episodes": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_mixture(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 1, 2) as made:
        yield made


def pieces(config: Config, folder: Path, world_size: int, steps: int = 3) -> list[list[Work]]:
    """What each worker draws."""
    setup = Setup(config, RunDirectory(folder))
    sources = [WorkSource(setup, CPU, rank, world_size) for rank in range(world_size)]
    drawn = [[piece for step in range(steps) for piece in source.take(step)] for source in sources]
    for source in sources:
        source.close()
    return drawn


def test_workers_draw_the_tasks_that_one_draws(folder: Path) -> None:
    config = mixture(folder)
    [alone] = pieces(config, folder, 1)
    assert len({piece.task.n_way for piece in alone if piece.task}) > 1
    assert len({len(piece.task.support_labels) for piece in alone if piece.task}) > 2
    for world_size in (2, 3):
        together = sorted(chain(*pieces(config, folder, world_size)), key=lambda piece: piece.index)
        assert [piece.index for piece in together] == [piece.index for piece in alone]
        for one, other in zip(alone, together, strict=True):
            assert one.task
            assert other.task
            assert torch.equal(one.task.support.input_ids, other.task.support.input_ids)
            assert torch.equal(one.task.query_labels, other.task.query_labels)


@pytest.mark.parametrize("algorithm", algorithm_names())
def test_shares_of_a_mixed_meta_batch_add_up_to_the_whole(algorithm: str, folder: Path) -> None:
    """For every algorithm, tasks side by side included: what one worker computes is what two add up."""
    model = {"config": {**GPT2, "n_positions": 1024} if algorithm == "metaicl" else TINY_MODEL}
    meta = {"algorithm": algorithm, "meta_batch_size": 8, "lm_weight": 0.0}
    tasks = {"smlmt_share": 0.0} if algorithm == "multitask" else {}
    config = mixture(folder, model=model, meta=meta, tasks=tasks)
    setup = Setup(config, RunDirectory(folder))
    network = setup.network().eval()
    learner = Learner(network, config.meta, "fp32", 0)
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    [work] = pieces(config, folder, 1, steps=1)
    whole, metrics = learner.gradient(parameters, work, 8)
    shares = [learner.gradient(parameters, work[start::2], 8) for start in range(2)]
    for name, gradient in whole.items():
        added = sum(part.get(name, torch.zeros(())) for part, _ in shares)
        assert torch.allclose(added, gradient, rtol=1e-4, atol=1e-6 + 1e-5 * float(gradient.abs().max())), name
    assert metrics["query_loss"] == pytest.approx(sum(found["query_loss"] for _, found in shares), rel=1e-5)
    assert metrics["query_accuracy"] == pytest.approx(sum(found["query_accuracy"] for _, found in shares))


@pytest.fixture(scope="module")
def alone(worlds: dict[int, World], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one worker without ZeRO measures."""
    return run_steps(worlds[1], mixture(folder, train=TRAIN), tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(
    "engine",
    [*({"zero_stage": stage} for stage in range(4)), pytest.param({"weights": "partitioned"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_mixture_gives_the_same_losses_at_every_stage_and_after_a_resume(
    engine: dict[str, Any], alone: list[dict[str, Any]], worlds: dict[int, World], folder: Path, tmp_path: Path
) -> None:
    partitioned = "weights" in engine
    config = mixture(folder, train=TRAIN, engine={"zero_stage": 3} | engine)
    rows = run_steps(worlds[2], config, tmp_path)
    if partitioned:  # where nothing but the inner loop is validated
        alone = [{key: value for key, value in row.items() if "prototype" not in key} for row in alone]
    assert {key for key in rows[-1] if key.startswith("validation/inner-loop/")} == {
        f"validation/inner-loop/{name}" for name in ("mails", "topics", "words")
    }
    assert_same(rows, alone, tolerance=1e-4)
    shutil.rmtree(tmp_path / "checkpoints" / f"checkpoint_{STEPS:08d}")
    assert_same(run_steps(worlds[2], config, tmp_path), rows, tolerance=1e-4 if partitioned else 0.0)
    assert [row["outer_step"] for row in read_rows(tmp_path)] == list(range(1, STEPS + 1))
