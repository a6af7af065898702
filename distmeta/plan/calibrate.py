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
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distmeta.cluster.machine import available_cpus
from distmeta.config import Config
from distmeta.corpus.executor import LocalExecutor
from distmeta.errors import UserError
from distmeta.plan.memory import on_gpu
from distmeta.rundir import RunDirectory
from distmeta.setup import corpus_directory
from distmeta.signals import end_with_parent
from distmeta.tracking.metrics import MetricsTail

SECONDS = 20.0
"""Time after which no further step is begun; ending takes a few seconds more."""

PATIENCE = 90.0
"""Time in which all has to be done; then the processes are ended, and what is measured till then is all there is."""

STEPS = 8
"""Steps of each kind, with and without tasks."""

EPISODES = 3
"""Episodes of the evaluation, after a first one."""

PAIRS = 50
"""Pairs of texts of which the similarity is measured."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a run of some steps took."""

    warmup_step: float
    """Median seconds of an outer step of language modelling alone; 0 where the run has none."""
    task_step: float
    """Median seconds of an outer step with tasks."""
    validation: float
    """Seconds of a validation; 0 where the run has none."""
    checkpoint: float | None
    """Seconds of a checkpoint; this and what follows is None where it was not come to in time."""
    startup: float
    """Seconds from the start of the processes to the first step."""
    export: float | None
    """Seconds in which the kept and the starting network are exported."""
    first_episode: float | None
    """Seconds of an evaluation of these two on one episode, all that is done once included."""
    episode: float | None
    """Seconds of each further episode."""
    fine_tuned_episode: float | None
    """Seconds of an episode on which the starting network is fine-tuned; 0 where none is."""
    similarity: float | None
    """Seconds in which a network's similarity of pairs of texts is measured; 0 where that is not asked for."""
    steps: range
    """The outer steps, from 0, whose median `task_step` is."""
    tasks_per_step: int
    """Of all workers that ran."""
    workers: int
    """Workers that ran."""
    memory_without_model: int
    """Memory of a worker's process with all its libraries, before it makes the network (bytes); on a GPU 0."""
    peak_memory: int | None
    """Largest memory of a worker's process (bytes)."""

    @property
    def unmeasured(self) -> list[str]:
        """What of a run was not come to in time."""
        missing = {"checkpoints": self.checkpoint, "export": self.export, "evaluation": self.episode}
        missing["working memory"] = self.peak_memory
        return [name for name, value in missing.items() if value is None]


