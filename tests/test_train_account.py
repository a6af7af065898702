"""What a run says that it took, the intervals of its scores, and how it ends where it diverges."""

import math
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from distmeta.models import load_weights
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.train.phases import PHASES, STEP_PHASES
from tests.training import (
    CPU,
    change_progress,
    configure,
    manifest_of,
    prepared_corpus,
    progress_at,
    read_rows,
    run_steps,
    run_training,
)
from tests.workers import World, worlds_of


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 1, 2) as made:
        yield made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_corpus(tmp_path_factory.mktemp("corpus"))


def phases_of(rows: list[dict[str, Any]]) -> list[float]:
    return [sum(row[f"time/{phase}"] for phase in STEP_PHASES) for row in rows]


def test_the_phases_of_a_step_add_up_to_its_seconds(worlds, corpus, tmp_path):
    train = {"outer_steps": 12, "checkpoint_every": 3, "validate_every": 3}
    config = configure(corpus, train=train)
    rows = run_steps(worlds[1], config, tmp_path / "one")
    shares = [phases / row["time/step"] for phases, row in zip(phases_of(rows), rows, strict=True)]
    assert max(shares) <= 1 + 1e-9  # nothing from before or after the step
    assert statistics.median(shares) > 0.97
    rows = run_steps(worlds[2], config, tmp_path / "two")
    assert sum(phases_of(rows)) == pytest.approx(sum(row["time/step"] for row in rows), rel=0.05)
    for size, run in enumerate(("one", "two"), start=1):
        progress = progress_at(tmp_path / run, 12)
        assert sum(progress["phase_seconds"].values()) == pytest.approx(progress["wall_seconds"], rel=0.1)
        assert progress["worker_seconds"] == pytest.approx(size * progress["wall_seconds"])


@pytest.mark.parametrize(
    ("engine", "limit"),
    [
        ({"gradient_clipping": 0.01}, 0.01),
        ({"gradient_clipping": 0.0}, math.inf),
        ({"gradient_clipping": 0.01, "zero_stage": 3, "weights": "partitioned"}, 0.01),
    ],
)
def test_it_is_told_how_far_a_gradient_was_clipped(engine, limit, worlds, corpus, tmp_path):
    config = configure(corpus, engine=engine, train={"outer_steps": 2, "validate_every": 0})
    rows = run_steps(worlds[2], config, tmp_path / "run")
    assert all(row["training/grad_norm"] > 0.01 for row in rows)
    assert [row["training/clip_factor"] for row in rows] == [
        pytest.approx(min(1.0, limit / row["training/grad_norm"]), rel=1e-3) for row in rows
    ]


@pytest.mark.parametrize("stage", [0, 3])
def test_operations_are_counted_for_the_whole_network(worlds, corpus, tmp_path, stage):
    """Forward and backward take 6 operations a token and matrix entry, and attention some more."""
    config = configure(corpus, meta={"lm_weight": 0.0}, train={"outer_steps": 2}, engine={"zero_stage": stage})
    rows = run_steps(worlds[2], config, tmp_path / "run")
    network = Setup(config, RunDirectory(tmp_path / "run")).network()
    entries = sum(each.weight.numel() for each in network.base.encoder.modules() if isinstance(each, torch.nn.Linear))
    assert 1 < rows[-1]["cost/flops"] / sum(6 * entries * row["training/tokens"] for row in rows) < 1.5


