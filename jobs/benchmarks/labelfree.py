"""What tasks without labels (SMLMT) are worth beside language modelling: each for as many operations, as curves.

    python jobs/benchmarks/labelfree.py --operations 2e13 [--config FILE] [--set KEY=VALUE ...] [--start new|MODEL]
        [--arms tasks=1e-3 language-modelling both warm-up] [--seeds 0 1 2] [--average 0.5] [--output runs/labelfree]
        [--labelled banking77 data/banking77.jsonl.gz data/banking77/01] [--text-column sentence]

Each arm trains the same network on the same corpus in this process, without Ray and DeepSpeed, until it has spent as
many operations as the algorithms ask for (`distmeta.tracking.cost`); `warm-up` spends half on language modelling and
the rest on tasks. At `--points` of the way each is scored on words that no task hid, and on classes of labelled sets
by the mean of its hidden states: `--labelled NAME FILE FOLDER`, where the folder has the names of the classes in
labels.{train,valid,test}.txt; those of one name are averaged. TF-IDF and the network as it was stand beside them.

Leaves scores.jsonl, a line a score, in which a later call goes on; labelfree.svg; and with --keep the networks.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers.report import align
from trainer import device_of

from distmeta.compute.batch import collate_tokens
from distmeta.compute.precision import passes_in
from distmeta.config import Config, load_config, with_values
from distmeta.corpus.executor import LocalExecutor
from distmeta.engine.precision import set_up_arithmetic
from distmeta.errors import Interrupted, UserError
from distmeta.evaluate.baselines import logistic_regression, nearest_prototype
from distmeta.evaluate.episodes import Episode, Texts, draw_episodes
from distmeta.evaluate.methods import tf_idf
from distmeta.evaluate.networks import Tokens
from distmeta.evaluate.score import Scorer
from distmeta.meta import Learner, algorithm_class
from distmeta.models import Network, Parameters
from distmeta.models.export import export
from distmeta.report.drawing import GREY, LINES, WIDTH, drawing, percent_axis
from distmeta.run_corpus import prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, corpus_directory, resolve
from distmeta.tracking.cost import FlopCounter
from distmeta.train.loop import learning_rate, step_tokens
from distmeta.train.work import WorkSource

SMLMT = Path(__file__).parents[1] / "configs" / "smlmt.yaml"
ARMS = {
    "tasks": (("tasks", 1.0),),
    "language-modelling": (("language-modelling", 1.0),),
    "both": (("both", 1.0),),
    "warm-up": (("language-modelling", 0.5), ("tasks", 0.5)),
}
"""What each trains on, and for which share of the operations."""
KINDS: dict[str, dict[str, Any]] = {
    "tasks": {"meta.lm_weight": 0.0, "meta.lm_warmup_steps": 0},
    "language-modelling": {"meta.lm_weight": 1.0, "meta.lm_warmup_steps": 10**9},
    "both": {"meta.lm_weight": 1.0, "meta.lm_warmup_steps": 0},
}
START, WORDS, SENTENCES = "start", "words", "sentences"
FINE = 10_000
"""Steps of the schedule of the learning rate over the whole of the operations."""
HALVES = ("support", "query")
EXAMPLES = 40
"""Texts of a class of a labelled set that episodes are drawn from: each is one more for every network to read."""
PANEL_HEIGHT = 3.1
"""Inches."""
BATCH = 128
"""Texts that go through the network together to be scored."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Exam:
    """Episodes on which networks are scored."""

    name: str
    """WORDS, or that of a labelled set."""
    episodes: list[Episode]
    tokens: list[Tokens]
    """Of each text of the episodes."""

    @classmethod
    def of(cls, name: str, setup: Setup) -> "Exam":
        """The episodes that the `evaluate` section describes."""
        texts = Texts()
        episodes = draw_episodes(setup.evaluation_tasks(), setup.config.evaluate.episodes, texts)
        return cls(name, episodes, [(each.input_ids, each.mask_position) for each in texts.examples])

    def scores(self, scorer: Scorer) -> Iterator[tuple[str, float]]:
        """Mean accuracy of the network in each use: of words also its own, after the inner loop where it has one."""
        values = features(scorer, self.tokens)
        support, query = (np.stack([values[getattr(each, half)] for each in self.episodes]) for half in HALVES)
        labels, truth = (np.stack([getattr(each, f"{half}_labels") for each in self.episodes]) for half in HALVES)
        n_way = self.episodes[0].n_way
        if self.name == WORDS:
            yield "own use", self._own(scorer, support, labels, query, truth)
            yield "prototype", float((nearest_prototype(support, labels, query, n_way) == truth).mean())
        yield "logistic regression", float((logistic_regression(support, labels, query, n_way) == truth).mean())

    def _own(self, scorer: Scorer, support: Any, labels: Any, query: Any, truth: Any) -> float:
        """What the algorithm makes of an episode: of features that are there already, where it needs no others."""
        assert scorer.algorithm is not None
        scores = scorer.algorithm.of_features(scorer.algorithm.config)
        if scores is None:
            tasks = (each.encoded(self.tokens) for each in self.episodes)
            return statistics.mean(found["inner-loop"].accuracy for found in scorer.score(tasks, ("inner-loop",)))
        parts = zip(*map(torch.from_numpy, (support, labels, query, truth)), strict=True)
        n_way = self.episodes[0].n_way
        return statistics.mean(float((scores(a, b, c, n_way).argmax(1) == d).float().mean()) for a, b, c, d in parts)


