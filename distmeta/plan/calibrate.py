"""Some steps of the real training loop, on this machine and without Ray, to see what they take."""

import json
import multiprocessing
import os
import queue
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmeta.config import Config
from distmeta.errors import UserError
from distmeta.rundir import RunDirectory
from distmeta.setup import corpus_directory
from distmeta.tracking.metrics import MetricsTail

SECONDS = 24.0
"""Time after which no further step is begun; ending takes a few seconds more."""

PATIENCE = 90.0
"""Time in which a step with tasks has to be done."""

STEPS = 8
"""Steps of each kind, with and without tasks."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a run of some steps took."""

    warmup_step: float
    """Median seconds of an outer step of language modelling alone; 0 where the run has none."""
    task_step: float
    """Median seconds of an outer step with tasks."""
    validation: float
    """Seconds of a validation; 0 where the run has none."""
    checkpoint: float
    """Seconds of a checkpoint."""
    startup: float
    """Seconds from the start of the processes to the first step."""
    peak_memory: int
    """Largest memory of a worker's process (bytes)."""


def calibrate(config: Config, run: RunDirectory) -> Calibration:
    """Runs the training loop for about half a minute, with as many workers as this machine holds and the run has.

    A worker does as much of each step as it will in the run, with as many inner steps, so that what these hold in
    memory (all of them, where second-order gradients go back through them) is in the figure.

    Raises:
        UserError: the settings cannot work, or no step with tasks was done in time.
    """
    cpus = len(os.sched_getaffinity(0))
    workers = max(1, min(config.train.num_workers, int(cpus // config.train.cpus_per_worker)))
    short = config.model_copy(deep=True)
    short.corpus.directory = str(corpus_directory(config, run))
    short.tracking.wandb = "disabled"
    short.train.num_workers = workers
    tasks_of_a_worker = -(-config.meta.meta_batch_size // config.train.num_workers)
    short.meta.meta_batch_size = tasks_of_a_worker * workers
    short.meta.lm_warmup_steps = min(STEPS, config.meta.lm_warmup_steps)
    short.train.outer_steps = short.meta.lm_warmup_steps + STEPS
    if config.train.validate_every:
        short.train.validate_every = short.train.outer_steps
    short.train.checkpoint_every = short.train.outer_steps
    with tempfile.TemporaryDirectory(prefix="distmeta-plan-") as scratch:
        progress, rows = _run(short, RunDirectory(Path(scratch) / "run"), workers)
    rows = rows[1:]  # the first step pays for what is made once
    with_tasks = [row["seconds"] for row in rows if "query_loss" in row]
    if not with_tasks:
        raise UserError(
            f"plan: no step with tasks was done in {PATIENCE:.0f} s on this machine; give --rate, the operations a "
            "second of one worker"
        )
    without = [row["seconds"] for row in rows if "query_loss" not in row]
    phases = progress["phase_seconds"]
    stopped = progress["outer_step"] < short.train.outer_steps
    return Calibration(
        warmup_step=statistics.median(without) if without else 0.0,
        task_step=statistics.median(with_tasks[1:] or with_tasks),
        validation=phases["validation"] / (1 if stopped else 2),
        checkpoint=phases["checkpoint"],
        startup=progress["startup_seconds"],
        peak_memory=progress["peak_memory_bytes"],
    )


def _run(config: Config, run: RunDirectory, workers: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Progress and metrics rows of the short run, which is asked to stop when its time is over."""
    run.path.mkdir()
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    arguments = (config.model_dump(), str(run.path), workers, time.time(), results)
    processes = [context.Process(target=_worker, args=(rank, *arguments), daemon=True) for rank in range(workers)]
    for process in processes:
        process.start()
    started = time.monotonic()
    tail, rows = MetricsTail(run.metrics), []
    while results.empty() and all(process.is_alive() for process in processes):
        rows += tail.new()
        waited = time.monotonic() - started
        if waited > PATIENCE or (waited > SECONDS and any("query_loss" in row for row in rows[1:])):
            run.stop_request.touch()
        time.sleep(0.1)
    try:
        outcome = results.get(timeout=60 if all(process.is_alive() for process in processes) else 5)
    except queue.Empty:
        outcome = UserError("plan: a process that ran the steps was killed, maybe for its memory; give --rate instead")
    for process in processes:
        process.join(timeout=10)
        process.kill()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, rows + tail.new()


def _worker(rank: int, settings: dict[str, Any], path: str, workers: int, launched: float, results: Any) -> None:
    """Runs in each process."""
    import torch
    import wandb  # noqa: F401  # as a worker of Ray Train has it in memory

    import distmeta.train.launch  # noqa: F401  # the same
    from distmeta.train.loop import Worker, train

    config, run = Config.model_validate(settings), RunDirectory(Path(path))
    torch.set_num_threads(max(1, round(config.train.cpus_per_worker)))
    cuda = config.engine.device != "cpu" and torch.cuda.is_available()
    if workers > 1:
        rendezvous = f"file://{path}/rendezvous"
        backend = "nccl" if cuda else "gloo"
        torch.distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=workers)

    def store(outer_step: int, folder: Path | None) -> None:
        if folder is not None:
            shutil.copytree(folder, run.path / "checkpoint", dirs_exist_ok=True)

    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    try:
        outcome: Any = train(config, run, Worker(rank, workers, device, lambda: None, store, launched))
        json.dumps(outcome)
    except Exception as error:
        outcome = error if isinstance(error, UserError) else UserError(f"plan: {type(error).__name__}: {error}")
        results.put(outcome)
        return
    if rank == 0:
        results.put(outcome)
