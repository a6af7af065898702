"""What `distmeta evaluate` does: which of the evaluations it is, and with what configuration."""

from collections.abc import Callable
from pathlib import Path

from distmeta.config import Config, load_config, with_values
from distmeta.evaluation_request import EvaluationRequest
from distmeta.opening import reopen_run
from distmeta.paths import check_folder
from distmeta.rundir import RunDirectory

Say = Callable[[str], None]

DEFAULT_OUTPUT = Path("runs/evaluation")


def evaluate(
    request: EvaluationRequest, config_file: Path | None, overrides: list[str], run_dir: Path | None, say: Say
) -> list[str]:
    """Does what is asked for, and returns a table as text for each evaluation.

    Raises:
        UserError: something of it makes no sense, or is not there.
        Interrupted: a signal ended it.
    """
    # A configuration without networks is that of a run.
    is_of_run = run_dir is not None or (config_file is not None and not request.model)
    request.check(has_run=is_of_run)
    shapes = request.shapes()
    if not is_of_run:
        return _of_models(request, load_config(config_file, overrides, check=False), say)

    if request.on is not None:
        config, run = reopen_run(config_file, overrides, run_dir)
        _check_shapes(config, shapes)

        from distmeta.evaluate_on import evaluate_run_on

        tables = evaluate_run_on(request, config, run, say)
        _say_what_to_upload(run, say)
        return tables
    overridden = [[*overrides, *(f"{key}={value}" for key, value in shape.items())] for shape in shapes]
    opened = [reopen_run(config_file, each, run_dir) for each in overridden]
    configs, run = [config for config, _ in opened], opened[0][1]

    from distmeta.evaluation_networks import models_of
    from distmeta.run_evaluation import evaluate_all

    tables = evaluate_all(configs, run, say, models_of(request.model, configs[0], say))
    _say_what_to_upload(run, say)
    return tables


def _say_what_to_upload(run: RunDirectory, say: Say) -> None:
    from distmeta.tracking.wandb_place import upload_lines

    for line in upload_lines([run.path]):
        say(line)


def _of_models(request: EvaluationRequest, config: Config, say: Say) -> list[str]:
    folder = request.output or DEFAULT_OUTPUT
    check_folder(folder, "--output", writable=True)
    _check_shapes(config, request.shapes())

    from distmeta.evaluate_on import evaluate_models

    return evaluate_models(request, config, folder.absolute(), say)


def _check_shapes(config: Config, shapes: list[dict[str, object]]) -> None:
    """Raises UserError where a shape is none."""
    for shape in shapes:
        with_values(config, shape)
