"""What Ray, DeepSpeed and the bookkeeping of `distmeta pretrain` cost: one worker beside a bare loop in one process.

    python jobs/benchmarks/trainer.py [--config FILE] [--set KEY=VALUE ...] [--turns 3] [--steps 12]

The bare loop has none of it: it computes the same gradients by the same `Learner` from tasks drawn beforehand, clips
them and steps torch's fused AdamW. `distmeta pretrain` draws its tasks as it goes. Both get the same prepared corpus,
starting weights, tasks, seeds, one thread and the niceness of Ray's workers, and take turns. Validation, checkpoints
and the warm-up on language modelling are left out. On a busy machine the column of processor time is the one to trust.
The exit status is 1 if they do not compute the same.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
import torch

from distmeta.cluster.connect import check_workers_fit, ray_cluster
from distmeta.config import Config, load_config, with_values
from distmeta.corpus.executor import LocalExecutor
from distmeta.engine.precision import choose_precision
from distmeta.errors import Interrupted, UserError
from distmeta.meta import Learner
from distmeta.pipeline import claim
from distmeta.run_corpus import check_tasks, prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, corpus_directory, resolve
from distmeta.tracking.metrics import MetricsTail, read_metrics
from distmeta.train.launch import launch
from distmeta.train.loop import learning_rate
from distmeta.train.work import WorkSource

SMLMT = Path(__file__).parents[1] / "configs" / "smlmt.yaml"
UNCOUNTED = 2
"""First steps of a turn, in which memory is still being taken."""
WORKER_NICENESS = 15
"""By which Ray raises the niceness of its workers, unless RAY_worker_niceness says otherwise."""
TOLERANCE = 1e-4
"""Relative difference of the query losses that rounding explains after some steps."""


@dataclass(frozen=True)
class Step:
    """Where the time of an outer step went (seconds)."""

    whole: float
    gradient: float
    """Inner loops, query gradients and language modelling."""
    optimizer: float
    """Averaging over the workers, clipping and AdamW."""

    @property
    def rest(self) -> float:
        """Waiting for tasks, and writing down what happened."""
        return self.whole - self.gradient - self.optimizer


@dataclass(frozen=True)
class Turn:
    """What was measured of one turn."""

    steps: list[Step]
    """Those that count."""
    processor_seconds: float
    """Mean processor time of a step, of all threads of the process that computes."""
    query_losses: list[float]
    """Of every step."""


def benchmark_config(path: Path, overrides: Sequence[str], steps: int, folder: Path) -> Config:
    """The configuration of a file for one worker and `steps` counted outer steps, each of tasks.

    Raises:
        UserError: as `load_config`, or tasks cannot be drawn.
    """
    config = with_values(
        load_config(path, overrides),
        {
            "meta.lm_warmup_steps": 0,
            "train.num_workers": 1,
            "train.cpus_per_worker": 1.0,
            "train.outer_steps": UNCOUNTED + steps + 1,  # the last one is measured with the checkpoint behind it
            "train.checkpoint_every": UNCOUNTED + steps + 1,
            "train.validate_every": 0,
        },
    )
    config = resolve(config)
    config.engine.precision = choose_precision(config.engine.precision, device_of(config))
    run = RunDirectory(folder)
    prepare_with(LocalExecutor(), config, run, print)
    check_tasks(config, run)
    config.corpus.directory = str(corpus_directory(config, run))
    return config


def device_of(config: Config) -> torch.device:
    """The device that the worker takes."""
    return torch.device("cpu" if config.engine.device == "cpu" or not torch.cuda.is_available() else "cuda")


def bare_loop(config: Config) -> Turn:
    """Trains as a script without distmeta's trainer would."""
    torch.set_num_threads(1)
    device = device_of(config)
    setup = Setup(config, RunDirectory(Path(os.devnull)))  # its corpus is where `corpus.directory` says
    network = setup.network()
    learner = Learner(network.skeleton().to(device).train(), config.meta, config.engine.precision, config.train.seed)
    parameters = dict(network.to(device).named_parameters())
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.meta.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        fused=True,
    )
    source = WorkSource(setup, device, rank=0, world_size=1)
    steps = config.train.outer_steps
    work = [source.take(step) for step in range(steps)]
    source.close()

    values = {name: parameter.detach() for name, parameter in parameters.items()}
    timed, processor, query_losses = [], [], []
    for step in range(steps):
        processor.append(time.process_time())
        started = time.perf_counter()
        gradients, metrics = learner.gradient(values, work[step], config.meta.meta_batch_size, step / steps)
        computed = time.perf_counter()
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        if config.engine.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(trained, config.engine.gradient_clipping)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(config.meta, step, steps)
        adamw.step()
        ended = time.perf_counter()
        timed.append(Step(ended - started, computed - started, ended - computed))
        query_losses.append(metrics["query_loss"])
    counted = timed[UNCOUNTED:-1]
    return Turn(counted, (processor[-1] - processor[UNCOUNTED]) / len(counted), query_losses)


