"""The training loop on one, two and three workers, without Ray: what is computed does not depend on who computes it."""

import ctypes
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import yaml
from pyarrow.fs import LocalFileSystem
from safetensors.torch import load_file

from distmeta.config import Config, load_config
from distmeta.corpus.executor import LocalExecutor
from distmeta.engine.checkpoint import newest_good
from distmeta.evaluate.run import Candidate, evaluate_candidates
from distmeta.meta import Learner
from distmeta.models import load_weights
from distmeta.pipeline import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, resolve
from distmeta.train.loop import Worker, learning_rate, train
from distmeta.train.phases import PHASES, STEP_PHASES
from distmeta.train.validate import Validator
from distmeta.train.work import WorkSource
from tests.corpora import tiny_config, write_labelled_csv
from tests.workers import World

CPU = torch.device("cpu")
TIMES = {"seconds", "tasks_per_second", "tokens_per_second", "data_wait_fraction", "wall_seconds", "worker_seconds"}
TIMES |= {f"seconds/{phase}" for phase in STEP_PHASES}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    made = {}
    for size in (1, 2, 3):
        made[size] = World(size, tmp_path_factory.mktemp(f"world-{size}"))
    yield made
    for world in made.values():
        world.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    config = make_config(write_labelled_csv(folder / "texts.csv"), folder)
    prepare_with(LocalExecutor(), config, RunDirectory(folder), lambda text: None)
    return folder


def make_config(source: Path, folder: Path, **sections: dict[str, Any]) -> Config:
    tree = tiny_config(source, **sections)
    tree["corpus"]["directory"] = str(folder / "corpus")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return resolve(load_config(path))


def configure(corpus: Path, **sections: dict[str, Any]) -> Config:
    return make_config(corpus / "texts.csv", corpus, **sections)


def _store(run: Path, outer_step: int, folder: Path | None) -> None:
    if folder:
        shutil.copytree(folder, run / "checkpoints" / f"checkpoint_{outer_step:08d}")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _newest(run: Path) -> Path | None:
    name = newest_good(LocalFileSystem(), str(run / "checkpoints"))
    return run / "checkpoints" / name if name else None


def _train(tree: dict[str, Any], run: Path) -> dict[str, Any]:
    """Runs in each worker."""
    is_group = torch.distributed.is_initialized()
    worker = Worker(
        torch.distributed.get_rank() if is_group else 0,
        torch.distributed.get_world_size() if is_group else 1,
        CPU,
        partial(_newest, run),
        partial(_store, run),
    )
    return train(Config.model_validate(tree), RunDirectory(run), worker)


def run_steps(world: World, config: Config, run: Path) -> list[dict[str, Any]]:
    """Trains (on) in `run`; returns the metrics rows."""
    run.mkdir(exist_ok=True)
    world.run(_train, config.model_dump(), run)
    return read_rows(run)


