"""What else a run trains to be held against: the same network without meta-learning, each below the run's folder."""

from collections.abc import Callable, Iterator
from typing import Any

from distmeta.config import Config, load_config, to_yaml
from distmeta.errors import UserError
from distmeta.files import write_text
from distmeta.meta.config import MetaConfig
from distmeta.recipes import filled
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, corpus_directory
from distmeta.store.folders import given
from distmeta.train.storage import storage_path

LANGUAGE_MODEL, MULTITASK = "language-model", "multitask"
"""Names of the networks in tables, and of their folders below the run's."""

OF_EVERY_ALGORITHM = (
    "freeze_lowest",
    "outer_lr",
    "weight_decay",
    "warmup_ratio",
    "schedule",
    "meta_batch_size",
    "lm_weight",
    "lm_warmup_steps",
    "lm_batch_size",
    "lm_mask_rate",
)
"""Settings of `meta` that mean the same whatever the algorithm."""


def wanted(config: Config) -> list[str]:
    """Names of the baselines that a run is to train."""
    options = config.evaluate
    asked = {LANGUAGE_MODEL: options.language_model_baseline, MULTITASK: options.multitask_baseline}
    return [name for name, is_asked in asked.items() if is_asked]


def baselines(
    config: Config, run: RunDirectory, progress: dict[str, Any], say: Callable[[str], None]
) -> Iterator[tuple[Config, RunDirectory]]:
    """The configuration and directory of each baseline of a run that has made the `progress`."""
    for name in wanted(config):
        baseline = config.model_copy(deep=True)
        baseline.corpus.directory = given(corpus_directory(config, run))
        baseline.evaluate.language_model_baseline = baseline.evaluate.multitask_baseline = False
        baseline.tracking.wandb = "disabled"
        if config.train.storage:
            baseline.train.storage = storage_path(config, run)
        directory = RunDirectory(run.path / name)
        if name == LANGUAGE_MODEL:
            say("training the language-model baseline on as many tokens")
            _language_model(baseline, run, progress)
        else:
            say("training the multi-task baseline on the same texts and steps")
            if baseline.tasks.smlmt_share:
                say("SMLMT tasks are left out of it: its heads are over the classes of labelled sets")
                baseline.tasks.smlmt_share = 0.0
            baseline.meta = MetaConfig(
                algorithm="multitask", **{key: getattr(config.meta, key) for key in OF_EVERY_ALGORITHM}
            )
            baseline = filled(baseline)
        write_text(directory.environment, run.environment.read_text(encoding="utf-8"))
        write_text(directory.config, to_yaml(baseline))
        yield baseline, directory


def _language_model(baseline: Config, run: RunDirectory, progress: dict[str, Any]) -> None:
    """Makes it a run that trains on language modelling alone, for as many tokens as `progress` counts."""
    if baseline.meta.lm_weight == 0:
        baseline.meta.lm_weight = 1.0
    sequences = baseline.meta.meta_batch_size * baseline.meta.lm_batch_size
    tokens_per_step = sequences * Setup(baseline, run).mean_text_tokens
    baseline.train.outer_steps = max(1, round(progress["tokens"] / tokens_per_step))
    baseline.meta.lm_warmup_steps = baseline.train.outer_steps
    baseline.train.validate_every = baseline.train.patience = 0
    if baseline.train.average_with_start == "auto":
        baseline.train.average_with_start = 0.0


def check_baselines(config: Config) -> None:
    """Refuses baselines that a run whose weights are chosen cannot train.

    Raises:
        UserError: weights stay partitioned, of which multi-task training knows nothing.
    """
    if config.evaluate.multitask_baseline and config.engine.weights == "partitioned":
        raise UserError(
            "evaluate.multitask_baseline: needs engine.weights whole, which are partitioned here; leave it out"
        )


def trained_baseline(config: Config, run: RunDirectory, setup: Setup, name: str) -> tuple[Setup, RunDirectory]:
    """The baseline of that name as the run has trained it, to be evaluated as the run is.

    Raises:
        UserError: the run has none.
    """
    directory = RunDirectory(run.path / name)
    if not directory.best_weights.exists():
        key = {LANGUAGE_MODEL: "language_model_baseline", MULTITASK: "multitask_baseline"}[name]
        raise UserError(f"evaluate.{key}: {run.path} has no such baseline; set it when the run is trained")
    baseline = load_config(directory.config, check=False)
    baseline.corpus.directory = str(setup.corpus)
    baseline.evaluate = config.evaluate
    if name == LANGUAGE_MODEL:
        for key in ("adapt", "inner_lr"):
            setattr(baseline.meta, key, getattr(config.meta, key))
    return Setup(baseline, directory), directory
