"""What the commands do, in terms of a run: a resolved configuration and its directory."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distmeta.config import Config, load_config, to_yaml
from distmeta.corpus.executor import Executor, LocalExecutor, RayExecutor
from distmeta.corpus.prepare import total_bytes
from distmeta.errors import UserError
from distmeta.evaluate.config import EvaluateConfig
from distmeta.opening import refuse_changes
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, bare_network, check_weights, corpus_directory, differentiates_twice, has_sdpa
from distmeta.sweep.config import SweepConfig
from distmeta.tasks.config import SPLITS, Split
from distmeta.tasks.episode import Task
from distmeta.tracking.config import TrackingConfig

Say = Callable[[str], None]

LOCAL_BYTES = 8_000_000
"""Below this size `corpus.executor: auto` works in this process: a cluster takes longer to start than the work."""

CHANGEABLE = {
    "corpus.accept_losses",
    "corpus.executor",
    "engine.zero_stage",
    "engine.device",
    "engine.weights",
    "engine.offload_optimizer",
    "train.num_workers",
    "train.cpus_per_worker",
    "train.outer_steps",
    "train.checkpoint_every",
    "train.checkpoints_to_keep",
    "train.max_failures",
    *(f"evaluate.{key}" for key in EvaluateConfig.model_fields),
    *(f"tracking.{key}" for key in TrackingConfig.model_fields),
    *(f"sweep.{key}" for key in SweepConfig.model_fields),
}
"""What may differ when a run is resumed: where it runs and how long (by which the learning rate falls)."""


def prepare(config: Config, run: RunDirectory, say: Say) -> None:
    """Prepares the corpus of a run, where it is not yet. Classes too few for tasks are told and no failure."""
    from distmeta.cluster import ray_cluster

    _check_claim(config, run, resume=True)
    with ExitStack() as stack:
        executor: Executor = LocalExecutor()
        if is_large(config):
            stack.enter_context(ray_cluster(config))
            executor = RayExecutor()
        prepare_with(executor, config, run, say, splits=())
    setup = Setup(config, run)
    for split in SPLITS:
        try:
            setup.tasks(split).draw(0)
        except UserError as error:
            say(f"no tasks yet: {error}")


def dropped_rows(config: Config, run: RunDirectory) -> Iterator[str]:
    """Where the first rows that were dropped from a prepared corpus stand, by file and reason, a line each."""
    from distmeta.corpus.reports import dropped_rows

    yield from dropped_rows(Setup(config, run).manifest.sources)


def is_large(config: Config) -> bool:
    """Whether the corpus is to be prepared on a cluster."""
    wanted = config.corpus.executor
    return wanted == "ray" or (wanted == "auto" and total_bytes(config.corpus) > LOCAL_BYTES)


def draw_tasks(config: Config, run: RunDirectory, split: str, start: int, count: int, say: Say) -> Iterator[Task]:
    """Tasks `start` to `start + count - 1` of a split, as the run draws them."""
    if split not in SPLITS:
        raise UserError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    _check_claim(config, run, resume=True)
    prepare_with(LocalExecutor(), config, run, say, splits=(split,))
    setup = Setup(config, run)
    source = setup.evaluation_tasks() if split == config.evaluate.split == "test" else setup.tasks(split)
    for index in range(start, start + count):
        yield source.draw(index)


def pretrain(config: Config, run: RunDirectory, *, resume: bool, say: Say) -> str:
    """The main job: prepares, trains, exports and evaluates. Returns the few-shot table as text."""
    from distmeta.cluster import check_workers_fit, ray_cluster
    from distmeta.plan.memory import check_model_states_fit, choose_weights
    from distmeta.plan.table import shares
    from distmeta.tracking.artifact import log_model
    from distmeta.tracking.wandb_environment import mode_of_environment

    mode_of_environment()  # told now, if there is no such mode
    check_workers_fit(config)
    choose_weights(config, say)
    check_model_states_fit(config)
    _check_claim(config, run, resume)
    if weights := check_weights(config):
        say(weights)
    say(_choices(config))
    large = is_large(config)
    if not large:
        prepare_with(LocalExecutor(), config, run, say)
        check_tasks(config, run)
    with ray_cluster(config):
        from distmeta.train.launch import launch

        if large:
            prepare_with(RayExecutor(), config, run, say)
            check_tasks(config, run)
        claim(config, run)
        tasks, workers = config.meta.meta_batch_size, config.train.num_workers
        say(f"training on {workers} workers, ZeRO stage {config.engine.zero_stage}")
        say(f"tasks of an outer step: {tasks}, {shares(tasks, workers)}")
        if tasks % workers:
            say("those with fewer wait: make meta.meta_batch_size a multiple of train.num_workers to use all the time")
        if config.meta.lm_warmup_steps:
            say(_steps(config))
        try:
            progress = launch(config, run, say)
        except BaseException:
            _say_where_recorded(run, say)
            raise
        if "diverged" in progress:
            _summarize(config, run, progress, say)
            _say_where_recorded(run, say)
            raise UserError(
                f"training diverged: {progress['diverged']}; lower meta.inner_lr or meta.outer_lr in another --run-dir "
                f"({run.best_weights} keeps the best network before)"
            )
        if config.evaluate.language_model_baseline:
            say("training the language-model baseline on as many tokens")
            baseline, baseline_run = _language_model_baseline(config, run, progress)
            launch(baseline, baseline_run, say)
    _summarize(config, run, progress, say)
    folder = export(config, run)
    say(f"exported to {folder}")
    if log_model(run.path, folder, config.tracking):
        say("uploaded the model to W&B")
    for line in Setup(config, run).manifest.losses():
        say(line)
    table = evaluate(config, run, say)
    _say_where_recorded(run, say)
    return table


def _say_where_recorded(run: RunDirectory, say: Say) -> None:
    from distmeta.tracking.wandb_place import wandb_lines

    for line in wandb_lines([run.path]):
        say(line)


def check_tasks(config: Config, run: RunDirectory) -> None:
    """Draws one task of each kind that the run will need, so that what cannot be drawn is told now."""
    setup = Setup(config, run)
    setup.tasks("train").draw(0)
    if config.train.validate_every:
        setup.tasks("valid").draw(0)
    setup.evaluation_tasks().draw(0)


def _check_claim(config: Config, run: RunDirectory, resume: bool) -> None:
    """Refuses to overwrite a run, and to go on with it as if it were another."""
    from distmeta.train.storage import newest_checkpoint, storage_path

    if not _has_begun(run):
        if config.train.storage and not resume and newest_checkpoint(config, run):
            raise UserError(
                f"train.storage: {storage_path(config, run)} holds the checkpoints of another run; give another "
                "--run-dir or storage, or go on with it by --resume"
            )
        return
    if not resume:
        raise UserError(f"{run.path}: a run is there; go on with it by --resume, or give another --run-dir")
    refuse_changes(config, run, lambda key: key not in CHANGEABLE)


def _has_begun(run: RunDirectory) -> bool:
    """Whether the directory is a run's that has scored a network or made a step, or a trial's. Until then nothing is
    lost when another configuration takes it, such as one that mends what kept the first from beginning."""
    if not run.config.exists():
        return False
    return any(path.exists() for path in (run.trial, run.starting_weights, run.validation, run.metrics))


def claim(config: Config, run: RunDirectory) -> None:
    """Makes the run directory this configuration's, with everything that is needed to run it again."""
    from distmeta.tracking.versions import environment

    corpus = Setup(config, run).manifest.content_digest
    if run.environment.exists() and _has_begun(run):
        before = json.loads(run.environment.read_text(encoding="utf-8"))["corpus"]
        if before != corpus:
            raise UserError(f"{run.path}: the corpus is not the one that this run began with; give another --run-dir")
    run.path.mkdir(parents=True, exist_ok=True)
    run.config.write_text(to_yaml(config), encoding="utf-8")
    run.environment.write_text(json.dumps(environment() | {"corpus": corpus}, indent=2) + "\n", encoding="utf-8")


