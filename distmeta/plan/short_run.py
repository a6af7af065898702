"""Some steps of the real training loop, on this machine and without Ray, to see what they take."""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

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

EPISODES = 3
"""Episodes of the evaluation, after a first one."""

PAIRS = 50
"""Pairs of texts of which the similarity is measured."""

MESSAGES = 50
"""Single numbers that workers add up, one after the other, to find what a message takes."""

MESSAGE_NUMBERS = 8_000_000
"""Numbers that they add up at once, to find what they can send."""

Job = Literal["command", "steps", "dry run"]
"""Training and what the command does after it; training alone; or that as the first of so many workers, of which the
others are not there: their part in each collective is made up, in shapes that are right."""


def workers_that_fit(config: Config, wanted: int) -> int:
    """How many workers this machine can run steps of, the wanted number at most, and 1 at least."""
    room = int(available_cpus() // config.train.cpus_per_worker)
    if on_gpu(config):
        import torch

        room = min(room, torch.cuda.device_count())
    return max(1, min(wanted, room))


def short_of(config: Config, run: RunDirectory, workers: int, tasks: int) -> Config:
    """The settings of a short run with `tasks` a step in all."""
    short = config.model_copy(deep=True)
    short.corpus.directory = str(corpus_directory(config, run))
    short.tracking.wandb = "disabled"
    short.train.num_workers = workers
    short.meta.meta_batch_size = tasks
    return short


def run_short(
    config: Config, run: RunDirectory, workers: int, job: Job = "command"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the main process found, as far as it came, and the metrics rows of the short run, which is asked to stop
    when its time is over. The processes have ended when this returns.
    """
    run.path.mkdir()
    last = "episode" if job == "command" else "progress"
    there = 1 if job == "dry run" else workers
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    arguments = (config.model_dump(), str(run.path), workers, time.time(), results, job)
    processes = [context.Process(target=_worker, args=(rank, *arguments), daemon=True) for rank in range(there)]
    tail, rows = MetricsTail(run.metrics), []
    started = time.monotonic()
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    try:
        for process in processes:
            process.start()
        while last not in outcome and not failure and not any(process.exitcode for process in processes):
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


def _worker(
    rank: int,
    settings: dict[str, Any],
    path: str,
    workers: int,
    launched: float,
    results: Any,
    job: Job = "command",
) -> None:
    """Runs in each process; the main one puts what it finds into `results` as it comes, one that fails the error."""
    end_with_parent()
    # The lock that a progress bar makes is a semaphore of the system, which a process that is killed leaves behind.
    tqdm.set_lock(threading.RLock())
    config, run = Config.model_validate(settings), RunDirectory(Path(path))
    if job != "command":
        logging.getLogger("distmeta").setLevel(logging.ERROR)  # what there is to say is said by the first run

    def note(found: dict[str, Any]) -> None:
        if rank == 0:
            results.put(json.loads(json.dumps(found)))

    try:
        _steps(rank, config, run, workers, launched, note, job)
        if rank == 0 and job == "command":
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
    job: Job,
) -> None:
    """The training, as a worker of Ray Train would do it and with the same libraries in memory."""
    import torch

    cuda = config.engine.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    os.environ["DS_ACCELERATOR"] = device.type
    import deepspeed  # noqa: F401
    import wandb  # noqa: F401

    import distmeta.train.launch  # noqa: F401
    from distmeta.train.checkpoint_folder import CheckpointFolder
    from distmeta.train.loop import Worker, train

    torch.set_num_threads(max(1, round(config.train.cpus_per_worker)))
    if job == "dry run":
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=workers)
    elif workers > 1:
        rendezvous = f"file://{run.path}/rendezvous"
        backend = "nccl" if cuda else "gloo"
        torch.distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=workers)

    note({"memory_without_model": 0 if cuda else _own_memory()})
    checkpoints = CheckpointFolder.local(run.path / "checkpoints")
    progress = train(config, run, Worker(rank, workers, device, lambda: None, checkpoints, launched))
    if job == "steps" and workers > 1:
        note({"exchange": measure_exchange(device)})
    if workers > 1:
        torch.distributed.destroy_process_group()  # what comes after is of one process, and the others are about to end
    note({"progress": progress, "startup": progress["startup_seconds"]})


def measure_exchange(device: Any) -> tuple[float, float]:
    """Bytes a second that two workers here send each other, and seconds of a message; see `Network`."""
    import torch

    def seconds(numbers: Any, times: int) -> float:
        torch.distributed.all_reduce(numbers)
        started = time.perf_counter()
        for _ in range(times):
            torch.distributed.all_reduce(numbers)
        float(numbers[0])  # a GPU is done then
        return (time.perf_counter() - started) / times

    workers = torch.distributed.get_world_size()
    hops = 2 * (workers - 1)
    latency = seconds(torch.zeros(1, device=device), MESSAGES) / hops
    many = torch.zeros(MESSAGE_NUMBERS, device=device)
    sent = hops / workers * many.nbytes
    return sent / max(seconds(many, 4) - hops * latency, 1e-9), latency


def _own_memory() -> int:
    """Memory of this process (bytes)."""
    return _memory("self", "VmRSS")


def _most_memory(process: int | None) -> int:
    """The largest memory that a process has had so far (bytes); 0 of one that has ended."""
    try:
        return _memory(str(process), "VmHWM")
    except FileNotFoundError:
        return 0


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
