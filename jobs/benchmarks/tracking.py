"""What tracking costs training: steps of one run with W&B and the figures of the machines, and without, in turns.

    python jobs/benchmarks/tracking.py [--config FILE] [--set KEY=VALUE ...] [--rounds 20] [--steps 2]

The training loop runs in worker processes of one thread, and W&B's own client records it offline, into a folder that is
thrown away. A round is four blocks of steps: without, with, with, without tracking; the first two compute the same
tasks, and so do the last two. The first round is not counted, in which memory is still being taken.

Printed are the seconds of a step; those for which the first worker waits in calls that write the step down, of W&B and
without it; and what W&B's own process uses of a processor, which on a full machine is the workers' loss. The ratio of
the blocks of a round is what tracking does to the speed, as well as the machine's unrest lets it be seen; the seconds
that are tracking's own, all taken for lost, say it more finely and at worst. The exit status is 1 if those are more
than half a percent of the time, or if W&B has other rows than those of the tracked steps.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple
from unittest.mock import patch

import psutil
import torch
import torch.distributed
import torch.multiprocessing

from distmeta.config import Config, load_config, with_values
from distmeta.corpus.executor import LocalExecutor
from distmeta.errors import UserError
from distmeta.run_corpus import check_tasks, prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import corpus_directory, resolve
from distmeta.tracking.machine_use import MachineUse
from distmeta.tracking.metrics import read_metrics
from distmeta.tracking.wandb_file import records, rows
from distmeta.train import loop
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.record import Recorder
from distmeta.train.work import WorkSource

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
STEPS = "steps.json"
LEAST = 0.995
"""Of the speed without tracking, what a run should have with it."""


@dataclass(frozen=True)
class Turns:
    """Which steps, numbered from 0, are tracked, and on which tasks they compute."""

    rounds: int
    steps: int
    """Of a block."""

    @property
    def round(self) -> int:
        """Steps of a round."""
        return 4 * self.steps

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.rounds * self.round

    def is_tracked(self, step: int) -> bool:
        """Whether it is."""
        return step // self.steps % 4 in (1, 2)

    def tasks(self, step: int) -> int:
        """The step whose tasks it has."""
        return step // (2 * self.steps) * self.steps + step % self.steps


class Step(NamedTuple):
    """What one took (seconds)."""

    whole: float
    """From the end of the step before to its own."""
    calls: float
    """Of them those in which it was written down, and the machines were looked at."""
    processor: float
    """Of W&B's process, from when it was to be written down until the next one was."""


def work(rank: int, config: Config, folder: Path, turns: Turns) -> None:
    """Runs in each worker; the first one writes down what its steps took."""
    torch.set_num_threads(1)
    rendezvous, workers = f"file://{folder}/rendezvous", config.train.most_workers
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    ends, spent, calls, looked = [time.perf_counter()], list[float](), list[float](), list[float]()
    own: list[psutil.Process] = []

    class SameTasks(WorkSource):
        def _draw(self, step: int) -> Any:
            return super()._draw(turns.tasks(step))

    class LooksInTurns(MachineUse):
        @property
        def is_due(self) -> bool:
            return turns.is_tracked(len(ends) - 1) and super().is_due  # the main worker says it, which counts them

        def look(self) -> tuple[dict[str, float], float]:
            started = time.perf_counter()
            seen = super().look()
            looked.append(time.perf_counter() - started)
            return seen

    class RecordsInTurns(Recorder):
        def step(self, row: dict[str, Any], *, is_whole: bool = True) -> None:
            own[:] = own or psutil.Process().children(recursive=True)  # W&B's is there by now
            times = [process.cpu_times() for process in own]
            spent.append(sum(each.user + each.system for each in times))
            started = time.perf_counter()
            super().step(row, is_whole=turns.is_tracked(len(ends) - 1))
            ends.append(time.perf_counter())
            calls.append(ends[-1] - started + sum(looked))
            looked.clear()

    worker = loop.Worker(
        rank, workers, torch.device("cpu"), lambda: None, CheckpointFolder.local(folder / "checkpoints")
    )
    with patch.multiple(loop, WorkSource=SameTasks, MachineUse=LooksInTurns, Recorder=RecordsInTurns):
        loop.train(config, RunDirectory(folder), worker)
    if rank == 0:
        whole, of_process = ([after - before for before, after in pairwise(each)] for each in (ends, spent))
        (folder / STEPS).write_text(json.dumps(list(zip(whole, calls, [*of_process, 0.0], strict=True))))
    torch.distributed.destroy_process_group()


