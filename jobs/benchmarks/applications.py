"""Classifiers from a few examples on real labelled sets, beside what a user would take instead.

    python jobs/benchmarks/applications.py --data FOLDER --model runs/mixture [--model NAME=PATH ...] [--sets NAME ...]
        [--shots 4 8 16] [--draws 10] [--methods auto prototype ...] [--setfit] [--output runs/applications]

The sets and where they are in the folder stand in applications.yaml. Of one with given draws (LEOPARD) these are taken;
of any other as many examples of each class are drawn, and the first of its test rows are predicted. Each method has
the same examples and rows: those of `distmeta adapt`, logistic regression on TF-IDF, and with --setfit SetFit with its
own defaults. One thread, and seconds are the processor's, so that they can be compared. Leaves rows.jsonl, in which a
later call goes on, and prints a table: accuracy and macro F1, seconds to adapt and for 1,000 predictions, calibration
error before and after, and the accuracy on each set with its 95% interval over the draws; rows.jsonl has precision,
recall and memory. With --picture FILE the means are drawn, accuracy over seconds.
"""

import argparse
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from peers.report import align
from pydantic import ValidationError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from distmeta import Classifier
from distmeta.adapt.base import Text
from distmeta.adapt.calibration import calibration_error, probabilities
from distmeta.adapt.methods import FROZEN
from distmeta.corpus.config import SourceConfig
from distmeta.corpus.readers import read_piece
from distmeta.corpus.records import RecordSettings, Tally, clean_records
from distmeta.corpus.sources import resolve_sources
from distmeta.errors import UserError
from distmeta.evaluate.statistics import classification_scores, mean_ci95
from distmeta.yaml_text import read_yaml

SETS = Path(__file__).with_suffix(".yaml")
METHODS = ("auto", "prototype", "logistic-regression")
QUERIES = 400
"""Test rows of a set, the first ones, or as many drawn."""
SEED = 7


@dataclass(frozen=True)
class Task:
    """Examples to adapt to, and texts to predict."""

    texts: list[Text]
    labels: list[str]
    queries: list[Text]
    truth: list[str]