def read_rows(run: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def manifest_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"checkpoint_{step:08d}" / "checkpoint.json"


def progress_at(run: Path, step: int) -> dict[str, Any]:
    """The progress in the checkpoint of a step."""
    return json.loads(manifest_of(run, step).read_text())["progress"]


def assert_same(rows: list[dict[str, Any]], others: list[dict[str, Any]], tolerance: float) -> None:
    """Every figure that is not a time agrees; the norm, which each stage sums in its own order, to its last digits."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - TIMES:
            allowed = max(tolerance, 1e-14) if key == "grad_norm" else tolerance
            assert row[key] == pytest.approx(other[key], rel=allowed, abs=allowed), (row["outer_step"], key)


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"checkpoint_{step:08d}" / "weights.safetensors")


# Against one process


def single_process(config: Config) -> dict[str, torch.Tensor]:
    """The weights that torch alone comes to: our learner's gradient of all tasks, and AdamW of torch."""
    setup = Setup(config, RunDirectory(Path("unused")))
    network = setup.network()
    parameters = dict(network.named_parameters())
    learner = Learner(network.skeleton().train(), config.meta, "fp32", config.train.seed)
    work = WorkSource(setup, CPU, 0, 1)
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": config.meta.weight_decay},
            {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
    for step in range(config.train.outer_steps):
        gradients, _ = learner.gradient(
            {n: p.detach() for n, p in parameters.items()},
            work.take(step),
            config.meta.meta_batch_size,
            step / config.train.outer_steps,
        )
        for name, parameter in trained.items():
            parameter.grad = gradients.get(name, torch.zeros_like(parameter))
        torch.nn.utils.clip_grad_norm_(trained.values(), config.engine.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.meta, step, config.train.outer_steps)
        optimizer.step()
    work.close()
    return {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("algorithm", "adapt", "more", "stage"),
    [
        ("fomaml", "all", {}, 0),
        ("maml", "bias", {"recompute": True}, 1),
        ("fomaml", "regex:attention", {"inner_rates": "layer_step", "multi_step_loss": 1.0}, 2),
        ("maml", "lora", {}, 3),
        ("anil", "head", {"freeze_lowest": 1}, 1),
        ("protonet", "head", {"learn_temperature": True}, 3),
        ("metaicl", "head", {}, 2),
    ],
)
def test_two_workers_equal_one_process(algorithm, adapt, more, stage, worlds, corpus, tmp_path):
    """What lies between gradients: rates, clipping and AdamW. The gradient itself is in `test_gradient_table`."""
    meta = {"algorithm": algorithm, "adapt": adapt, **more}
    decoder = {"model": {"config": {**GPT2, "n_positions": 1024}}} if algorithm == "metaicl" else {}
    config = configure(corpus, meta=meta, train={"outer_steps": 2}, engine={"zero_stage": stage}, **decoder)
    run_steps(worlds[2], config, tmp_path / "run")
    expected = single_process(config)
    weights = weights_of(tmp_path / "run", 2)
    assert weights.keys() == expected.keys()
    worst = max(float((weights[name] - expected[name]).abs().max()) for name in expected)
    print(f"{algorithm} {adapt} stage {stage}: largest difference {worst:.1e}")
    # AdamW makes much of rounding where a gradient is tiny, as those of rare tokens in a prompt are.
    assert worst <= 1e-5


@pytest.mark.parametrize(
    ("algorithm", "adapt", "bound"),
    [("fomaml", "lora", 5e-6), pytest.param("maml", "bias", 2e-5, marks=pytest.mark.slow)],
)
def test_weights_that_stay_partitioned_come_to_the_same(algorithm, adapt, bound, worlds, corpus, tmp_path):
    """Three workers, of which one has two tasks; language modelling, validation and a resume included."""
    config = configure(
        corpus,
        meta={"algorithm": algorithm, "adapt": adapt},
        train={"outer_steps": 3, "checkpoint_every": 2, "validate_every": 3, "validate_episodes": 4},
        engine={"zero_stage": 3, "weights": "partitioned"},
    )
    run = tmp_path / "run"
    rows = run_steps(worlds[3], config, run)
    expected = single_process(config)
    worst = max(float((weights_of(run, 3)[name] - expected[name]).abs().max()) for name in expected)
    print(f"{algorithm} {adapt}: largest difference {worst:.1e}")
    assert worst <= bound
    whole = configure(corpus, meta={"algorithm": algorithm, "adapt": adapt}, train=config.train.model_dump())
    others = run_steps(worlds[1], whole, tmp_path / "whole")
    same = {key for row in others for key in row if key not in TIMES and "prototype" not in key}
    for row, other in zip(rows, others, strict=True):
        for key in same & other.keys():
            assert row[key] == pytest.approx(other[key], rel=1e-4, abs=1e-4), key
    shutil.rmtree(run / "checkpoints" / "checkpoint_00000003")
    again = run_steps(worlds[2], config, run)
    assert_same(again, rows, tolerance=1e-4)


def test_the_number_of_workers_changes_nothing(worlds, corpus, tmp_path):
    """Four tasks on one worker, two on each of two, and two, one and one on three; dropout included."""
    dropout = {"config": Config().model.config | tiny_config(corpus)["model"]["config"] | {"hidden_dropout_prob": 0.1}}
    config = configure(corpus, model=dropout, train={"outer_steps": 12})
    one = run_steps(worlds[1], config, tmp_path / "one")
    assert len(one) == 12
    for size in (2, 3):
        assert_same(run_steps(worlds[size], config, tmp_path / str(size)), one, tolerance=1e-5)


def test_workers_share_the_tasks_out(corpus):
    """Case A3: each task of a meta-batch on one worker, and every one on some."""
    setup = Setup(configure(corpus, meta={"meta_batch_size": 5}), RunDirectory(corpus))
    for world_size in (1, 2, 3):
        sources = [WorkSource(setup, CPU, rank, world_size) for rank in range(world_size)]
        for step in range(4):
            shares = [[work.index for work in source.take(step)] for source in sources]
            assert all(shares)
            assert sorted(index for share in shares for index in share) == list(range(5 * step, 5 * step + 5))
        for source in sources:
            source.close()


# Resuming


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_is_resumed_by_other_workers_at_another_stage(stage, worlds, corpus, tmp_path):
    """Case C1: from two workers to one and from one to two; to the bit where their number stays."""

    def config_at(zero_stage: int) -> Config:
        return configure(corpus, train={"outer_steps": 8, "checkpoint_every": 4}, engine={"zero_stage": zero_stage})

    alone = {size: run_steps(worlds[size], config_at(stage), tmp_path / f"alone-{size}") for size in (1, 2)}
    for before, after in ((2, 1), (1, 2), (2, 2), (1, 1)):
        run = tmp_path / f"{before}-{after}"
        shutil.copytree(tmp_path / f"alone-{before}", run)
        shutil.rmtree(run / "checkpoints" / "checkpoint_00000008")
        rows = run_steps(worlds[after], config_at((stage + 1) % 4), run)
        assert [row["outer_step"] for row in rows] == list(range(1, 9))
        assert_same(rows, alone[before], tolerance=0.0 if before == after else 1e-5)


def test_a_stop_request_leaves_a_checkpoint_of_the_step(worlds, corpus, tmp_path):
    """Case B1: what SIGTERM leads to; the steps that follow are those of the run that was left alone."""
    config = configure(corpus)
    whole = run_steps(worlds[2], config, tmp_path / "whole")
    run = tmp_path / "stopped"
    run.mkdir()
    (run / "stop-requested").touch()
    assert [row["outer_step"] for row in run_steps(worlds[2], config, run)] == [1]
    (run / "stop-requested").unlink()
    assert_same(run_steps(worlds[2], config, run), whole, tolerance=0.0)
    final = weights_of(tmp_path / "whole", 10)
    assert all(torch.equal(final[name], value) for name, value in weights_of(run, 10).items())


def test_the_warm_up_trains_the_language_model_alone(worlds, corpus, tmp_path):
    config = configure(corpus, meta={"lm_warmup_steps": 4}, train={"outer_steps": 8})
    rows = run_steps(worlds[1], config, tmp_path / "run")
    assert ["query_loss" in row for row in rows] == [False] * 4 + [True] * 4
    assert all("lm_loss" in row for row in rows)
    without = configure(corpus, meta={"lm_weight": 0.0}, train={"outer_steps": 2})
    assert not any("lm_loss" in row for row in run_steps(worlds[1], without, tmp_path / "without"))


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_bf16_follows_fp32(model_type, worlds, corpus, tmp_path):
    """Case C2: small updates are kept, and the last outer loss is close."""
    model = tiny_config(corpus)["model"]["config"] if model_type == "bert" else GPT2
    losses = {}
    for precision in ("fp32", "bf16"):
        config = configure(corpus, model={"config": model}, engine={"precision": precision}, train={"outer_steps": 20})
        rows = run_steps(worlds[1], config, tmp_path / precision)
        losses[precision] = rows[-1]["query_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.05)
    weights = weights_of(tmp_path / "bf16", 20)
    norms = [value for name, value in weights.items() if name.endswith((".LayerNorm.weight", "ln_1.weight"))]
    assert norms
    assert all((weight != 1).float().mean() > 0.9 for weight in norms)


GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


def _verbosely(function: Callable[..., Any], *arguments: Any) -> None:
    """oneDNN says on standard output what it is asked to compile, or to take from what it kept."""
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
        function(*arguments)
    ctypes.CDLL(None).fflush(None)


def _evaluate(tree: dict[str, Any], run: Path) -> None:
    """Runs in a worker: scores the best network of the run."""
    setup, directory = Setup(Config.model_validate(tree), RunDirectory(run)), RunDirectory(run)
    evaluate_candidates([Candidate("kept", setup, directory.best_weights)], lambda text: None)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN")
def test_nothing_is_compiled_and_kept_for_each_length_of_a_row(worlds, corpus, tmp_path):
    """It would stand between the tensors, and the memory of a worker would grow with every step."""
    asked = {}
    # Each of the two has to leave oneDNN out by itself: before it comes bf16, in which oneDNN computes all products.
    for what, precision in ((_train, "bf16"), (_evaluate, "fp32"), (_evaluate, "bf16"), (_train, "fp32")):
        config = configure(corpus, engine={"precision": precision}, train={"outer_steps": 1, "validate_every": 0})
        run = tmp_path / (precision if what is _train else "bf16")
        run.mkdir(exist_ok=True)
        before = worlds[1].output().count("create:cache_")
        worlds[1].run(_verbosely, what, config.model_dump(), run)
        asked[what, precision] = worlds[1].output().count("create:cache_") - before
    assert asked[_train, "fp32"] == asked[_evaluate, "fp32"] == 0
    assert asked[_train, "bf16"] > 0
    assert asked[_evaluate, "bf16"] > 0


@pytest.mark.parametrize("helps", [True, False])
def test_the_average_with_the_starting_weights_is_kept_where_it_scores_higher(helps, worlds, corpus, tmp_path):
    config = configure(
        corpus,
        meta={"outer_lr": 1e-9 if helps else 1e-3},
        train={"outer_steps": 2, "validate_every": 1, "average_with_start": [0.25, 0.75]},
    )
    run = tmp_path / "run"
    world = worlds[2]
    run.mkdir()
    scores = {True: [0.2, 0.3, 0.3, 0.1, 0.9], False: [0.2, 0.9, 0.8, 0.7, 0.6]}[helps]
    world.run(_train_with_scores, config.model_dump(), run, scores)
    start, last = load_file(run / "weights" / "starting.safetensors"), weights_of(run, 2)
    kept = load_file(run / "weights" / "best.safetensors")
    progress = progress_at(run, 2)
    assert progress["averages"] == {"0.25": scores[3], "0.75": scores[4]}
    assert progress.get("best_average") == (0.75 if helps else None)
    assert len(read_rows(run, "validation.jsonl")) == 3
    if helps:
        for name, value in kept.items():
            assert torch.allclose(value, 0.25 * start[name] + 0.75 * last[name], atol=1e-7)


def _train_with_scores(tree: dict[str, Any], run: Path, scores: list[float]) -> dict[str, Any]:
    """Runs in each worker: training that is told how well it does."""
    waiting = iter(scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validator, "score", lambda *_: {"inner-loop": next(waiting)})
        return _train(tree, run)


# What a run took


def phases_of(rows: list[dict[str, Any]]) -> list[float]:
    return [sum(row[f"seconds/{phase}"] for phase in STEP_PHASES) for row in rows]


def test_the_phases_of_a_step_add_up_to_its_seconds(worlds, corpus, tmp_path):
    train = {"outer_steps": 12, "checkpoint_every": 3, "validate_every": 3}
    config = configure(corpus, train=train)
    rows = run_steps(worlds[1], config, tmp_path / "one")
    shares = [phases / row["seconds"] for phases, row in zip(phases_of(rows), rows, strict=True)]
    assert max(shares) <= 1 + 1e-9  # nothing from before or after the step
    assert statistics.median(shares) > 0.97
    rows = run_steps(worlds[2], config, tmp_path / "two")
    assert sum(phases_of(rows)) == pytest.approx(sum(row["seconds"] for row in rows), rel=0.05)
    for size, run in enumerate(("one", "two"), start=1):
        progress = progress_at(tmp_path / run, 12)
        assert sum(progress["phase_seconds"].values()) == pytest.approx(progress["wall_seconds"], rel=0.1)
        assert progress["worker_seconds"] == pytest.approx(size * progress["wall_seconds"])


@pytest.mark.parametrize("stage", [0, 3])
def test_operations_are_counted_for_the_whole_network(worlds, corpus, tmp_path, stage):
    """Forward and backward take 6 operations a token and matrix entry, and attention some more."""
    config = configure(corpus, meta={"lm_weight": 0.0}, train={"outer_steps": 2}, engine={"zero_stage": stage})
    rows = run_steps(worlds[2], config, tmp_path / "run")
    network = Setup(config, RunDirectory(tmp_path / "run")).network()
    entries = sum(each.weight.numel() for each in network.base.encoder.modules() if isinstance(each, torch.nn.Linear))
    assert 1 < rows[-1]["flops"] / sum(6 * entries * row["tokens"] for row in rows) < 1.5


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
    manifest = json.loads(manifest_of(run, 3).read_text())
    manifest_of(run, 3).write_text(json.dumps(manifest | {"progress": third | earlier}))
    rows = run_steps(worlds[1], config, run)
    resumed = progress_at(run, 6)
    assert {key: resumed[key] for key in earlier} == earlier
    assert resumed["flops"] == pytest.approx(whole["flops"])
    assert (resumed["tokens"], resumed["lm_tokens"]) == (whole["tokens"], whole["lm_tokens"])
    for key in ("wall_seconds", "worker_seconds"):
        assert third[key] < rows[3][key] < rows[5][key] <= resumed[key]
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
    torch.distributed.all_gather_object(progress, _train(tree, run))
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
        assert rows[-1]["query_loss"] > 20
    else:
        assert {"query_loss", "grad_norm"} <= set(rows[-1]["not_finite"])
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


def test_learning_rate_rises_and_falls():
    meta = Config().meta.model_copy(update={"outer_lr": 1.0, "warmup_ratio": 0.2})
    rates = [learning_rate(meta, step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == pytest.approx([1 - step / 8 for step in range(8)])
    cosine = meta.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 6, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate(meta.model_copy(update={"schedule": "constant"}), 9, 10) == 1.0
