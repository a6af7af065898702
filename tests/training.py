"""Training runs of seconds on worker processes, without Ray, and what they leave."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import yaml
from pyarrow.fs import LocalFileSystem

from distmeta.config import Config, load_config
from distmeta.corpus.executor import LocalExecutor
from distmeta.engine.checkpoint import Manifest, Progress, newest_good, read_checkpoint
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import resolve
from distmeta.tasks.draw import TaskSource
from distmeta.tasks.episode import Task
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.loop import Worker, train
from distmeta.train.phases import STEP_PHASES
from tests.corpora import tiny_config, write_labelled_csv
from tests.workers import World

CPU = torch.device("cpu")
TIMES = {
    "time/step",
    "time/tasks_per_second",
    "time/tokens_per_second",
    "time/data_wait_fraction",
    "cost/wall_seconds",
    "cost/worker_seconds",
}
TIMES |= {f"time/{phase}" for phase in STEP_PHASES}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


def prepared_corpus(folder: Path) -> Path:
    """A folder with a prepared corpus of labelled texts."""
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


def checkpoints_of(run: Path) -> CheckpointFolder:
    """Where a run keeps its checkpoints, all of them."""
    return CheckpointFolder.local(run / "checkpoints", keep=1000)


def newest(run: Path) -> Path | None:
    """The newest good checkpoint of a run."""
    name = newest_good(LocalFileSystem(), str(run / "checkpoints"))
    return run / "checkpoints" / name if name else None


def run_training(tree: dict[str, Any], run: Path, leave_after: float = float("inf")) -> dict[str, Any]:
    """Runs in each worker, which is asked to leave, as by Ray's controller, once there are so many outer steps."""
    is_group = torch.distributed.is_initialized()
    worker = Worker(
        torch.distributed.get_rank() if is_group else 0,
        torch.distributed.get_world_size() if is_group else 1,
        CPU,
        partial(newest, run),
        checkpoints_of(run),
        is_to_end=lambda: (run / "metrics.jsonl").exists() and len(read_rows(run)) >= leave_after,
    )
    return train(Config.model_validate(tree), RunDirectory(run), worker)


def run_training_until(tree: dict[str, Any], run: Path, split: str) -> dict[str, Any]:
    """Runs in each worker: trains, and asks for a stop as the second task of that split is drawn after the first step,
    of which there is a row already."""
    drawn = []

    def draw(self: TaskSource, index: int) -> Task:
        if self.split == split and (run / "metrics.jsonl").exists() and read_rows(run):
            drawn.append(index)
            if len(drawn) == 2:
                (run / "stop-requested").touch()
        return original(self, index)

    original = TaskSource.draw
    TaskSource.draw = draw  # type: ignore[method-assign]
    try:
        return run_training(tree, run)
    finally:
        TaskSource.draw = original  # type: ignore[method-assign]


def run_steps(world: World, config: Config, run: Path) -> list[dict[str, Any]]:
    """Trains (on) in `run`; returns the metrics rows."""
    run.mkdir(exist_ok=True)
    world.run(run_training, config.model_dump(), run)
    return read_rows(run)


def read_rows(run: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def manifest_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"checkpoint_{step:08d}" / "checkpoint.json"


def progress_at(run: Path, step: int) -> dict[str, Any]:
    """The progress in the checkpoint of a step."""
    return json.loads(manifest_of(run, step).read_text())["progress"]


def change_progress(run: Path, step: int, values: dict[str, Any]) -> None:
    """Changes the progress in the checkpoint of a step."""
    manifest = Manifest.model_validate_json(manifest_of(run, step).read_bytes())
    manifest.progress = Progress(**manifest.progress.model_dump() | values)
    manifest_of(run, step).write_bytes(manifest.written())


def is_measured(key: str) -> bool:
    """Whether a figure of a row is another one each time."""
    return key in TIMES or key.startswith("machine/")


def assert_same(rows: list[dict[str, Any]], others: list[dict[str, Any]], tolerance: float) -> None:
    """Every figure that is not a time agrees; the norm, which each stage sums in its own order, to its last digits."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        computed, expected = ({key for key in each if not is_measured(key)} for each in (row, other))
        assert computed == expected
        for key in computed:
            allowed = max(tolerance, 1e-14) if key in ("training/grad_norm", "training/clip_factor") else tolerance
            assert row[key] == pytest.approx(other[key], rel=allowed, abs=allowed), (row["outer_step"], key)


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    state, _, _ = read_checkpoint(manifest_of(run, step).parent)
    return dict(state.weights)