def calibrate(config: Config, run: RunDirectory) -> Calibration:
    """Runs the training loop for about half a minute, with as many workers as this machine holds and the run has.

    A worker does as much of each step as it will in the run, with as many inner steps, so that what these hold in
    memory (all of them, where second-order gradients go back through them) is in the figure.

    Afterwards the networks that it kept are exported, and evaluated on a few of the run's own episodes.

    Raises:
        UserError: the settings cannot work, there is no GPU and one is asked for, a process was killed, or not even two
            steps with tasks were done in `PATIENCE` seconds.
    """
    if config.engine.device == "cuda" and not on_gpu(config):
        raise UserError(
            "engine.device: cuda needs a GPU, and this machine has none to run steps on; give --rate, the operations a "
            "second of one worker"
        )
    workers = max(1, min(config.train.most_workers, int(available_cpus() // config.train.cpus_per_worker)))
    short = config.model_copy(deep=True)
    short.corpus.directory = str(corpus_directory(config, run))
    short.tracking.wandb = "disabled"
    short.train.num_workers = workers
    tasks_of_a_worker = -(-config.meta.meta_batch_size // config.train.most_workers)
    short.meta.meta_batch_size = tasks_of_a_worker * workers
    short.meta.lm_warmup_steps = min(STEPS, config.meta.lm_warmup_steps)
    short.train.outer_steps = short.meta.lm_warmup_steps + STEPS
    if config.train.validates:
        short.train.validate_every = short.train.outer_steps
        short.train.average_with_start, short.train.patience = 0.0, 0
    short.train.checkpoint_every = short.train.outer_steps
    with tempfile.TemporaryDirectory(prefix="distmeta-plan-") as scratch:
        outcome, rows = _run(short, RunDirectory(Path(scratch) / "run"), workers)
    first, rows = rows[0], rows[1:]  # the first step pays for what is made once
    with_tasks = [row["time/step"] for row in rows if "training/query_loss" in row]
    last_step = max((row["outer_step"] for row in rows if "training/query_loss" in row), default=0)
    without = [row["time/step"] for row in rows if "training/query_loss" not in row]
    progress = outcome.get("progress", {})
    if not with_tasks:
        raise UserError(f"plan: training diverged: {progress['diverged']}; lower meta.inner_lr or meta.outer_lr")
    # Before the first step stands the validation of the network as it was.
    validation = max(0.0, first["cost/wall_seconds"] - first["time/step"])
    if progress.get("outer_step") == short.train.outer_steps:
        validation = progress["phase_seconds"]["validation"] / 2
    return Calibration(
        warmup_step=statistics.median(without) if without else 0.0,
        task_step=statistics.median(with_tasks[1:] or with_tasks),
        steps=range(last_step - max(1, len(with_tasks) - 1), last_step),
        tasks_per_step=short.meta.meta_batch_size,
        validation=validation if config.train.validates else 0.0,
        checkpoint=progress["phase_seconds"]["checkpoint"] if progress else None,
        startup=outcome["startup"],
        export=outcome.get("export"),
        first_episode=outcome.get("first_episode"),
        episode=outcome.get("episode"),
        fine_tuned_episode=outcome.get("fine_tuned_episode"),
        similarity=outcome.get("similarity"),
        workers=workers,
        memory_without_model=outcome["memory_without_model"],
        peak_memory=progress.get("peak_memory_bytes", outcome.get("peak_memory")),
    )


def _run(config: Config, run: RunDirectory, workers: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the main process found, as far as it came, and the metrics rows of the short run, which is asked to stop
    when its time is over. The processes have ended when this returns.
    """
    run.path.mkdir()
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    arguments = (config.model_dump(), str(run.path), workers, time.time(), results)
    processes = [context.Process(target=_worker, args=(rank, *arguments), daemon=True) for rank in range(workers)]
    tail, rows = MetricsTail(run.metrics), []
    started = time.monotonic()
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    try:
        for process in processes:
            process.start()
        while "episode" not in outcome and not failure and not any(process.exitcode for process in processes):
            waited = time.monotonic() - started
            rows += tail.new()
            if rows and "startup" not in outcome:
                outcome["startup"] = max(0.0, waited - rows[-1]["cost/wall_seconds"])
            is_measured = any("training/query_loss" in row for row in rows[1:])
            if waited > PATIENCE and not is_measured:
                raise UserError(
                    f"plan: two steps with tasks were not done in {PATIENCE:.0f} s on this machine; give --rate, the "
                    "operations a second of one worker"
                )
            if waited > PATIENCE:
                if not on_gpu(config):
                    outcome["peak_memory"] = max(_most_memory(process.pid) for process in processes)
                return outcome, rows
            if waited > SECONDS and is_measured:
                run.stop_request.touch()
            with contextlib.suppress(queue.Empty):
                found = results.get(timeout=0.1)
                if isinstance(found, Exception):
                    failure = found
                else:
                    outcome |= found
        # Where one is killed another one fails for that, and may be heard first.
        if failure:
            for process in processes:
                process.join(timeout=1)
        if any(process.exitcode for process in processes):
            raise UserError(
                "plan: a process that ran some steps was killed, maybe by the system for its memory; take a smaller "
                "model or smaller tasks, or give --rate, the operations a second of one worker"
            )
        if failure:
            raise failure
        return outcome, rows + tail.new()
    finally:
        for process in processes:
            process.kill()
            process.join()


def _worker(rank: int, settings: dict[str, Any], path: str, workers: int, launched: float, results: Any) -> None:
    """Runs in each process; the main one puts what it finds into `results` as it comes, one that fails the error."""
    end_with_parent()
    # The lock that a progress bar makes is a semaphore of the system, which a process that is killed leaves behind.
    tqdm.set_lock(threading.RLock())
    config, run = Config.model_validate(settings), RunDirectory(Path(path))

    def note(found: dict[str, Any]) -> None:
        if rank == 0:
            results.put(json.loads(json.dumps(found)))

    try:
        _steps(rank, config, run, workers, launched, note)
        if rank == 0:
            note(_ending(config, run))
    except Exception as error:
        results.put(error if isinstance(error, UserError) else UserError(f"plan: {type(error).__name__}: {error}"))


def _steps(
    rank: int,
    config: Config,
    run: RunDirectory,
    workers: int,
    launched: float,
    note: Callable[[dict[str, Any]], None],
) -> None:
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

    note({"memory_without_model": 0 if cuda else _own_memory()})
    progress = train(config, run, Worker(rank, workers, device, lambda: None, store, launched))
    if workers > 1:
        torch.distributed.destroy_process_group()  # what comes after is of one process, and the others are about to end
    note({"progress": progress, "startup": progress["startup_seconds"]})


def _own_memory() -> int:
    """Memory of this process (bytes)."""
    return _memory("self", "VmRSS")


def _most_memory(process: int | None) -> int:
    """The largest memory that a process has had so far (bytes)."""
    return _memory(str(process), "VmHWM")


def _memory(process: str, what: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:")), 0)


def _ending(config: Config, run: RunDirectory) -> dict[str, float]:
    """Seconds of what the command does after training, in one process with the whole machine to itself."""
    import torch

    from distmeta.evaluate.fine_tuning import FineTuningUnit, fine_tune
    from distmeta.evaluate.run import Candidate, evaluate_candidates, find_same
    from distmeta.evaluate.similarity import measure_similarity, read_pairs
    from distmeta.pipeline import write_models
    from distmeta.setup import Setup

    torch.set_num_threads(available_cpus())
    started = time.perf_counter()
    setup = Setup(config, run)
    write_models(setup, run)
    exported = time.perf_counter()
    weights = {"meta-pretrained": run.best_weights, "starting": run.starting_weights}
    candidates = [Candidate(name, setup, each) for name, each in weights.items()]
    networks = len(candidates) / (len(candidates) - len(find_same(candidates)))  # of which so few steps may keep one
    similarity, config.evaluate.similarity = config.evaluate.similarity, None
    spent = []
    with contextlib.redirect_stderr(io.StringIO()):  # of the progress bar
        for episodes in (1, 1 + EPISODES):
            config.evaluate.episodes = episodes
            begun = time.perf_counter()
            evaluate_candidates(candidates, lambda _: None)
            spent.append(time.perf_counter() - begun)
        fine_tuned, measured = 0.0, 0.0
        if config.evaluate.fine_tuning_episodes:
            begun = time.perf_counter()
            fine_tune(FineTuningUnit(candidates[1].place, setup.evaluation_tasks().draw(0)))
            fine_tuned = time.perf_counter() - begun
        if similarity:
            groups = read_pairs(similarity, config.evaluate.similarity_pairs)
            name, pairs = next(iter(groups.items()))
            some = replace(pairs, texts=pairs.texts[:PAIRS], scores=pairs.scores[:PAIRS])
            begun = time.perf_counter()
            measure_similarity(candidates[1:], similarity, {name: some}, LocalExecutor())
            total = sum(len(each.scores) for each in groups.values())
            measured = (time.perf_counter() - begun) * total / len(some.scores)
    return {
        "export": exported - started,
        "first_episode": networks * spent[0],
        "fine_tuned_episode": fine_tuned,
        "similarity": measured,
        "episode": networks * max(0.0, spent[1] - spent[0]) / EPISODES,  # the last one, which ends the waiting for it
    }
