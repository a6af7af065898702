"""Some steps of the real training loop, on this machine and without Ray, to see what they take."""

import contextlib
import io
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
from distmeta.machine import available_cpus
from distmeta.plan.memory import on_gpu
from distmeta.rundir import RunDirectory
from distmeta.setup import corpus_directory
from distmeta.signals import end_with_parent
from distmeta.tracking.metrics import MetricsTail

SECONDS = 20.0
"""Time after which no further step is begun; ending takes a few seconds more."""

PATIENCE = 90.0
"""Time in which all has to be done; then the processes are ended."""

STEPS = 8
"""Steps of each kind, with and without tasks."""

EPISODES = 3
"""Episodes of the evaluation, after a first one."""


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
    export: float
    """Seconds in which the kept and the starting network are exported."""
    first_episode: float
    """Seconds of an evaluation of these two on one episode, all that is done once included."""
    episode: float
    """Seconds of each further episode."""
    workers: int
    """Workers that ran."""
    memory_without_model: int
    """Memory of a worker's process with all its libraries, before it makes the network (bytes); on a GPU 0."""
    peak_memory: int
    """Largest memory of a worker's process (bytes)."""


def calibrate(config: Config, run: RunDirectory) -> Calibration:
    """Runs the training loop for about half a minute, with as many workers as this machine holds and the run has.

    A worker does as much of each step as it will in the run, with as many inner steps, so that what these hold in
    memory (all of them, where second-order gradients go back through them) is in the figure.

    Afterwards the networks that it kept are exported, and evaluated on a few of the run's own episodes.

    Raises:
        UserError: the settings cannot work, there is no GPU and one is asked for, a process was killed, or all this was
            not done in `PATIENCE` seconds.
    """
    if config.engine.device == "cuda" and not on_gpu(config):
        raise UserError(
            "engine.device: cuda needs a GPU, and this machine has none to run steps on; give --rate, the operations a "
            "second of one worker"
        )
    workers = max(1, min(config.train.num_workers, int(available_cpus() // config.train.cpus_per_worker)))
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
        outcome, rows = _run(short, RunDirectory(Path(scratch) / "run"), workers)
    rows = rows[1:]  # the first step pays for what is made once
    with_tasks = [row["seconds"] for row in rows if "query_loss" in row]
    without = [row["seconds"] for row in rows if "query_loss" not in row]
    progress = outcome["progress"]
    if not with_tasks:
        raise UserError(f"plan: training diverged: {progress['diverged']}; lower meta.inner_lr or meta.outer_lr")
    phases = progress["phase_seconds"]
    stopped = progress["outer_step"] < short.train.outer_steps
    return Calibration(
        warmup_step=statistics.median(without) if without else 0.0,
        task_step=statistics.median(with_tasks[1:] or with_tasks),
        validation=phases["validation"] / (1 if stopped else 2),
        checkpoint=phases["checkpoint"],
        startup=progress["startup_seconds"],
        export=outcome["export"],
        first_episode=outcome["first_episode"],
        episode=outcome["episode"],
        workers=workers,
        memory_without_model=outcome["memory_without_model"],
        peak_memory=progress["peak_memory_bytes"],
    )


def _run(config: Config, run: RunDirectory, workers: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the main process found and the metrics rows of the short run, which is asked to stop when its time is over.

    The processes have ended when this returns.
    """
    run.path.mkdir()
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    arguments = (config.model_dump(), str(run.path), workers, time.time(), results)
    processes = [context.Process(target=_worker, args=(rank, *arguments), daemon=True) for rank in range(workers)]
    tail, rows = MetricsTail(run.metrics), []
    started = time.monotonic()
    outcome: Any = None
    try:
        for process in processes:
            process.start()
        while outcome is None and not any(process.exitcode for process in processes):
            waited = time.monotonic() - started
            if waited > PATIENCE:
                raise UserError(
                    f"plan: some steps with tasks, a checkpoint and a few episodes of the evaluation were not done in "
                    f"{PATIENCE:.0f} s on this machine; give --rate, the operations a second of one worker"
                )
            rows += tail.new()
            if waited > SECONDS and any("query_loss" in row for row in rows[1:]):
                run.stop_request.touch()
            with contextlib.suppress(queue.Empty):
                outcome = results.get(timeout=0.1)
        # Where one is killed another one fails for that, and may be heard first.
        if isinstance(outcome, Exception):
            for process in processes:
                process.join(timeout=1)
        if any(process.exitcode for process in processes):
            raise UserError(
                "plan: a process that ran some steps was killed, maybe by the system for its memory; take a smaller "
                "model or smaller tasks, or give --rate, the operations a second of one worker"
            )
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, rows + tail.new()
    finally:
        for process in processes:
            process.kill()
            process.join()


def _worker(rank: int, settings: dict[str, Any], path: str, workers: int, launched: float, results: Any) -> None:
    """Runs in each process; the main one, or one that fails, puts the outcome into `results`."""
    end_with_parent()
    config, run = Config.model_validate(settings), RunDirectory(Path(path))
    try:
        outcome: Any = _steps(rank, config, run, workers, launched)
        if rank == 0:
            outcome |= _ending(config, run)
        json.dumps(outcome)
    except Exception as error:
        outcome = error if isinstance(error, UserError) else UserError(f"plan: {type(error).__name__}: {error}")
    if rank == 0 or isinstance(outcome, Exception):
        results.put(outcome)


def _steps(rank: int, config: Config, run: RunDirectory, workers: int, launched: float) -> dict[str, Any]:
    """The training, as a worker of Ray Train would do it and with the same libraries in memory."""
    import torch

    cuda = config.engine.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    os.environ["DS_ACCELERATOR"] = device.type
    import deepspeed  # noqa: F401
    import wandb  # noqa: F401

    import distmeta.train.launch  # noqa: F401
    from distmeta.train.loop import Worker, train

    torch.set_num_threads(max(1, round(config.train.cpus_per_worker)))
    if workers > 1:
        rendezvous = f"file://{run.path}/rendezvous"
        backend = "nccl" if cuda else "gloo"
        torch.distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=workers)

    def store(outer_step: int, folder: Path | None) -> None:
        if folder is not None:
            shutil.copytree(folder, run.path / "checkpoint", dirs_exist_ok=True)

    memory = 0 if cuda else _own_memory()
    progress = train(config, run, Worker(rank, workers, device, lambda: None, store, launched))
    if workers > 1:
        torch.distributed.destroy_process_group()  # what comes after is of one process, and the others are about to end
    return {"progress": progress, "memory_without_model": memory}


def _own_memory() -> int:
    """Memory of this process (bytes)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _ending(config: Config, run: RunDirectory) -> dict[str, float]:
    """Seconds of what the command does after training, in one process with the whole machine to itself."""
    import torch

    from distmeta.evaluate.run import Candidate, evaluate_candidates
    from distmeta.pipeline import write_models
    from distmeta.setup import Setup

    torch.set_num_threads(available_cpus())
    started = time.perf_counter()
    setup = Setup(config, run)
    write_models(setup, run)
    exported = time.perf_counter()
    weights = {"meta-pretrained": run.best_weights, "starting": run.starting_weights}
    candidates = [Candidate(name, setup, each) for name, each in weights.items()]
    spent = []
    with contextlib.redirect_stderr(io.StringIO()):  # of the progress bar
        for episodes in (1, 1 + EPISODES):
            config.evaluate.episodes = episodes
            begun = time.perf_counter()
            evaluate_candidates(candidates, lambda _: None)
            spent.append(time.perf_counter() - begun)
    episode = max(0.0, spent[1] - spent[0]) / EPISODES
    return {"export": exported - started, "first_episode": spent[0], "episode": episode}