@dataclass(frozen=True)
class DataSet:
    """A labelled set.

    Attributes:
        name: what it is called.
        source: the file, as in `corpus.sources`.
        text: column of the text.
        label: column of the class.
        pair: column of a second text.
        test: another file whose rows are predicted; None: rows of the same one that are not drawn.
        draws: whether the file gives draws, in the columns `part`, `draw` and `shots`.
        coarse: what ends the part of a label that counts, as `:` in `NUM:dist`.
    """

    name: str
    source: dict[str, Any]
    text: str
    label: str
    pair: str | None = None
    test: dict[str, Any] | None = None
    draws: bool = False
    coarse: str | None = None

    def rows(self, folder: Path, source: dict[str, Any], column: str) -> list[tuple[Text, str]]:
        """Text and another column of each row."""
        settings = RecordSettings("line", "none", False, 10_000_000, self.text, self.pair, column)
        found: list[tuple[Text, str]] = []
        asked = SourceConfig(**{**source, "path": str(folder / source["path"])})
        for piece in resolve_sources([asked]).files:
            tally = Tally()
            for record in clean_records(read_piece(piece, settings, tally), settings, tally):
                text = (record.text or "",) if self.pair is None else (record.text or "", record.pair or "")
                found.append((text, record.label or ""))
            if tally.problems:
                raise UserError(f"{self.name}: {tally.problems[0]}")
        return found

    def tasks(self, folder: Path, shots: int, draws: int) -> Iterator[Task]:
        """The tasks with so many examples of each class; none where it has no such."""
        if self.draws:
            yield from self._given(folder, shots, draws)
            return
        rows = [(text, self._short(label)) for text, label in self.rows(folder, self.source, self.label)]
        by_class: dict[str, list[Text]] = defaultdict(list)
        for text, label in dict.fromkeys(rows):
            by_class[label].append(text)
        random = np.random.default_rng(SEED)
        other = self.rows(folder, self.test, self.label) if self.test else []
        test = [(text, self._short(label)) for text, label in other]
        chosen = {label: random.permutation(len(texts)) for label, texts in by_class.items()}
        if not test:
            # Of a small class at most half, so that there is something to draw.
            most = max(1, QUERIES // len(by_class))
            ends = {label: min(most, len(order) // 2) for label, order in chosen.items()}
            test = [(by_class[label][row], label) for label, order in chosen.items() for row in order[: ends[label]]]
            chosen = {label: order[ends[label] :] for label, order in chosen.items()}
        test = [test[row] for row in random.permutation(len(test))[:QUERIES]]
        for _ in range(draws):
            picked = {label: random.permutation(order)[:shots] for label, order in chosen.items()}
            examples = [(by_class[label][row], label) for label, order in picked.items() for row in order]
            yield Task(*map(list, zip(*examples, strict=True)), *map(list, zip(*test, strict=True)))

    def _given(self, folder: Path, shots: int, draws: int) -> Iterator[Task]:
        columns = [self.rows(folder, self.source, name) for name in (self.label, "part")]
        labelled, parts = columns
        of_train = [(row, part) for row, (_, part) in zip(labelled, parts, strict=True)]
        test = [row for row, part in of_train if part != "train"][:QUERIES]
        train = [row for row, part in of_train if part == "train"]
        own = [
            (draw, size)
            for (_, draw), (_, size) in zip(
                *(self.rows(folder, self.source, name) for name in ("draw", "shots")), strict=True
            )
        ]
        for draw in range(draws):
            examples = [row for row, key in zip(train, own, strict=True) if key == (str(draw), str(shots))]
            if examples:
                yield Task(*map(list, zip(*examples, strict=True)), *map(list, zip(*test, strict=True)))

    def _short(self, label: str) -> str:
        return label.split(self.coarse)[0] if self.coarse else label


def ours(model: str, method: str, seconds: float, options: dict[str, Any]) -> Callable[[Task], dict[str, Any]]:
    """A method of `distmeta adapt`."""

    features: dict[tuple[str, tuple[Text, ...]], tuple[NDArray[np.floating], float]] = {}

    def scores_of(made: Classifier, queries: list[Text]) -> tuple[NDArray[np.floating], float]:
        """Of the queries, and seconds; what a frozen network makes of them is computed once for all draws."""
        started = time.process_time()
        if made.choice_.method not in FROZEN:
            return made.fitted_.scores(made.base_.encode(queries)), time.process_time() - started
        key = (made.choice_.network, tuple(queries))
        if key not in features:
            features[key] = made.base_.features(made.base_.encode(queries)), time.process_time() - started
        values, seconds = features[key]
        return made.fitted_.of_features(values), seconds  # type: ignore[attr-defined]  # those are Linear

    def run(task: Task) -> dict[str, Any]:
        started = time.process_time()
        made = Classifier(model, method=method, seconds=seconds, device="cpu", **options).fit(task.texts, task.labels)
        fitted = time.process_time()
        scores, predicting = scores_of(made, task.queries)
        truth = np.searchsorted(made.classes_, task.truth)
        raw, calibrated = probabilities(scores), probabilities(scores, made.temperature_)
        return _outcome(made.classes_[scores.argmax(1)], task, fitted - started, predicting) | {
            "chosen": f"{made.choice_.network} {made.choice_.method}",
            "calibration_before": calibration_error(raw, truth),
            "calibration_after": calibration_error(calibrated, truth),
        }

    return run


def tf_idf(task: Task) -> dict[str, Any]:
    """Logistic regression on character sequences within words."""
    started = time.process_time()
    made = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    made.fit([" ".join(each) for each in task.texts], task.labels)
    fitted = time.process_time()
    predicted = made.predict([" ".join(each) for each in task.queries])
    return _outcome(predicted, task, fitted - started, time.process_time() - fitted)


def setfit(model: str) -> Callable[[Task], dict[str, Any]]:
    """SetFit from a folder, with its defaults."""

    def run(task: Task) -> dict[str, Any]:
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments

        torch.manual_seed(0)
        started = time.process_time()
        body = SetFitModel.from_pretrained(model, labels=sorted(set(task.labels)))
        data = Dataset.from_dict({"text": [" ".join(each) for each in task.texts], "label": task.labels})
        arguments = TrainingArguments(report_to="none", num_iterations=20, show_progress_bar=False)
        Trainer(model=body, args=arguments, train_dataset=data).train()
        fitted = time.process_time()
        predicted = body.predict([" ".join(each) for each in task.queries], show_progress_bar=False)
        return _outcome(np.asarray(predicted), task, fitted - started, time.process_time() - fitted)

    return run


def _outcome(predicted: Any, task: Task, adapting: float, predicting: float) -> dict[str, Any]:
    classes = sorted(set(task.labels) | set(task.truth))
    truth, found = (np.searchsorted(classes, np.asarray(each).astype(str)) for each in (task.truth, predicted))
    scores = classification_scores(truth, found, len(classes))
    return {
        "accuracy": scores.accuracy,
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
        "seconds": adapting,
        "seconds_per_1000": 1000 * predicting / len(task.queries),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def means(rows: Sequence[dict[str, Any]], shots: int) -> dict[str, dict[str, float]]:
    """Of each method the means over the sets of what its rows have; without those that were not run on all sets."""
    sets = dict.fromkeys(row["set"] for row in rows)
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows if row["shots"] == shots):
        own = [row for row in rows if (row["shots"], row["method"]) == (shots, method)]
        by_set = [[row for row in own if row["set"] == name] for name in sets]
        if all(by_set):
            keys = [key for key, value in own[0].items() if isinstance(value, float)]
            found[method] = {
                key: float(np.mean([np.mean([row[key] for row in each]) for each in by_set])) for key in keys
            }
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each number of examples and method: means over the sets, and the means of each set."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    lines = [["examples", "method", "accuracy", "F1", "adapt s", "1,000 s", "calibration", *sets]]
    for shots in dict.fromkeys(row["shots"] for row in rows):
        for method, mean in means(rows, shots).items():
            own = [row for row in rows if (row["shots"], row["method"]) == (shots, method)]
            shown = ""
            if "calibration_after" in mean:
                shown = f"{100 * mean['calibration_before']:.1f} to {100 * mean['calibration_after']:.1f}"
            lines.append(
                [
                    str(shots),
                    method,
                    f"{100 * mean['accuracy']:.1f}",
                    f"{100 * mean['f1']:.1f}",
                    f"{mean['seconds']:.2f}",
                    f"{mean['seconds_per_1000']:.2f}",
                    shown,
                    *(_cell([row["accuracy"] for row in own if row["set"] == name]) for name in sets),
                ]
            )
    return align(lines)


def draw_frontier(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Accuracy over the seconds to adapt: means over the sets, a panel for each number of examples."""
    sizes = sorted({row["shots"] for row in rows})
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "distmeta"}):
        figure = Figure(figsize=(3.6 * len(sizes), 4.4), layout="constrained")
        panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
        for panel, shots in zip(panels, sizes, strict=True):
            for number, (method, mean) in enumerate(means(rows, shots).items()):
                marker = "os^Dv"[number // 10 % 5]
                panel.plot(mean["seconds"], 100 * mean["accuracy"], marker, label=method)
            panel.set(xscale="log", title=f"{shots} examples of a class", xlabel="seconds of a core to adapt")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("accuracy (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _cell(values: Sequence[float]) -> str:
    mean, half = mean_ci95([100 * value for value in values])
    return f"{mean:.1f}" + (f" ± {half:.1f}" if np.isfinite(half) else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--model", action="append", required=True, metavar="[NAME=]PATH", help="repeatable")
    parser.add_argument("--sets", nargs="+", help="names in applications.yaml; unset: all whose files are there")
    parser.add_argument("--shots", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seconds", type=float, default=10.0, help="of `auto`")
    parser.add_argument("--class-names", action="store_true")
    parser.add_argument(
        "--setfit", action="store_true", help="SetFit from each model's network, which takes minutes each"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/applications"))
    parser.add_argument("--picture", type=Path, help="file of a picture, .svg or .png")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        known = {name: DataSet(name, **values) for name, values in read_yaml(SETS).items()}
        unknown = [name for name in options.sets or [] if name not in known]
        if unknown:
            raise UserError(f"--sets {unknown[0]}: applications.yaml has {', '.join(known)}")
        chosen = [known[name] for name in options.sets or known]
        contestants: dict[str, Callable[[Task], dict[str, Any]]] = {"tf-idf": tf_idf}
        for given in options.model:
            name, _, path = given.rpartition("=")
            name = name or Path(path).name
            more = {"class_names": True} if options.class_names else {}
            suffix = " with names" if more else ""
            for method in options.methods:
                contestants[f"{name} {method}{suffix}"] = ours(path, method, options.seconds, more)
            if options.setfit:
                contestants[f"{name} setfit"] = setfit(str(path))
        rows = list(_run(chosen, contestants, options))
    except (UserError, ValidationError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(rows))
    if options.picture:
        draw_frontier(rows, options.picture)
    return 0


def _run(
    sets: Sequence[DataSet], contestants: dict[str, Callable[[Task], dict[str, Any]]], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """All rows, those that an earlier call has left among them."""
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "rows.jsonl"
    there = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    known = {(row["set"], row["shots"], row["draw"], row["method"]): row for row in there}
    for one in sets:
        if not (options.data / one.source["path"]).exists():
            print(f"{one.name}: {one.source['path']} is not there, left out", file=sys.stderr)
            continue
        for shots in options.shots:
            for draw, task in enumerate(one.tasks(options.data, shots, options.draws)):
                for method, run in contestants.items():
                    key = (one.name, shots, draw, method)
                    if key not in known:
                        row = dict(zip(("set", "shots", "draw", "method"), key, strict=True)) | run(task)
                        with file.open("a", encoding="utf-8") as out:
                            out.write(json.dumps(row) + "\n")
                        known[key] = row
                    yield known[key]
            print(f"{one.name}, {shots} examples a class: done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