def _steps(config: Config) -> str:
    """Which steps of a run with a warm-up have tasks."""
    warmup, steps = config.meta.lm_warmup_steps, config.train.outer_steps
    return (
        f"outer steps 1 to {warmup} train the language model alone; the {steps - warmup} from {warmup + 1} to {steps} "
        "have tasks, and with them a query_loss"
    )


def _choices(config: Config) -> str:
    """What the software chose where it was left to it."""
    reason = ""
    if differentiates_twice(config):
        reason = " (sdpa has no second derivative)"
    elif config.model.attention == "eager" and not has_sdpa(bare_network(config)):
        reason = " (the model has no sdpa)"
    return (
        f"{config.meta.algorithm}, adapting {config.meta.adapt}; {config.model.attention} attention{reason}; "
        f"features: {config.model.pooling} hidden state; language-model weight {config.meta.lm_weight:g}"
    )


def prepare_with(
    executor: Executor, config: Config, run: RunDirectory, say: Say, splits: tuple[Split, ...] | None = None
) -> None:
    """Prepares the corpus of a run by a given executor, where it is not yet prepared.

    Raises:
        UserError: one of `splits` has too few classes; unset, those that training and evaluation need.
    """
    from distmeta.corpus.prepare import prepare

    manifest = prepare(
        corpus_directory(config, run),
        config.corpus,
        config.tokenizer,
        config.tasks,
        tokenizer_source=config.tokenizer.name_or_path or config.model.name_or_path,
        max_length=config.tokenizer.max_length,
        executor=executor,
        splits=_needed_splits(config) if splits is None else splits,
    )
    say(manifest.describe())