def benchmark_config(path: Path, overrides: Sequence[str], turns: Turns, folder: Path) -> Config:
    """The configuration of a file for steps alone, its corpus prepared.

    Raises:
        UserError: as `load_config`, or tasks cannot be drawn.
    """
    values = {
        "train.outer_steps": turns.total,
        "train.checkpoint_every": turns.total,
        "train.validate_every": 0,
        "engine.device": "cpu",
        "tracking.wandb": "offline",
    }
    config, run = resolve(with_values(load_config(path, overrides), values)), RunDirectory(folder)
    prepare_with(LocalExecutor(), config, run, print)
    check_tasks(config, run)
    config.corpus.directory = str(corpus_directory(config, run))
    return config


def report(turns: Turns, steps: Sequence[Step], folder: Path) -> tuple[str, bool]:
    """What was found, and whether it is as it should be."""
    logged = [row["outer_step"] for file in folder.glob("wandb/offline-run-*/*.wandb") for row in rows(records(file))]
    is_right = logged == [step + 1 for step in range(turns.total) if turns.is_tracked(step)]
    looks = sum("machine/cpus/mean" in row for row in read_metrics(RunDirectory(folder).metrics))
    both: dict[bool, list[Step]] = {True: [], False: []}
    ratios = []
    for first in range(turns.round, turns.total, turns.round):
        own = {
            is_tracked: [
                step
                for number, step in enumerate(steps[first : first + turns.round])
                if turns.is_tracked(number) == is_tracked
            ]
            for is_tracked in both
        }
        ratios.append(sum(step.whole for step in own[False]) / sum(step.whole for step in own[True]))
        both = {is_tracked: both[is_tracked] + own[is_tracked] for is_tracked in both}
    lines = [f"{'':10} {'median step, s':>15} {'mean step, s':>15} {'calls, ms':>15} {'W&B process, ms':>15}"]
    for name, found in (("tracked", both[True]), ("untracked", both[False])):
        whole, calls, processor = (mean(step[field] for step in found) for field in range(3))
        middle = median(step.whole for step in found)
        lines.append(f"{name:10} {middle:15.4f} {whole:15.4f} {calls * 1e3:15.2f} {processor * 1e3:15.2f}")
    lost = mean(step.calls + step.processor for step in both[True]) - mean(step.calls for step in both[False])
    least = 1 - lost / median(step.whole for step in both[False])
    quarter = len(ratios) // 4
    ratios.sort()
    lines += [
        f"{'' if is_right else 'WRONG: '}{len(logged)} of {turns.total} steps are in W&B; "
        f"{looks} looks at the machines",
        f"speed with tracking to that without: {median(ratios):.4f}, median of {len(ratios)} rounds, "
        f"half of them from {ratios[quarter]:.4f} to {ratios[-1 - quarter]:.4f}",
        f"by what is tracking's own, {lost * 1e3:.1f} ms of a step: {least:.4f}",
    ]
    return "\n".join(lines), is_right and least >= LEAST


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEMO)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="sets one key; repeatable")
    parser.add_argument("--rounds", type=int, default=20, help="of four blocks")
    parser.add_argument("--steps", type=int, default=2, help="of a block")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.steps < 1:
        parser.error("--rounds must be at least 2, and --steps at least 1")
    turns = Turns(options.rounds, options.steps)
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]  # what a user asks of other runs
    with tempfile.TemporaryDirectory(prefix="distmeta-tracking-") as scratch:
        folder = Path(scratch)
        try:
            config = benchmark_config(options.config, options.set, turns, folder)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        torch.multiprocessing.spawn(work, (config, folder, turns), nprocs=config.train.most_workers)
        steps = [Step(*each) for each in json.loads((folder / STEPS).read_text())]
        text, is_good = report(turns, steps, folder)
    print(text)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
