"""Predicted against measured seconds of an outer step, on every number of workers that this machine can run.

    python jobs/benchmarks/scaling.py [--stages 0 1 2 3 3p] [--widths 64 256] [--workers 1 2 4 8] [--processor-time]

For each width of a network and each ZeRO stage (`3p`: with partitioned weights) the model of `distmeta/plan/scaling.py`
is fitted to three short runs of the training loop: of one worker with one task, of one with two, and of two workers
with two each. It then says how long a step takes on other numbers of workers and tasks, which are run as well. More
workers than there are processors share these, so their work is taken to be so many times as long; that part is no
cluster's. The network is this machine's own, as two workers find it.

With --processor-time all is in seconds of the first worker's processor instead, which others on a busy machine change
little. Nothing waits then: neither for the slowest worker nor for a processor, and a message is what sending it takes.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distmeta.cluster.machine import available_cpus
from distmeta.config import Config, load_config, with_values
from distmeta.corpus.executor import LocalExecutor
from distmeta.plan.memory import Sizes
from distmeta.plan.profile import STEPS, profile_of
from distmeta.plan.projection import Run, shape_of
from distmeta.plan.scaling import Network, Profile
from distmeta.plan.short_run import measure_exchange
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, resolve
from distmeta.tracking.metrics import read_metrics

SMLMT = Path(__file__).parents[1] / "configs" / "smlmt.yaml"
MOST = 2
"""Tasks of a worker in the runs that the model is fitted to."""
FITTED = ((1, 1), (1, MOST), (2, MOST))
"""Workers, and tasks of each, of these runs."""
TASKS = (1, 2, 4)


class Case(NamedTuple):
    """A configuration of which steps are timed."""

    width: int
    stage: str
    workers: int
    tasks: int
    """Of each worker."""


def config_of(case: Case, folder: Path, steps: int) -> Config:
    """Its settings."""
    layers = 4
    values: dict[str, Any] = {
        "model.config": {
            "model_type": "bert",
            "hidden_size": case.width,
            "num_hidden_layers": layers,
            "num_attention_heads": case.width // 32,
            "intermediate_size": 4 * case.width,
        },
        "corpus.directory": str(folder / "corpus"),
        "engine.zero_stage": int(case.stage[0]),
        "engine.weights": "partitioned" if case.stage.endswith("p") else "whole",
        "engine.device": "cpu",
        "meta.meta_batch_size": case.workers * case.tasks,
        "meta.lm_warmup_steps": 0,
        "meta.inner_steps": 2,
        "meta.lm_batch_size": 4,
        "train.num_workers": case.workers,
        "train.outer_steps": steps,
        "train.checkpoint_every": steps,
        "train.validate_every": 0,
        "evaluate.language_model_baseline": False,
        "tracking.wandb": "disabled",
    }
    return resolve(with_values(load_config(SMLMT, []), values))


def work(
    rank: int, workers: int, folder: Path, cases: Sequence[Case], steps: int, by_processor: bool, results: Any
) -> None:
    """Runs in each process: one case after the other in the same process group."""
    if by_processor:
        time.perf_counter = time.process_time  # by which the loop tells the time
    os.environ["DS_ACCELERATOR"] = "cpu"
    from distmeta.train.checkpoint_folder import CheckpointFolder
    from distmeta.train.loop import Worker, train

    torch.set_num_threads(1)
    device = torch.device("cpu")
    if workers > 1:
        rendezvous = f"file://{folder}/rendezvous-{workers}"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    for number, case in enumerate(cases):
        run = RunDirectory(folder / f"{workers}-{number}")
        run.path.mkdir(exist_ok=True)
        worker = Worker(rank, workers, device, lambda: None, CheckpointFolder.local(run.path / "checkpoints"))
        train(config_of(case, folder, steps), run, worker)
        if rank == 0:
            results.put((case, read_metrics(run.metrics)))
    if rank == 0:
        results.put(None)
    exchange = measure_exchange(device) if workers == 2 else None
    if rank == 0:
        results.put(exchange)


def run_cases(
    workers: int, folder: Path, cases: Sequence[Case], steps: int, by_processor: bool
) -> tuple[dict[Case, Any], Any]:
    """The metrics of each case, and what two workers exchange."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    arguments = (workers, folder, cases, steps, by_processor, results)
    processes = [context.Process(target=work, args=(rank, *arguments), daemon=True) for rank in range(workers)]
    for process in processes:
        process.start()
    found = {}
    while (result := results.get(timeout=900)) is not None:
        found[result[0]] = result[1]
    exchange = results.get(timeout=900)
    for process in processes:
        process.join()
    return found, exchange