def pretrain(config: Config, run: RunDirectory) -> Turn:
    """Trains as `distmeta pretrain` does, on the cluster that is there."""
    claim(config, run)
    watcher = Watcher(run)
    watcher.start()
    launch(config, run, say=lambda text: None)
    processor = watcher.stop()
    rows = read_metrics(run.metrics)
    counted = [
        # From the end of one step to that of the next: the work of the loop around the step is in it.
        Step(
            row["cost/wall_seconds"] - before["cost/wall_seconds"],
            row["time/inner"] + row["time/outer"],
            row["time/communication"] + row["time/optimizer"],
        )
        for before, row in list(pairwise(rows))[UNCOUNTED - 1 : -1]
    ]
    spent = processor[UNCOUNTED + len(counted)] - processor[UNCOUNTED]
    return Turn(counted, spent / len(counted), [row["training/query_loss"] for row in rows])


class Watcher(threading.Thread):
    """Notes what processor time the worker has used when a row of a run's metrics appears, to some hundredths."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(daemon=True)
        self._tail = MetricsTail(run.metrics)
        self._seconds: dict[int, float] = {}
        self._done = threading.Event()

    def run(self) -> None:
        """Looks fifty times a second until `stop` is called."""
        worker = None
        while not self._done.wait(0.02):
            for row in self._tail.new():
                worker = worker or training_worker()
                times = worker.cpu_times()
                self._seconds[row["outer_step"]] = times.user + times.system

    def stop(self) -> dict[int, float]:
        """The processor time (seconds) at the end of each outer step."""
        self._done.set()
        self.join()
        return self._seconds


def training_worker() -> psutil.Process:
    """The process of the only training worker."""
    (worker,) = (each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in each.name())
    return worker


def compare(config: Config, folder: Path, turns: int) -> dict[str, list[Turn]]:
    """Gives each its turns, in one process for the bare loop and on one cluster for the trainer."""
    found: dict[str, list[Turn]] = {"bare loop": [], "distmeta pretrain": []}
    spawn = multiprocessing.get_context("spawn")
    with ray_cluster(config), ProcessPoolExecutor(1, spawn, initializer=os.nice, initargs=(WORKER_NICENESS,)) as pool:
        for turn in range(turns):
            found["bare loop"].append(pool.submit(bare_loop, config).result())
            found["distmeta pretrain"].append(pretrain(config, RunDirectory(folder / f"turn-{turn}")))
    return found


def loss_difference(found: dict[str, list[Turn]]) -> float:
    """Largest relative difference between the query losses that turns have at the same step."""
    losses = torch.tensor([turn.query_losses for turns in found.values() for turn in turns], dtype=torch.float64)
    return float(((losses - losses[0]) / losses[0]).abs().max())


def table(found: dict[str, list[Turn]], tasks: int) -> str:
    """Medians over the steps of all turns, and what share of the bare loop's speed the trainer has."""
    head = f"{'seconds a step':20} {'tasks/s':>8} {'whole':>8} {'gradient':>9} {'optimizer':>10} {'rest':>8} {'CPU':>8}"
    lines = [head, "-" * len(head)]
    for name, turns in found.items():
        steps = [step for turn in turns for step in turn.steps]
        whole, gradient, optimizer, rest = (
            median(getattr(step, part) for step in steps) for part in ("whole", "gradient", "optimizer", "rest")
        )
        lines.append(
            f"{name:20} {tasks / whole:8.2f} {whole:8.4f} {gradient:9.4f} {optimizer:10.4f} {rest:8.4f} "
            f"{processor_seconds(turns):8.4f}"
        )
    bare, ours = found.values()
    each = ", ".join(
        f"{whole_seconds([one]) / whole_seconds([other]):.3f}" for one, other in zip(bare, ours, strict=True)
    )
    return "\n".join(
        [
            *lines,
            "",
            f"distmeta pretrain has {whole_seconds(bare) / whole_seconds(ours):.3f} of the bare loop's speed "
            f"(by turns: {each})",
            f"by processor time, with that of drawing tasks: {processor_seconds(bare) / processor_seconds(ours):.3f}",
        ]
    )


def whole_seconds(turns: Sequence[Turn]) -> float:
    """Median over the steps of all turns."""
    return median(step.whole for turn in turns for step in turn.steps)


def processor_seconds(turns: Sequence[Turn]) -> float:
    """Median over the turns."""
    return median(turn.processor_seconds for turn in turns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=SMLMT)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="sets one key; repeatable")
    parser.add_argument("--turns", type=int, default=3, help="turns of each")
    parser.add_argument("--steps", type=int, default=12, help="counted steps a turn")
    options = parser.parse_args(arguments)
    if min(options.turns, options.steps) < 1:
        parser.error("--turns and --steps must be at least 1")
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for a worker of one CPU
    with tempfile.TemporaryDirectory(prefix="distmeta-trainer-") as scratch:
        try:
            config = benchmark_config(options.config, options.set, options.steps, Path(scratch))
            check_workers_fit(config)
            found = compare(config, Path(scratch), options.turns)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        except Interrupted:
            return 130
    print(table(found, config.meta.meta_batch_size))
    difference = loss_difference(found)
    agree = difference <= TOLERANCE
    print(f"{'' if agree else 'WRONG: '}largest relative difference of query losses at the same step: {difference:.1e}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
