"""Run directories as training leaves them, made without training."""

from pathlib import Path
from typing import Any

import torch
import yaml

from distmeta.config import Config
from distmeta.corpus.executor import LocalExecutor
from distmeta.models import save_weights
from distmeta.opening import open_run
from distmeta.pipeline import claim
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.tracking.metrics import MetricsFile
from tests.corpora import tiny_config, write_labelled_csv


def quiet(_: str) -> None:
    """Where what is said does not matter."""


def write_config(folder: Path, source: str = "texts.csv", **sections: Any) -> Path:
    """The configuration of a tiny run on a file in the folder, which is made where it is not there."""
    if not (folder / source).exists():
        write_labelled_csv(folder / source)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(Path(source), **sections)))
    return path


def begun_run(folder: Path, name: str = "run", **sections: Any) -> tuple[Config, RunDirectory]:
    """A run that has made two steps, and keeps a network that is not quite the starting one."""
    config, run = open_run(write_config(folder, **sections), [], folder / name)
    prepare_with(LocalExecutor(), config, run, quiet)
    claim(config, run)
    network = Setup(config, run).network()
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    save_weights(run.starting_weights, parameters, 0)
    torch.manual_seed(0)
    save_weights(run.best_weights, {name: x + 0.01 * torch.randn_like(x) for name, x in parameters.items()}, 2)
    for step in (1, 2):
        MetricsFile(run.metrics).append(
            {"outer_step": step, "training/query_loss": 1.0, "training/query_accuracy": 0.5}
        )
    return config, run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