def test_a_checkpoint_has_all_that_the_run_took_and_a_resume_adds_to_it(worlds, corpus, tmp_path):
    """Case C1: the validation before a checkpoint is in it, and so is what earlier attempts took."""
    config = configure(corpus, train={"outer_steps": 6, "checkpoint_every": 1, "validate_every": 3})
    run = tmp_path / "run"
    run_steps(worlds[2], config, run)
    second, third, fourth, whole = (progress_at(run, step) for step in (2, 3, 4, 6))
    validation = third["phase_seconds"]["validation"] - second["phase_seconds"]["validation"]
    assert validation > 0
    assert third["wall_seconds"] - second["wall_seconds"] > validation
    assert fourth["phase_seconds"]["validation"] == third["phase_seconds"]["validation"]
    assert fourth["phase_seconds"]["checkpoint"] > third["phase_seconds"]["checkpoint"]
    assert third["peak_memory_bytes"] > 50e6

    for step in (4, 5, 6):
        shutil.rmtree(manifest_of(run, step).parent)
    earlier = {"startup_seconds": 1234.0, "peak_memory_bytes": 10**15}  # that attempt was slower to start, and larger
    change_progress(run, 3, earlier)
    rows = run_steps(worlds[1], config, run)
    resumed = progress_at(run, 6)
    assert {key: resumed[key] for key in earlier} == earlier
    assert resumed["flops"] == pytest.approx(whole["flops"])
    assert (resumed["tokens"], resumed["lm_tokens"]) == (whole["tokens"], whole["lm_tokens"])
    for key in ("wall_seconds", "worker_seconds"):
        assert third[key] < rows[3][f"cost/{key}"] < rows[5][f"cost/{key}"] <= resumed[key]
    assert resumed["worker_seconds"] - third["worker_seconds"] == pytest.approx(
        resumed["wall_seconds"] - third["wall_seconds"]
    )
    assert all(resumed["phase_seconds"][phase] > third["phase_seconds"][phase] for phase in PHASES)


def test_the_interval_of_a_validation_does_not_depend_on_the_workers(worlds, corpus, tmp_path):
    def starting_scores(size: int, episodes: int) -> dict[str, float]:
        config = configure(corpus, train={"outer_steps": 1, "validate_every": 1, "validate_episodes": episodes})
        run = tmp_path / f"{size}-{episodes}"
        run_steps(worlds[size], config, run)
        return read_rows(run, "validation.jsonl")[0]

    one = starting_scores(1, 21)
    assert starting_scores(2, 21) == pytest.approx(one, rel=1e-12)
    names = ("inner-loop", "prototype", "prototype-all-way")
    assert one.keys() == {"outer_step", *names, *(f"{name}_ci95" for name in names)}
    assert 0 < one["prototype_ci95"] < 0.5
    assert starting_scores(2, 1).keys() == {"outer_step", *names}  # a single episode has no interval


def _train_on_each(tree: dict[str, Any], run: Path) -> list[dict[str, Any]]:
    """Runs in each worker; returns what every one of them returned."""
    progress: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(progress, run_training(tree, run))
    return progress


@pytest.mark.parametrize(
    ("meta", "last"), [({"outer_lr": 30.0, "warmup_ratio": 0.0}, 2), ({"inner_lr": 1e30}, 1)], ids=["large", "nan"]
)
def test_a_run_that_diverges_ends_on_every_worker_and_keeps_the_network_before(meta, last, worlds, corpus, tmp_path):
    train = {"outer_steps": 6, "checkpoint_every": 1, "validate_every": 1, "max_loss": 20.0}
    config = configure(corpus, meta=meta, train=train)
    progress = worlds[2].run(_train_on_each, config.model_dump(), tmp_path)
    rows = read_rows(tmp_path)
    assert [row["outer_step"] for row in rows] == list(range(1, last + 1))
    if last == 2:
        assert rows[-1]["training/query_loss"] > 20
    else:
        assert {"training/query_loss", "training/grad_norm"} <= set(rows[-1]["not_finite"])
        assert "training/clip_factor" not in rows[-1]
    for each in progress:
        assert each["outer_step"] == last
        assert each["diverged"].startswith("query loss ")
        assert each["diverged"].endswith(f" at outer step {last}")
    assert [row["outer_step"] for row in read_rows(tmp_path, "validation.jsonl")] == list(range(last))
    assert not manifest_of(tmp_path, last).exists()
    assert all(manifest_of(tmp_path, step).exists() for step in range(1, last))
    weights, step = load_weights(RunDirectory(tmp_path).best_weights, CPU)
    assert step == progress[0]["best_step"] < last
    assert all(weight.isfinite().all() for weight in weights.values())