@torch.no_grad()
def features(scorer: Scorer, tokens: Sequence[Tokens]) -> NDArray[np.floating]:
    """Of each text, (texts, width)."""
    network, device = scorer.network, next(iter(scorer.parameters.values())).device
    network.eval()
    order = sorted(range(len(tokens)), key=lambda number: len(tokens[number][0]))
    parts = []
    for first in range(0, len(order), BATCH):
        ids, masks = zip(*(tokens[number] for number in order[first : first + BATCH]), strict=True)
        with passes_in(scorer.precision):
            batch = collate_tokens(ids, scorer.pad_token_id, device, masks)
            parts.append(network.features(scorer.parameters, batch).float().cpu())
    network.train()
    return torch.cat(parts)[np.argsort(order)].numpy()


class Benchmark:
    """One start, one corpus and its exams."""

    def __init__(self, config: Config, options: argparse.Namespace) -> None:
        self.options, self.run = options, RunDirectory(options.output)
        config = resolve(with_values(config, KINDS["both"]))
        self.device = device_of(config)
        config.engine.precision = set_up_arithmetic(config.engine.precision, self.device)
        prepare_with(LocalExecutor(), config, self.run, print)
        config.corpus.directory = str(corpus_directory(config, self.run))
        self.config = config
        self.exams = [Exam.of(WORDS, Setup(config, self.run))]
        for number, (name, file, folder) in enumerate(options.labelled):
            self.exams.append(Exam.of(name, self._labelled(file, Path(folder), options.output / f"labelled-{number}")))

    def _labelled(self, file: str, classes: Path, folder: Path) -> Setup:
        """The parts of a labelled set, in tokens of the corpus."""
        source = {"path": file, "text_column": self.options.text_column, "label_column": self.options.label_column}
        values = {
            "corpus.sources": [source],
            "corpus.directory": None,
            "tokenizer.name_or_path": str(Path(self.config.corpus.directory or "") / "tokenizer"),
            "tasks.split_files": {split: str(classes / f"labels.{split}.txt") for split in ("train", "valid", "test")},
            "tasks.label_column": self.options.label_column,
            "tasks.max_examples": EXAMPLES,
        }
        config, run = with_values(self.config, values), RunDirectory(folder)
        prepare_with(LocalExecutor(), config, run, print, splits=(config.evaluate.split,))
        return Setup(config, run)

    def train(self, arm: str, rate: float | None, seed: int) -> Iterator[Row]:
        """Trains as an arm does, and gives its scores at every point, the first as it starts.

        Raises:
            UserError: it has diverged.
        """
        values = {"train.seed": seed} | ({} if rate is None else {"meta.outer_lr": rate})
        config = with_values(self.config, values)
        torch.manual_seed(seed)
        network = Setup(config, self.run).network().to(self.device)
        parameters = dict(network.named_parameters())
        weights: Parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        start = {name: value.clone() for name, value in weights.items()}
        skeleton = network.skeleton().to(self.device).train()
        adamw = optimizer(parameters, config)
        points = [self.options.operations * number / self.options.points for number in range(self.options.points + 1)]
        spent, step, until = 0.0, 0, 0.0
        seconds, started = 0.0, time.process_time()

        def row(scored: Parameters, name: str = arm) -> Row:
            nonlocal seconds, started
            seconds += time.process_time() - started
            done = {"arm": name, "seed": seed, "operations": spent, "steps": step, "seconds": round(seconds, 1)}
            scores = self._scores(config, skeleton, scored)
            started = time.process_time()  # to score is no part of it
            return done | {"scores": scores}

        yield row(weights)
        points.pop(0)
        for kind, share in ARMS[arm]:
            until += share * self.options.operations
            setup = Setup(with_values(config, KINDS[kind]), self.run)
            learner = Learner(skeleton, setup.config.meta, config.engine.precision, seed)
            counter = FlopCounter.of(network, setup.config.meta)
            work = WorkSource(setup, self.device, rank=0, world_size=1)
            while spent < until:
                size = config.meta.meta_batch_size
                done = spent / self.options.operations
                gradients, metrics = learner.gradient(weights, work.take(step), size, done)
                for loss in ("query_loss", "lm_loss"):
                    if not metrics.get(loss, 0.0) <= config.train.max_loss:  # a NaN is wrong too
                        raise UserError(f"{arm}: {loss} {metrics[loss]:.4g} at step {step}; give it a lower rate")
                update(adamw, parameters, gradients, config, done)
                spent += counter.step(step_tokens(metrics))
                step += 1
                while points and spent >= points[0]:
                    points.pop(0)
                    yield row(weights)
            work.close()
        for average in self.options.average:
            mixed = {name: torch.lerp(value, start[name], average) for name, value in weights.items()}
            yield row(mixed, f"{arm}, {average:g} of the start")
        if self.options.keep:
            export(network, weights, Setup(config, self.run).tokenizer, self.options.keep / f"{arm}-{seed}")

    def _scores(self, config: Config, network: Network, parameters: Parameters) -> dict[str, float]:
        """The mean accuracy by exam and use."""
        found: dict[str, list[float]] = {}
        pad = Setup(config, self.run).tokenizer.pad_token_id
        steps = config.evaluate.inner_steps or config.meta.inner_steps
        algorithm = algorithm_class(config.meta.algorithm)(network, config.meta)
        for exam in self.exams:
            pooling, network.pooling = network.pooling, network.pooling if exam.name == WORDS else "mean"
            scorer = Scorer(network, parameters, algorithm, steps, config.engine.precision, pad)
            for use, accuracy in exam.scores(scorer):
                found.setdefault(f"{exam.name}, {use}", []).append(accuracy)
            network.pooling = pooling
        return {name: statistics.mean(values) for name, values in found.items()}

    def words_alone(self) -> Row:
        """The scores of TF-IDF on the labelled sets."""
        found: dict[str, list[float]] = {}
        for exam in self.exams[1:]:
            accuracies = [score.accuracy for score in tf_idf().score(exam.episodes)]
            found.setdefault(f"{exam.name}, logistic regression", []).append(statistics.mean(accuracies))
        return {"arm": "tf-idf", "operations": 0.0, "scores": {k: statistics.mean(v) for k, v in found.items()}}


