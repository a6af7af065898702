"""From what a command is given to a run: its configuration, checked, and its directory.

The tree is read and checked before the libraries are loaded that a run needs, so that a mistake is told at once.
"""

from collections.abc import Callable
from pathlib import Path

from distmeta.cluster.job import check_stays, check_uploaded
from distmeta.config import Config, load_config
from distmeta.errors import UserError
from distmeta.evaluate.config import EvaluateConfig
from distmeta.ownership import refuse_second
from distmeta.paths import run_folder
from distmeta.recipes import as_begun
from distmeta.rundir import RunDirectory

STRUCTURE = {"meta.adapt", "meta.algorithm", "meta.inner_rates", "meta.last_k", "meta.learn_temperature"}
"""Settings of meta-learning that say which parameters there are."""

WITHOUT_EFFECT = {"corpus.accept_losses", "corpus.executor"}
"""Settings of a corpus that say nothing of what it is."""


def open_run(
    config_file: Path | None,
    overrides: list[str],
    run_dir: Path | None,
    *,
    to_train: bool = False,
    resume: bool = False,
) -> tuple[Config, RunDirectory]:
    """The resolved configuration, and the directory of its run, which need not be there yet.

    Where it is `to_train`, no other process may be writing there. Where no configuration is given and the directory
    holds a run, it is the run's own; to `resume`, one of the two is needed.
    """
    run = RunDirectory(run_folder(run_dir or Path("runs") / (config_file.stem if config_file else "default")))
    if config_file is None and run_dir and run.config.exists():
        config_file = run.config
    if resume:
        refuse_nothing(config_file, run_dir)
    check_uploaded(config_file)
    # A run that has begun goes on with the corpus that it has.
    config = _as_begun(load_config(config_file, overrides, files=not run.has_begun), run)
    check_stays(config, run.path)
    if to_train:
        refuse_second(run.path)

    from distmeta.setup import resolve

    return resolve(config), run


def refuse_nothing(config_file: Path | None, run_dir: Path | None) -> None:
    """Raises UserError where a directory is to be gone on with that says nothing of what was begun there: a run of all
    defaults is not what is meant."""
    if config_file is None and run_dir is not None:
        raise UserError(
            f"--resume: nothing to go on with is in {run_dir}; give its right name, or the --config FILE to begin with"
        )


def reopen_run(config_file: Path | None, overrides: list[str], run_dir: Path | None) -> tuple[Config, RunDirectory]:
    """The same for a run that has kept a network, which must be the same; its sources need not be there any more."""
    if config_file is None and run_dir is None:
        raise UserError("give --run-dir DIR (a run), or the --config FILE that it was made with")
    run = RunDirectory(run_folder(run_dir or Path("runs") / config_file.stem))  # type: ignore[union-attr]
    if not run.best_weights.exists() or not run.config.exists():
        raise UserError(f"{run.path}: no run is there that has kept a network; see `distmeta pretrain`")
    config = load_config(config_file or run.config, overrides, check=config_file is not None, files=False)
    config = _as_begun(config, run)
    refuse_second(run.path)

    from distmeta.setup import resolve

    config = resolve(config)
    structure = STRUCTURE | ({"meta.inner_steps"} if config.meta.inner_rates == "layer_step" else set())
    before = load_config(run.config, check=False)
    # The corpus that is there has been made, and its classes are split. Of another one it is not asked how.
    is_its_own = config.corpus.directory == before.corpus.directory

    def matters(key: str) -> bool:
        section, _, name = key.partition(".")
        if section == "tasks" and name in EvaluateConfig.model_fields:  # where `evaluate` is silent, it is as these
            return is_its_own and getattr(config.evaluate, name) == getattr(before.evaluate, name)
        if section in ("corpus", "tasks") or key == "train.seed":
            return is_its_own and key not in WITHOUT_EFFECT
        return section in ("model", "tokenizer") or key in structure

    refuse_changes(config, run, matters)
    return config, run


def _as_begun(config: Config, run: RunDirectory) -> Config:
    return as_begun(config, load_config(run.config, check=False)) if run.has_begun else config


def refuse_changes(config: Config, run: RunDirectory, matters: Callable[[str], bool]) -> None:
    """Raises UserError with a line for each key that matters and is not as the run has it."""
    before, now = load_config(run.config, check=False).model_dump(), config.model_dump()
    changed = [
        f"{section}.{key}: {before[section][key]!r} before, {now[section][key]!r} now"
        for section in now
        for key in now[section]
        if before[section][key] != now[section][key] and matters(f"{section}.{key}")
    ]
    if changed:
        raise UserError("\n".join([*changed, f"{run.path}: such a change makes another run; give another --run-dir"]))
