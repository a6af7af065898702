"""How many tasks a second a mixture gives and trains on, beside each of its data sets alone.

    python jobs/benchmarks/mixture.py [--config FILE] [--set KEY=VALUE ...] [--turns 3] [--tasks 8] [--draws 500]

All draw from one prepared corpus, a data set alone by a weight of 0 for the others, and take turns in random order,
each turn with tasks of its own. Drawing is timed from the shards to token ids, training is the meta-gradient of one
task after the other. Data sets differ in the length of their texts, so the mixture is held against the same tokens of
its data sets alone, and in drawing against the same tasks. On a busy machine trust the columns of processor time.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from trainer import benchmark_config, device_of

from distmeta.compute.batch import collate_task
from distmeta.config import Config, with_values
from distmeta.corpus.datasets import datasets_of
from distmeta.errors import Interrupted, UserError
from distmeta.meta import Learner, Work
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup

MIXTURE = "the mixture"
CONFIG = Path(__file__).parents[1] / "configs" / "mixture.yaml"


@dataclass
class Spent:
    """What tasks took, by the clock and of the processor (seconds)."""

    tasks: int = 0
    tokens: int = 0
    wall: float = 0.0
    processor: float = 0.0

    @contextmanager
    def on(self, tasks: int, tokens: int = 0) -> Iterator[None]:
        """Adds what is done within."""
        started, processor = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - started
        self.processor += time.process_time() - processor
        self.tasks += tasks
        self.tokens += tokens


@dataclass
class Contestant:
    """The mixture, or one of its data sets alone."""

    tasks: Any
    drawing: Spent = field(default_factory=Spent)
    training: Spent = field(default_factory=Spent)
    sources: Counter[str] = field(default_factory=Counter)
    """How many of the tasks that were drawn came from each data set."""
    tokens: Counter[str] = field(default_factory=Counter)
    """How many tokens were trained on from each."""


def contestants(config: Config) -> dict[str, Contestant]:
    """The mixture, and each data set that has tasks to train on, by name.

    Raises:
        UserError: there is one data set only, or one that cannot be drawn from.
    """
    names = [each.name for each in datasets_of(config.corpus, config.tasks) if each.role in (None, "train")]
    if len(names) < 2:
        raise UserError("corpus.sources: one data set is no mixture; give each a name")
    found = {MIXTURE: Contestant(source(config))}
    for name in names:
        weights = {f"corpus.sources.{other}.weight": float(other == name) for other in names}
        found[name] = Contestant(source(with_values(config, weights)))
    return found


def source(config: Config) -> Any:
    """What the training tasks of a configuration are drawn from; its corpus is where `corpus.directory` says."""
    return Setup(config, RunDirectory(Path(os.devnull))).tasks("train")


def take_turns(config: Config, found: dict[str, Contestant], turns: int, draws: int, tasks: int) -> None:
    """Gives each its turns, behind one that is not counted, in which files are opened."""
    torch.set_num_threads(1)
    device = device_of(config)
    setup = Setup(config, RunDirectory(Path(os.devnull)))
    network = setup.network()
    learner = Learner(network.skeleton().to(device).train(), config.meta, config.engine.precision, config.train.seed)
    values = {name: parameter.detach() for name, parameter in network.to(device).named_parameters()}
    order = random.Random(config.train.seed)
    for turn in range(turns + 1):
        for each in order.sample(list(found.values()), len(found)):
            counted = each if turn else Contestant(each.tasks)
            with counted.drawing.on(draws):
                drawn = [each.tasks.draw(index) for index in range(turn * draws, (turn + 1) * draws)]
            counted.sources.update(task.source for task in drawn)
            for task in drawn[: tasks if turn else 1]:
                batch = collate_task(task, setup.tokenizer.pad_token_id, device)
                tokens = batch.support.num_tokens + batch.query.num_tokens
                with counted.training.on(1, tokens):
                    learner.gradient(values, [Work(task.index, batch, None)], 1)
                counted.tokens[task.source] += tokens


def table(found: dict[str, Contestant]) -> str:
    """A row for each, and what share of the speed of its data sets alone the mixture has."""
    head = (
        f"{'':14} {'share':>6} {'drawn/s':>9} {'by CPU':>9} {'trained/s':>10} {'by CPU':>8} {'tokens/task':>12} "
        f"{'tokens/s':>9}"
    )
    lines = [head, "-" * len(head)]
    mixture = found[MIXTURE]
    for name, each in found.items():
        drawing, training = each.drawing, each.training
        share = 1.0 if each is mixture else mixture.sources[name] / mixture.sources.total()
        lines.append(
            f"{name:14} {share:6.1%} {drawing.tasks / drawing.wall:9.1f} {drawing.tasks / drawing.processor:9.1f} "
            f"{training.tasks / training.wall:10.2f} {training.tasks / training.processor:8.2f} "
            f"{training.tokens / training.tasks:12.0f} {training.tokens / training.wall:9.0f}"
        )
    for what, clock in (("by the clock", "wall"), ("by processor time", "processor")):
        lines.append(
            f"{what} the mixture draws at {drawing_ratio(found, clock):.3f} of the speed of its data sets alone"
        )
        lines[-1] += f", and trains at {training_ratio(found, clock):.3f}"
    return "\n".join(lines)


def drawing_ratio(found: dict[str, Contestant], clock: str) -> float:
    """Seconds that the data sets alone take for as many tasks of each as the mixture drew, over the mixture's."""
    mixture = found[MIXTURE]
    alone = sum(
        count * getattr(found[name].drawing, clock) / found[name].drawing.tasks
        for name, count in mixture.sources.items()
    )
    return alone / getattr(mixture.drawing, clock)


def training_ratio(found: dict[str, Contestant], clock: str) -> float:
    """Seconds that the data sets alone take for as many tokens of each as the mixture saw, over the mixture's."""
    mixture = found[MIXTURE]
    alone = sum(
        count * getattr(found[name].training, clock) / found[name].training.tokens
        for name, count in mixture.tokens.items()
    )
    return alone / getattr(mixture.training, clock)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="sets one key; repeatable")
    parser.add_argument("--turns", type=int, default=3, help="turns of each")
    parser.add_argument("--tasks", type=int, default=8, help="tasks to train on in a turn")
    parser.add_argument("--draws", type=int, default=500, help="tasks to draw in a turn")
    options = parser.parse_args(arguments)
    if not 1 <= options.tasks <= options.draws or options.turns < 1:
        parser.error("--turns and --tasks must be at least 1, and --draws at least --tasks")
    with tempfile.TemporaryDirectory(prefix="distmeta-mixture-") as scratch:
        try:
            config = benchmark_config(options.config, options.set, steps=1, folder=Path(scratch))
            found = contestants(config)
            take_turns(config, found, options.turns, options.draws, options.tasks)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        except Interrupted:
            return 130
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