def optimizer(parameters: Mapping[str, torch.Tensor], config: Config) -> torch.optim.AdamW:
    """As a run has it."""
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim > 1], "weight_decay": config.meta.weight_decay},
        {"params": [each for each in trained if each.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)


def update(
    adamw: torch.optim.AdamW, parameters: Mapping[str, torch.Tensor], gradients: Parameters, config: Config, done: float
) -> None:
    """One step; `done` is the share of the operations that are spent. What has no gradient stays as it is."""
    for name, parameter in parameters.items():
        parameter.grad = gradients.get(name)
    if config.engine.gradient_clipping:
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.engine.gradient_clipping)
    for group in adamw.param_groups:
        group["lr"] = learning_rate(config.meta, int(done * FINE), FINE)
    adamw.step()


def read(path: Path) -> list[Row]:
    """The rows that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows behind those that are there."""
    with path.open("a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)


def curves(rows: Sequence[Row]) -> dict[str, list[tuple[float, dict[str, list[float]]]]]:
    """By arm, in the order of the points: the operations, and by score the values over the seeds."""
    found: dict[str, dict[int, tuple[list[float], dict[str, list[float]]]]] = {}
    place: dict[tuple[str, Any], int] = {}
    for row in rows:
        run = (row["arm"], row.get("seed"))
        place[run] = place.get(run, -1) + 1
        operations, scores = found.setdefault(row["arm"], {}).setdefault(place[run], ([], {}))
        operations.append(row["operations"])
        for name, value in with_mean(row["scores"]).items():
            scores.setdefault(name, []).append(value)
    return {arm: [(statistics.mean(x), scores) for x, scores in points.values()] for arm, points in found.items()}


def with_mean(scores: dict[str, float]) -> dict[str, float]:
    """Scores, with the mean of the labelled sets where there are several."""
    sets = [value for name, value in scores.items() if not name.startswith(f"{WORDS},")]
    return scores | ({f"{SENTENCES}, mean": statistics.mean(sets)} if len(sets) > 1 else {})


def table(rows: Sequence[Row]) -> str:
    """Means over the seeds and their standard deviation, in %: of the start, of each arm at its end, and of TF-IDF."""
    found = curves(rows)
    arms = [arm for arm in found if arm in ARMS]
    ends = {START: found[arms[0]][0][1]} | {arm: points[-1][1] for arm, points in found.items()}
    names = list(dict.fromkeys(name for scores in ends.values() for name in scores))
    lines = [["%", *names]]
    for arm, scores in ends.items():
        lines.append([arm, *(shown(scores[name]) if name in scores else "" for name in names)])
    return align(lines)


def shown(values: Sequence[float]) -> str:
    """A mean and a standard deviation in %."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def draw(rows: Sequence[Row], path: Path, n_way: int) -> None:
    """A panel for each score, two side by side: means over the seeds, and their standard deviation."""
    found = curves(rows)
    arms = [arm for arm in found if arm in ARMS]
    names = list(found[arms[0]][0][1])
    if f"{SENTENCES}, mean" in names:  # which stands for all sets
        names = [name for name in names if name.startswith((f"{WORDS},", f"{SENTENCES},"))]
    levels = {"chance": {name: [1 / n_way] for name in names if name.startswith(WORDS)}}
    if "tf-idf" in found:
        levels["TF-IDF"] = found["tf-idf"][0][1]
    width, height = 72 * WIDTH, 72 * PANEL_HEIGHT
    panels = []
    for number, name in enumerate(names):
        with drawing(f"panel-{number}", name, PANEL_HEIGHT) as drawn:
            for arm, style in zip(arms, LINES, strict=False):
                operations = [point for point, _ in found[arm]]
                values = [scores[name] for _, scores in found[arm]]
                spread = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
                means = [statistics.mean(each) for each in values]
                drawn.axes.errorbar(operations, means, spread, label=arm, linewidth=1.6, capsize=2, **style)
            for (label, level), dash in zip(levels.items(), (":", "--"), strict=False):
                if name in level:
                    drawn.axes.axhline(level[name][0], color=GREY, linestyle=dash, label=label)
            drawn.axes.set(title=name, xlabel="operations")
            percent_axis(drawn.axes.yaxis)
            drawn.legend(3)
        place = f'<svg x="{width * (number % 2):g}" y="{height * (number // 2):g}"'
        own = f'width="{width:g}pt" height="{height:g}pt"'  # what it stands in counts in points
        panels.append(drawn.svg.replace("<svg", place, 1).replace(own, own.replace("pt", ""), 1))
    down = height * math.ceil(len(names) / 2)
    size = f'width="{2 * width:g}pt" height="{down:g}pt" viewBox="0 0 {2 * width:g} {down:g}"'
    path.write_text("\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *panels, "</svg>", ""]))


def arm_and_rate(text: str) -> tuple[str, float | None]:
    """`tasks`, or `tasks=1e-3` with an outer learning rate of its own."""
    name, _, rate = text.partition("=")
    try:
        found = float(rate) if rate else None
    except ValueError:
        found = 0.0
    if name not in ARMS or (found is not None and not found > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(ARMS)}, with =RATE behind it or not")
    return name, found


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=SMLMT)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="sets one key; repeatable")
    parser.add_argument("--start", default="new", help="new, or what model.name_or_path takes")
    parser.add_argument("--arms", nargs="+", type=arm_and_rate, default=[(arm, None) for arm in ARMS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--operations", type=float, required=True, help="of each arm")
    parser.add_argument("--points", type=int, default=6, help="scores of each arm behind that of the start")
    parser.add_argument("--average", nargs="+", type=float, default=[], help="shares of the start, scored at the end")
    parser.add_argument("--labelled", nargs=3, action="append", default=[], metavar=("NAME", "FILE", "FOLDER"))
    parser.add_argument("--text-column", default="text", help="of the labelled sets")
    parser.add_argument("--label-column", default="label", help="of the labelled sets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the networks at the end, as transformers reads them")
    parser.add_argument("--output", type=Path, default=Path("runs/labelfree"))
    options = parser.parse_args(arguments)
    if not options.operations > 0 or min(options.points, options.threads) < 1:
        parser.error("--operations, --points and --threads must be above 0")
    if not all(0 < share < 1 for share in options.average):
        parser.error("--average must be between 0 and 1")
    options.output = options.output.absolute()
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = options_of(arguments)
    torch.set_num_threads(options.threads)
    scores = options.output / "scores.jsonl"
    try:
        overrides = options.set if options.start == "new" else [*options.set, f"model.name_or_path={options.start}"]
        benchmark = Benchmark(load_config(options.config, overrides), options)
        if options.labelled and not any(row["arm"] == "tf-idf" for row in read(scores)):
            add(scores, [benchmark.words_alone()])
        for seed in options.seeds:
            for arm, rate in options.arms:
                if any((row["arm"], row.get("seed")) == (arm, seed) for row in read(scores)):
                    continue
                rows = []
                for row in benchmark.train(arm, rate, seed):
                    rows.append(row)
                    found = ", ".join(f"{name} {100 * value:.1f}" for name, value in with_mean(row["scores"]).items())
                    print(f"{row['arm']}, seed {seed}, {row['operations']:.2e}, {row['seconds']:.0f} s: {found}")
                add(scores, rows)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Interrupted:
        return 130
    rows = read(scores)
    draw(rows, options.output / "labelfree.svg", benchmark.exams[0].episodes[0].n_way)
    print(f"\n{table(rows)}\n\nwritten to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