def seconds_of(rows: list[dict[str, Any]]) -> float:
    """Median of the steps but for the first."""
    return statistics.median(row["time/step"] for row in rows[1:])


def crowded(profile: Profile, workers: int, processors: int) -> Profile:
    """The profile where workers share processors: what each computes takes so many times as long."""
    times = max(1.0, workers / processors)
    return replace(profile, contention=profile.contention * times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["0", "1", "2", "3", "3p"], help="ZeRO stages")
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 256], help="hidden sizes of four layers")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of workers")
    parser.add_argument("--steps", type=int, default=STEPS, help="outer steps of each run, the first not counted")
    parser.add_argument("--processor-time", action="store_true", help="in place of that of the clock")
    options = parser.parse_args(arguments)
    # Tasks of one worker: as few as can be where workers share processors, which takes long.
    cases = [
        Case(width, stage, workers, tasks)
        for workers in sorted({1, 2, *options.workers})
        for width in options.widths
        for stage in options.stages
        for tasks in (TASKS if workers <= 2 else TASKS[:1])
    ]
    found: dict[Case, Any] = {}
    exchange: tuple[float, float] | None = None
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="distmeta-scaling-") as scratch:
        folder = Path(scratch)
        first = config_of(cases[0], folder, options.steps)
        prepare_with(LocalExecutor(), first, RunDirectory(folder), lambda _: None)
        for workers in sorted({case.workers for case in cases}):
            mine = [case for case in cases if case.workers == workers]
            rows, measured = run_cases(workers, folder, mine, options.steps, options.processor_time)
            found |= rows
            exchange = measured or exchange
        assert exchange is not None
        print(table(found, Network(*exchange), folder, options))
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


def table(found: dict[Case, Any], network: Network, folder: Path, options: argparse.Namespace) -> str:
    """A line for each case, and the errors of those that the model was not fitted to."""
    lines = [
        f"{network.bandwidth * 8 / 1e9:.2f} Gbit/s and {network.latency * 1e6:.0f} microseconds a message, gloo, "
        f"{available_cpus()} processors",
        "width  stage  workers  tasks of each   measured  predicted   error  network, of it",
    ]
    errors: dict[str, list[float]] = {}
    for width, stage in dict.fromkeys((case.width, case.stage) for case in found):
        few, many, two = (found[Case(width, stage, workers, tasks)] for workers, tasks in FITTED)
        profile = profile_of(few, many, MOST, two)
        for case in (each for each in found if (each.width, each.stage) == (width, stage)):
            config = config_of(case, folder, options.steps)
            network_of_case = Setup(config, RunDirectory(folder)).network()
            run = Run(
                config,
                shape_of(network_of_case),
                Sizes.of(network_of_case, config),
                profile if options.processor_time else crowded(profile, case.workers, available_cpus()),
                network,
            )
            step = run.step(case.workers, case.workers * case.tasks)
            measured = seconds_of(found[case])
            predicted = step.whole - (step.waiting if options.processor_time else 0.0)
            error = predicted / measured - 1
            is_fitted = (case.workers, case.tasks) in FITTED
            group = "fitted" if is_fitted else f"{case.workers} workers"
            errors.setdefault(group, []).append(error)
            lines.append(
                f"{width:5}{stage:>7}{case.workers:9}{case.tasks:15}{measured:11.4f}{predicted:11.4f}{error:8.0%}"
                f"{step.exchanging:16.4f}{'  (fitted)' if is_fitted else ''}"
            )
    lines += [
        f"{group}: median error {statistics.median(map(abs, each)):.0%}, largest {max(map(abs, each)):.0%}, "
        f"mean {statistics.mean(each):+.0%}"
        for group, each in errors.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