def _needed_splits(config: Config) -> tuple[Split, ...]:
    needed = {"train", config.evaluate.split} | ({"valid"} if config.train.validate_every else set())
    return tuple(split for split in SPLITS if split in needed)


def _language_model_baseline(
    config: Config, run: RunDirectory, progress: dict[str, Any]
) -> tuple[Config, RunDirectory]:
    """The run that trains the same network on language modelling alone, for as many tokens as `progress` counts."""
    from distmeta.train.storage import storage_path

    baseline = config.model_copy(deep=True)
    baseline.corpus.directory = str(corpus_directory(config, run))
    if config.meta.lm_weight == 0:
        baseline.meta.lm_weight = 1.0
    sequences = config.meta.meta_batch_size * config.meta.lm_batch_size
    tokens_per_step = sequences * Setup(baseline, run).mean_text_tokens
    baseline.train.outer_steps = max(1, round(progress["tokens"] / tokens_per_step))
    baseline.meta.lm_warmup_steps = baseline.train.outer_steps
    baseline.train.validate_every = 0
    baseline.tracking.wandb = "disabled"
    if config.train.storage:
        baseline.train.storage = storage_path(config, run)
    directory = RunDirectory(run.path / "language-model")
    directory.path.mkdir(exist_ok=True)
    directory.config.write_text(to_yaml(baseline), encoding="utf-8")
    return baseline, directory


def _summarize(config: Config, run: RunDirectory, progress: dict[str, Any], say: Say) -> None:
    from distmeta.tracking.cost import run_summary

    summary = run_summary(progress, config.tracking)
    run.summary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if "best_score" in progress:
        starting, best, step = progress["starting_score"], progress["best_score"], progress["best_step"]
        share = progress.get("best_average")
        average = f" ({share:.0%} of it, and {1 - share:.0%} of the starting weights)" if share else ""
        say(
            f"kept the network of outer step {step}{average}: meta-valid {config.train.select_by} accuracy {best:.1%}, "
            f"{starting:.1%} before training"
        )
        if step == 0:
            say("training made the network no better on the meta-valid classes: the starting network is what is kept")
    say(
        f"trained for {progress['wall_seconds']:.0f} s, {progress['worker_seconds']:.0f} worker-seconds, "
        f"{progress['flops']:.2e} floating-point operations, {summary['cost']:.2f} {summary['currency']}"
    )


def export(config: Config, run: RunDirectory) -> Path:
    """Writes the kept network, and the starting one, as Hugging Face folders; returns the former's."""
    import torch

    from distmeta.models import load_weights
    from distmeta.models.export import export

    setup = Setup(config, run)
    network = setup.network()
    for weights, folder in ((run.starting_weights, run.starting), (run.best_weights, run.model)):
        parameters, _ = load_weights(weights, torch.device("cpu"))
        scratch = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        export(network, parameters, setup.tokenizer, scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    return run.model


def evaluate(config: Config, run: RunDirectory, say: Say) -> str:
    """Scores the run's networks on held-out classes; writes `evaluation.json` and returns the table as text."""
    from distmeta.evaluate.run import Candidate, evaluate_candidates
    from distmeta.evaluate.table import evaluation_table

    setup = Setup(config, run)
    candidates = [
        Candidate("meta-pretrained", setup, run.best_weights),
        Candidate("starting", setup, run.starting_weights),
    ]
    baseline_run = RunDirectory(run.path / "language-model")
    if config.evaluate.language_model_baseline:
        if not baseline_run.best_weights.exists():
            raise UserError(
                f"evaluate.language_model_baseline: {run.path} has no such baseline; set it when the run is trained"
            )
        baseline = load_config(baseline_run.config, check=False)
        baseline.evaluate = config.evaluate
        for key in ("adapt", "inner_lr"):
            setattr(baseline.meta, key, getattr(config.meta, key))
        candidates.append(Candidate("language-model", Setup(baseline, baseline_run), baseline_run.best_weights))
    report = evaluate_candidates(candidates, say)
    run.evaluation.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return evaluation_table(report)
