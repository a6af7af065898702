"""The training loop on one, two and three workers, without Ray: what is computed does not depend on who computes it."""

import ctypes
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from safetensors.torch import load_file

from distmeta.allocator import freed_at_once
from distmeta.config import Config
from distmeta.evaluate.run import Candidate, evaluate_candidates
from distmeta.meta import Learner
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.train import loop
from distmeta.train.checkpoints import Checkpoints
from distmeta.train.loop import learning_rate
from distmeta.train.outcome import is_over
from distmeta.train.work import WorkSource
from tests.corpora import tiny_config
from tests.training import (
    CPU,
    GPT2,
    TIMES,
    assert_same,
    configure,
    prepared_corpus,
    read_rows,
    run_steps,
    run_training,
    run_training_until,
    weights_of,
)
from tests.workers import World, worlds_of


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 1, 2, 3) as made:
        yield made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_corpus(tmp_path_factory.mktemp("corpus"))


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
    ("algorithm", "adapt", "more", "stage", "bound"),
    [
        # AdamW makes much of rounding where a gradient is tiny: in one number, and in which depends on the processor.
        ("fomaml", "all", {}, 0, 5e-6),
        ("maml", "bias", {"recompute": True}, 1, 1e-6),
        ("fomaml", "regex:attention", {"inner_rates": "layer_step", "multi_step_loss": 1.0}, 2, 5e-6),
        ("maml", "lora", {}, 3, 1e-6),
        ("anil", "head", {"freeze_lowest": 1}, 1, 1e-6),
        ("protonet", "head", {"learn_temperature": True}, 3, 5e-6),
        ("metaicl", "head", {}, 2, 5e-6),
        ("multitask", "head", {}, 3, 5e-6),
    ],
)
def test_two_workers_equal_one_process(algorithm, adapt, more, stage, bound, worlds, corpus, tmp_path):
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
    assert worst <= bound


@pytest.mark.parametrize(
    ("algorithm", "adapt", "bound"),
    [("fomaml", "lora", 5e-6), ("maml", "bias", 2e-5)],
)
@pytest.mark.slow  # their gradients are held in test_engine_sharded
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


def test_groups_of_like_length_are_not_made_with_partitioned_weights(corpus, caplog):
    """Of a model that auto does not pack; what is said is what is done."""
    mpnet = {"model_type": "mpnet", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for weights, taken in (("whole", "bucketed"), ("partitioned", "plain")):
        engine = {"zero_stage": 3, "weights": weights}
        config = configure(corpus, model={"config": mpnet, "attention": "eager"}, engine=engine)
        network = Setup(config, RunDirectory(corpus)).network()
        assert network.computation == taken
        loop.say_computation(config, network)
        assert f"auto takes {taken} for mpnet" in caplog.messages[-1]


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


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2)), 3])
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


def test_similarities_that_are_kept_are_those_that_the_run_began_with_after_a_resume_too(worlds, corpus, tmp_path):
    def config_with(weight: float) -> Config:
        meta = {"algorithm": "protonet", "lm_weight": 0.0, "keep_similarity": weight}
        return configure(corpus, meta=meta, train={"outer_steps": 8, "checkpoint_every": 4})

    whole = run_steps(worlds[1], config_with(1000.0), tmp_path / "whole")
    free = run_steps(worlds[1], config_with(0.0), tmp_path / "free")
    assert whole[0]["training/query_loss"] == free[0]["training/query_loss"]  # of which the term is no part
    assert whole[-1]["training/query_loss"] != pytest.approx(free[-1]["training/query_loss"], rel=1e-3)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "checkpoint_00000008")
    assert_same(run_steps(worlds[1], config_with(1000.0), tmp_path / "whole"), whole, tolerance=0.0)


@pytest.mark.parametrize("validate_every", [0, 2])
def test_a_run_that_is_asked_to_leave_in_its_last_step_is_not_over(validate_every, worlds, corpus, tmp_path):
    """The network that it keeps is that of a run left alone when it has gone on."""
    train = {"outer_steps": 4, "validate_every": validate_every, "validate_episodes": 4, "checkpoint_every": 100}
    config = configure(corpus, train=train)
    runs = tmp_path / "asked", tmp_path / "alone"
    for run in runs:
        run.mkdir()
    asked = worlds[1].run(run_training, config.model_dump(), runs[0], 3)
    assert (asked["outer_step"], is_over(asked, config.train)) == (4, False)
    for run in runs:
        assert is_over(worlds[1].run(run_training, config.model_dump(), run), config.train)
    kept = [load_file(run / "weights" / "best.safetensors") for run in runs]
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


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
    assert ["training/query_loss" in row for row in rows] == [False] * 4 + [True] * 4
    assert all("training/lm_loss" in row for row in rows)
    without = configure(corpus, meta={"lm_weight": 0.0}, train={"outer_steps": 2})
    assert not any("training/lm_loss" in row for row in run_steps(worlds[1], without, tmp_path / "without"))


