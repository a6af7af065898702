"""What the commands do, in terms of a run: a resolved configuration and its directory."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distmeta.config import Config, load_config, to_yaml
from distmeta.corpus.executor import Executor, LocalExecutor, RayExecutor
from distmeta.errors import UserError
from distmeta.evaluate.config import EvaluateConfig
from distmeta.files import write_json, write_text
from distmeta.opening import refuse_changes
from distmeta.ownership import own
from distmeta.recipes import recipe_lines
from distmeta.run_corpus import check_tasks, is_large, note_use, own_setup, prepare_with, refuse_another
from distmeta.run_evaluation import evaluate
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, bare_network, check_weights, differentiates_twice, has_sdpa
from distmeta.sweep.config import SweepConfig
from distmeta.tasks.config import SPLITS, as_words
from distmeta.tasks.episode import Task
from distmeta.tasks.mixture import Mixture
from distmeta.tracking.config import TrackingConfig

Say = Callable[[str], None]

CHANGEABLE = {
    "corpus.accept_losses",
    "corpus.executor",
    "corpus.directory",  # what is in it must be the same
    "engine.zero_stage",
    "engine.device",
    "engine.weights",
    "engine.offload_optimizer",
    "train.num_workers",
    "train.cpus_per_worker",
    "train.outer_steps",
    "train.patience",
    "train.validate_every",  # but not from some to none, or from none to some
    "train.checkpoint_every",
    "train.checkpoints_to_keep",
    "train.max_failures",
    "train.wait_for_nodes",
    "train.wait_for_worker",
    "train.wait_for_storage",
    *(f"evaluate.{key}" for key in EvaluateConfig.model_fields),
    *(f"tracking.{key}" for key in TrackingConfig.model_fields),
    *(f"sweep.{key}" for key in SweepConfig.model_fields),
}
"""What may differ when a run is resumed: where it runs and how long (by which the learning rate falls)."""


def prepare(config: Config, run: RunDirectory, say: Say) -> None:
    """Prepares the corpus of a run, where it is not yet. Classes too few for tasks are told and no failure."""
    from distmeta.cluster.connect import ray_cluster

    check_claim(config, run, resume=True)
    with ExitStack() as stack:
        executor: Executor = LocalExecutor()
        if is_large(config, run):
            stack.enter_context(ray_cluster(config))
            executor = RayExecutor()
        prepare_with(executor, config, run, say, splits=())
    setup = Setup(config, run)
    for split in SPLITS:
        try:
            setup.tasks(split).check()
        except UserError as error:
            say(f"no tasks yet: {error}")


def dropped_rows(config: Config, run: RunDirectory) -> Iterator[str]:
    """Where the first rows that were dropped from a prepared corpus stand, by file and reason, a line each."""
    from distmeta.corpus.reports import dropped_rows

    yield from dropped_rows(Setup(config, run).manifest.sources)


def draw_tasks(config: Config, run: RunDirectory, split: str, start: int, count: int, say: Say) -> Iterator[Task]:
    """Tasks `start` to `start + count - 1` of a split, as the run draws them."""
    if split not in SPLITS:
        raise UserError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    check_claim(config, run, resume=True)
    prepare_with(LocalExecutor(), config, run, say, splits=(split,))
    setup = Setup(config, run)
    source = setup.evaluation_tasks() if split == config.evaluate.split == "test" else setup.tasks(split)
    for index in range(start, start + count):
        yield source.draw(index)


def pretrain(config: Config, run: RunDirectory, *, resume: bool, say: Say) -> str:
    """The main job: prepares, trains, exports and evaluates. Returns the few-shot table as text."""
    from distmeta.train.storage import own_storage

    with own(run.path), own_storage(config, run):
        return _pretrain(config, run, resume, say)


def _pretrain(config: Config, run: RunDirectory, resume: bool, say: Say) -> str:
    from distmeta.cluster.connect import check_workers_fit, ray_cluster
    from distmeta.cluster.doctor import check_nodes
    from distmeta.plan.memory import check_model_states_fit, choose_weights
    from distmeta.plan.table import shares
    from distmeta.run_baselines import baselines, check_baselines
    from distmeta.tracking.artifact import log_model
    from distmeta.tracking.wandb_environment import mode_of_environment
    from distmeta.train.outcome import how_it_is_chosen

    mode_of_environment()  # told now, if there is no such mode
    check_workers_fit(config)
    check_nodes(config, run, say)
    choose_weights(config, say)
    check_baselines(config)
    check_model_states_fit(config)
    check_claim(config, run, resume)
    if (table := _table_of_complete(config, run)) is not None:
        say(f"{run.path}: the run is complete; this is what it has come to")
        return table
    if weights := check_weights(config):
        say(weights)
    if config.evaluate.similarity:
        from distmeta.evaluate.similarity import read_pairs

        read_pairs(config.evaluate.similarity, config.evaluate.similarity_pairs)  # told now, if it cannot be read
    for line in recipe_lines(config):
        say(line)
    say(_choices(config))
    say(how_it_is_chosen(config.train))
    large = is_large(config, run)
    if not large:
        prepare_with(LocalExecutor(), config, run, say)
        check_tasks(config, run)
    with ray_cluster(config):
        from distmeta.train.launch import launch

        if large:
            prepare_with(RayExecutor(), config, run, say)
            check_tasks(config, run)
        claim(config, run)
        tasks, workers = config.meta.meta_batch_size, config.train.most_workers
        say(f"training on {as_words(config.train.num_workers)} workers, ZeRO stage {config.engine.zero_stage}")
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
                f"training diverged: {progress['diverged']}; lower meta.inner_lr or meta.outer_lr in another "
                f"--run-dir ({run.best_weights} keeps the best network before)"
            )
        for baseline, directory in baselines(config, run, progress, say):
            if "diverged" in (ended := launch(baseline, directory, say)):
                say(f"its training diverged: {ended['diverged']}; {directory.best_weights} is its network before that")
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


def _table_of_complete(config: Config, run: RunDirectory) -> str | None:
    """The table of a run that has nothing left to do, as when its job is submitted once more; None: it has."""
    from distmeta.evaluate.table import evaluation_table

    if not (run.has_begun and run.summary.exists() and run.evaluation.exists() and run.model.exists()):
        return None
    if config != load_config(run.config, check=False):
        return None
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    if "ended_early" not in summary and summary.get("outer_step") != config.train.outer_steps:
        return None
    return evaluation_table(json.loads(run.evaluation.read_text(encoding="utf-8")))


def _say_where_recorded(run: RunDirectory, say: Say) -> None:
    from distmeta.tracking.wandb_place import wandb_lines

    for line in wandb_lines([run.path]):
        say(line)


def check_claim(config: Config, run: RunDirectory, resume: bool) -> None:
    """Refuses to overwrite a run, and to go on with it as if it were another."""
    from distmeta.sweep.directory import is_sweep
    from distmeta.train.storage import check_not_gone, check_storage, newest_checkpoint, storage_path

    if is_sweep(run.path):
        raise UserError(f"{run.path}: a sweep is there, not a run; give another --run-dir")
    check_storage(config, run)
    if not run.has_begun:
        if config.train.storage and not resume and newest_checkpoint(config, run):
            raise UserError(
                f"train.storage: {storage_path(config, run)} holds the checkpoints of another run; give another "
                "--run-dir or storage, or go on with it by --resume"
            )
        return
    if not resume:
        raise UserError(f"{run.path}: a run is there; go on with it by --resume, or give another --run-dir")
    check_not_gone(config, run)
    refuse_changes(config, run, lambda key: key not in CHANGEABLE)
    if load_config(run.config, check=False).train.validates != config.train.validates:
        when = "before" if config.train.validates else "now"
        raise UserError(
            f"train.validate_every: 0 {when}, and a run validates from its beginning or never; give another --run-dir"
        )


def claim(config: Config, run: RunDirectory) -> None:
    """Makes the run directory this configuration's, with everything that is needed to run it again."""
    from distmeta.tracking.versions import environment

    setup = Setup(config, run)
    names = {"corpus": setup.manifest.content_digest, "tokenizer": setup.manifest.tokenizer_hash}
    refuse_another(setup.manifest, run)
    note_use(setup.corpus, run)
    write_json(run.environment, environment() | names)
    write_text(run.config, to_yaml(config))


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


