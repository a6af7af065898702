"""What many workers cost the processes that there is one of: the driver, Ray's controller, and the first worker.

    python jobs/benchmarks/driver.py [--workers 16 256 1024] [--steps 10000] [--warnings 20]

No worker is started. What they would do to the driver is done to it: metrics of so many steps and so many warnings of
each worker lie in the run's files while the driver looks, the controller gets the reports of a checkpoint and the
failures of all workers at once, and one worker draws its share of the tasks, and puts the scores of all together after
a validation. Milliseconds of processor time.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.checkpoint.report_handler import ReportCallbackHandler
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from distmeta.config import Config, load_config, with_values
from distmeta.corpus.executor import LocalExecutor
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, corpus_directory, resolve
from distmeta.tracking.metrics import MetricsFile
from distmeta.train.events import note
from distmeta.train.failures import Failures
from distmeta.train.launch import _Progress
from distmeta.train.validate import Validator
from distmeta.train.work import WorkSource

SMLMT = Path(__file__).parents[1] / "configs" / "smlmt.yaml"
POLLS = 20
STEPS_A_POLL = 3
"""Outer steps between two looks of the driver, which are 0.3 s apart."""


def milliseconds(work: Callable[[], Any], times: int = 1) -> float:
    """Mean processor time of this process."""
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times * 1000


def megabytes() -> float:
    """Memory of this process."""
    return psutil.Process().memory_info().rss / 1e6


def row_of(step: int) -> dict[str, Any]:
    """Metrics as a step has them."""
    names = ("query_loss", "query_accuracy", "query_accuracy_before", "lm_loss", "grad_norm", "outer_lr", "inner_lr")
    times = ("step", "data", "inner", "outer", "communication", "optimizer", "tokens_per_second")
    row: dict[str, Any] = {"outer_step": step, "training/support_loss": [1.2345678901234567] * 5}
    row |= {f"training/{name}": 0.1234567890123456 for name in names}
    row |= {f"time/{name}": 0.1234567890123456 for name in times}
    return row | {f"cost/{name}": 1234567.890123 for name in ("flops", "wall_seconds", "worker_seconds")}


def driver(config: Config, run: RunDirectory, workers: int, steps: int, warnings: int) -> dict[str, float]:
    """A driver that looks at the files of a run, as `launch` does."""
    before = megabytes()
    file = MetricsFile(run.metrics)
    with _Progress(config, run, lambda text: None) as shown:
        rows = iter(range(1, steps + 1))
        written = milliseconds(lambda: file.append(row_of(next(rows))), steps)
        for rank in range(workers):
            for number in range(warnings):
                note(run.events, rank, f"worker {rank} has something to say about its task, number {number}")
        first = milliseconds(shown.update)
        seen, looks = steps, 0.0
        for _ in range(POLLS):
            for _ in range(STEPS_A_POLL):
                seen += 1
                file.append(row_of(seen))
            looks += milliseconds(shown.update) / POLLS
    return {
        "a row written": written,
        "a look, all news": first,
        "a look, 3 rows": looks,
        "MB more": megabytes() - before,
    }


def controller(run: RunDirectory, workers: int) -> dict[str, float]:
    """Ray's controller as a checkpoint is reported, and as all workers are lost at once."""
    storage = StorageContext(storage_path=str(run.path), experiment_dir_name="checkpoints")
    manager = CheckpointManager(CheckpointConfig(num_to_keep=2), storage)
    handler = ReportCallbackHandler([manager])
    handler._worker_group = _Group(workers)  # type: ignore[assignment]
    handler.after_worker_group_start(handler._worker_group)  # type: ignore[arg-type]

    def report(number: int) -> None:
        folder = f"{storage.experiment_fs_path}/step-{number}"
        Path(folder).mkdir(parents=True)
        statuses = {
            rank: WorkerStatus(
                running=True,
                training_report=_TrainingReport(
                    Checkpoint(folder) if rank == 0 else None, {"outer_step": number}, validation=False
                ),
            )
            for rank in range(workers)
        }
        handler.after_worker_group_poll_status(WorkerGroupPollStatus(statuses))

    async def reports() -> None:
        for number in range(10):
            report(number)

    reported = milliseconds(lambda: asyncio.run(reports())) / 10
    death = WorkerHealthCheckFailedError("gone", ray.exceptions.RayActorError())
    lost = WorkerGroupPollStatus({rank: WorkerStatus(running=False, error=death) for rank in range(workers)})
    policy = Failures(FailureConfig(max_failures=3), run.events)
    decided = milliseconds(lambda: policy.make_decision(lost.get_worker_group_error()))
    text = len(json.loads(run.events.read_text(encoding="utf-8").splitlines()[-1])["text"])
    return {"a checkpoint's reports": reported, "all workers lost": decided, "characters said of that": text}


class _Group:
    """A worker group of so many workers, none of which is there."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def __len__(self) -> int:
        return self._workers


def worker(config: Config, run: RunDirectory, workers: int) -> dict[str, float]:
    """The first of so many workers: its share of the tasks, and a validation's scores of all."""
    config = with_values(config, {"meta.meta_batch_size": workers, "train.num_workers": workers})
    source = WorkSource(Setup(config, run), torch.device("cpu"), 0, workers)
    drawn = milliseconds(lambda: source._draw(config.meta.lm_warmup_steps + 1), 5)
    source.close()
    validator = object.__new__(Validator)
    parts = [
        {"prototype": {"texts": dict.fromkeys(range(rank, config.train.validate_episodes, workers), 0.5)}}
        for rank in range(workers)
    ]
    validator._from_all = lambda own: parts  # type: ignore[assignment, return-value, method-assign]
    return {"its task drawn": drawn, "scores of all": milliseconds(lambda: validator._gather(parts[0]), 5)}


def all_of(config: Config, folder: Path, workers: int, steps: int, warnings: int) -> dict[str, float]:
    """What is measured with so many workers."""
    logging.disable(logging.WARNING)
    run = RunDirectory(folder)
    run.path.mkdir()
    return driver(config, run, workers, steps, warnings) | controller(run, workers) | worker(config, run, workers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[16, 256, 1024])
    parser.add_argument("--steps", type=int, default=10000, help="outer steps that are in the metrics file")
    parser.add_argument("--warnings", type=int, default=20, help="that each worker has written into the events file")
    options = parser.parse_args(arguments)
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="distmeta-driver-") as scratch:
        corpus = RunDirectory(Path(scratch))
        config = resolve(load_config(SMLMT, ["corpus.executor=local"]))
        prepare_with(LocalExecutor(), config, corpus, lambda _: None)
        config.corpus.directory = str(corpus_directory(config, corpus))
        config.train.outer_steps = 2 * options.steps
        for workers in options.workers:
            # A process of its own, for what memory it takes.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                folder = Path(scratch) / str(workers)
                future = pool.submit(all_of, config, folder, workers, options.steps, options.warnings)
                found[workers] = future.result()
    print(
        f"{options.steps} steps, {options.warnings} warnings of each worker; milliseconds, but where it says otherwise"
    )
    print(f"{'workers':26}" + "".join(f"{workers:10}" for workers in found))
    for name in next(iter(found.values())):
        print(f"{name:26}" + "".join(f"{each[name]:10.2f}" for each in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