@pytest.mark.parametrize("model_type", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_bf16_follows_fp32(model_type, worlds, corpus, tmp_path):
    """Case C2: small updates are kept, and the last outer loss is close."""
    model = tiny_config(corpus)["model"]["config"] if model_type == "bert" else GPT2
    losses = {}
    for precision in ("fp32", "bf16"):
        config = configure(corpus, model={"config": model}, engine={"precision": precision}, train={"outer_steps": 20})
        rows = run_steps(worlds[1], config, tmp_path / precision)
        losses[precision] = rows[-1]["training/query_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.05)
    weights = weights_of(tmp_path / "bf16", 20)
    norms = [value for name, value in weights.items() if name.endswith((".LayerNorm.weight", "ln_1.weight"))]
    assert norms
    assert all((weight != 1).float().mean() > 0.9 for weight in norms)


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
    for what, precision in ((run_training, "bf16"), (_evaluate, "fp32"), (_evaluate, "bf16"), (run_training, "fp32")):
        config = configure(corpus, engine={"precision": precision}, train={"outer_steps": 1, "validate_every": 0})
        run = tmp_path / (precision if what is run_training else "bf16")
        run.mkdir(exist_ok=True)
        before = worlds[1].output().count("create:cache_")
        worlds[1].run(_verbosely, what, config.model_dump(), run)
        asked[what, precision] = worlds[1].output().count("create:cache_") - before
    assert asked[run_training, "fp32"] == asked[_evaluate, "fp32"] == 0
    assert asked[run_training, "bf16"] > 0
    assert asked[_evaluate, "bf16"] > 0


def _what_gives_back(tree: dict[str, Any], run: Path) -> set[str]:
    """Runs in a worker: what is done while freed memory goes back to the system at once."""
    is_inside, found = False, set()

    @contextmanager
    def entered() -> Iterator[None]:
        nonlocal is_inside
        is_inside = True
        with freed_at_once():
            yield
        is_inside = False

    def watched(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if is_inside:
                found.add(name)
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "freed_at_once", entered)
        for name in ("read_checkpoint", "Whole"):
            patch.setattr(loop, name, watched(name, getattr(loop, name)))
        patch.setattr(Checkpoints, "begin", watched("begin", Checkpoints.begin))
        patch.setattr(Setup, "network", watched("network", Setup.network))
        patch.setattr(Learner, "gradient", watched("gradient", Learner.gradient))
        run_training(tree, run)
    return found


def test_a_start_and_a_checkpoint_give_freed_memory_back_and_steps_do_not(worlds, corpus, tmp_path):
    """`tests/test_memory_of_workers.py` measures what that is worth."""
    for steps, read in ((1, set()), (2, {"read_checkpoint"})):
        tree = configure(corpus, train={"outer_steps": steps, "validate_every": 0}).model_dump()
        found = worlds[1].run(_what_gives_back, tree, tmp_path)
        assert found == {"network", "Whole", "begin"} | read


def test_learning_rate_rises_and_falls():
    meta = Config().meta.model_copy(update={"outer_lr": 1.0, "warmup_ratio": 0.2})
    rates = [learning_rate(meta, step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == pytest.approx([1 - step / 8 for step in range(8)])
    cosine = meta.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 6, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate(meta.model_copy(update={"schedule": "constant"}), 9, 10) == 1.0


@pytest.mark.parametrize(
    ("weights", "when"),
    [("whole", "step"), ("whole", "validation"), pytest.param("partitioned", "validation", marks=pytest.mark.slow)],
)
def test_a_stop_does_not_wait_for_a_validation_which_is_made_good(weights, when, worlds, corpus, tmp_path):
    """A validation may take minutes, and who sends a signal waits for seconds. When the run goes on, nothing tells it
    from one that was left alone, not even after the last step, when averages are judged, too."""
    engine = {"zero_stage": 3, "weights": "partitioned"} if weights == "partitioned" else {}
    train = {"outer_steps": 2, "validate_every": 2, "validate_episodes": 6, "checkpoint_every": 9}
    train |= {"average_with_start": "auto"}
    config = configure(corpus, engine=engine, train=train)
    whole = run_steps(worlds[2], config, tmp_path / "whole")
    run = tmp_path / "stopped"
    run.mkdir()
    worlds[2].run(run_training_until, config.model_dump(), run, "train" if when == "step" else "valid")
    stopped = read_rows(run)
    assert [row["outer_step"] for row in stopped] == [1, 2]
    assert not any(key.startswith("validation/") for key in stopped[-1])
    assert [row["outer_step"] for row in read_rows(run, "validation.jsonl")] == [0]
    (run / "stop-requested").unlink()
    assert_same(run_steps(worlds[2], config, run), whole, tolerance=0.0)
    assert read_rows(run, "validation.jsonl") == read_rows(tmp_path / "whole", "validation.jsonl")
    best = [load_file(path / "weights" / "best.safetensors") for path in (run, tmp_path / "whole")]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())


@pytest.mark.parametrize("stage", [0, 3])
def test_workers_that_are_asked_to_leave_go_on_as_fewer_and_as_more(worlds, corpus, tmp_path, stage):
    """No step is done twice, and all come to what two workers come to that are left alone."""
    train = {"outer_steps": 9, "checkpoint_every": 100, "num_workers": [1, 2]}
    config = configure(corpus, train=train, engine={"zero_stage": stage})
    alone = run_steps(worlds[2], config, tmp_path / "alone")
    for size, run in ((1, tmp_path / "fewer"), (2, tmp_path / "same")):
        run.mkdir()
        for world, leave_after, reached in ((2, 2, 3), (size, 5, 6), (2, 1000, 9)):
            progress = worlds[world].run(run_training, config.model_dump(), run, leave_after)
            assert progress["outer_step"] == reached
        assert_same(read_rows(run), alone, 1e-5 if size == 1 else 0.0)