def _summarize(config: Config, run: RunDirectory, progress: dict[str, Any], say: Say) -> None:
    from distmeta.tracking.cost import run_summary
    from distmeta.tracking.metrics import read_metrics
    from distmeta.train.advice import advise
    from distmeta.train.outcome import kept_lines

    summary = run_summary(progress, config.tracking)
    write_json(run.summary, summary)
    for line in kept_lines(progress, config.train.select_by, config.train.outer_steps):
        say(line)
    if run.validation.exists() and "diverged" not in progress:
        rows = read_metrics(run.metrics), read_metrics(run.validation)
        keeps_start = progress.get("best_step") == 0
        for line in advise(config, *rows, _training_classes(config, run), keeps_start=keeps_start):
            say(f"what to change: {line}")
    say(
        f"trained for {progress['wall_seconds']:.0f} s, {progress['worker_seconds']:.0f} worker-seconds, "
        f"{progress['flops']:.2e} floating-point operations, {summary['cost']:.2f} {summary['currency']}"
    )


def _training_classes(config: Config, run: RunDirectory) -> int:
    """How many classes tasks are drawn from in training."""
    source = Setup(config, run).tasks("train")
    sources = source.sources if isinstance(source, Mixture) else [source]
    return sum(len(each.class_names) for each in sources)


def export(config: Config, run: RunDirectory) -> Path:
    """Writes the kept network, and the starting one, as Hugging Face folders; returns the former's."""
    from distmeta.model_card import write_card

    with own(run.path):
        setup = own_setup(config, run).setup
        write_models(setup, run)
        write_card(setup.config, run)
        return run.model


def write_models(setup: Setup, run: RunDirectory) -> None:
    """The same of networks that are known to be those of the configuration. What is there stays until it is made."""
    import torch

    from distmeta.models import load_weights
    from distmeta.models.description import Description, write_modules
    from distmeta.models.export import export

    network = setup.network()
    for weights, folder in ((run.starting_weights, run.starting), (run.best_weights, run.model)):
        parameters, _ = load_weights(weights, torch.device("cpu"))
        description = Description.of_run(setup.config, is_trained=folder == run.model)
        scratch, before = (folder.with_name(f"{folder.name}.{part}") for part in ("partial", "before"))
        for each in (scratch, before):
            shutil.rmtree(each, ignore_errors=True)
        export(network, parameters, setup.tokenizer, scratch)
        write_modules(scratch, description.pooling, description.max_length, network.hidden_size)
        description.write(scratch, description.learned(network, parameters))
        if folder.exists():
            folder.rename(before)
        scratch.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
