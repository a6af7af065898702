"""How many lines a second a classifier labels, and in how much memory.

    python jobs/benchmarks/prediction.py CLASSIFIER FILE [--text-column text] [--turn-lines 4000] [--turns 5]
        [--lines 1000000] [--threads 2]

CLASSIFIER is what `distmeta adapt` has written, with a head on a network; FILE is JSON lines. In turns with `distmeta
predict`, in fp32 and in bf16, on the same lines: a plain loop over sentence-transformers' `encode` on the classifier's
own folder, with the same head. Then FILE again and again as one of so many lines goes through `distmeta predict`, whose
memory is watched. Prints lines a second, medians and their ratios to the loop, how many labels the precisions have in
common, and the memory of the process at each tenth.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch

from distmeta.adapt.classifier import Classifier
from distmeta.adapt.command import Columns, predict
from distmeta.adapt.methods import Linear
from distmeta.engine.precision import Precision
from distmeta.errors import UserError

AT_A_TIME = 1024
WATCHED_EVERY = 0.25


def lines_of(file: Path, count: int) -> Iterator[str]:
    """So many lines of a file, again from its beginning where it ends.

    Raises:
        UserError: it has none.
    """
    text = file.read_text(encoding="utf-8").splitlines()
    if not text:
        raise UserError(f"{file}: has no lines")
    yield from itertools.islice(itertools.cycle(text), count)


def ours(directory: Path, file: Path, column: str, output: Path, precision: Precision = "fp32") -> float:
    """Seconds of `distmeta predict`, its loading included."""
    started = time.perf_counter()
    predict(directory, file, output, Columns(column), abstain_below=0.0, precision=precision, say=lambda _: None)
    return time.perf_counter() - started


def plain(directory: Path, file: Path, column: str, output: Path) -> float:
    """Seconds of the loop that one would write, its loading included."""
    from sentence_transformers import SentenceTransformer

    started = time.perf_counter()
    network, classifier = SentenceTransformer(str(directory), device="cpu"), Classifier.load(directory, device="cpu")
    fitted = classifier.fitted_
    if not isinstance(fitted, Linear):
        raise UserError(
            f"{directory}: its method adapts the network to each text; give one of prototypes or regression"
        )
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with output.open("w", encoding="utf-8") as out:
        for first in range(0, len(rows), AT_A_TIME):
            some = rows[first : first + AT_A_TIME]
            features = network.encode([row[column] for row in some], show_progress_bar=False)
            for row, best in zip(some, fitted.of_features(features).argmax(1), strict=True):
                out.write(json.dumps(row | {"label": classifier.classes_[best].item()}) + "\n")
    return time.perf_counter() - started


def watched(directory: Path, file: Path, column: str, output: Path, threads: int) -> tuple[float, list[float]]:
    """Seconds of a process of its own, and its memory (MB) at each look."""
    process = get_context("spawn").Process(target=_limited, args=(threads, directory, file, column, output))
    started = time.perf_counter()
    process.start()
    seen: list[float] = []
    about = psutil.Process(process.pid)
    while process.is_alive():
        try:
            seen.append(about.memory_info().rss / 1e6)
        except psutil.Error:
            break
        process.join(WATCHED_EVERY)
    process.join()
    if process.exitcode:
        raise UserError(f"{directory}: predicting ended with status {process.exitcode}")
    return time.perf_counter() - started, seen


def _limited(threads: int, *arguments: Path | str) -> None:
    torch.set_num_threads(threads)
    ours(*arguments)  # type: ignore[arg-type]  # as they are given above


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--turn-lines", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            short, long = folder / "short.jsonl", folder / "long.jsonl"
            output = folder / "out.jsonl"
            if options.turns:
                short.write_text("\n".join(lines_of(options.file, options.turn_lines)) + "\n", encoding="utf-8")
                contestants: dict[str, Callable[..., float]] = {
                    "plain loop": plain,
                    "fp32": ours,
                    "bf16": partial(ours, precision="bf16"),
                }
                rates: dict[str, list[float]] = {name: [] for name in contestants}
                labels: dict[str, list[Any]] = {}
                for _ in range(options.turns):
                    for name, run in contestants.items():
                        seconds = run(options.classifier, short, options.text_column, output)
                        rates[name].append(options.turn_lines / seconds)
                        labels[name] = [json.loads(line)["label"] for line in output.read_text("utf-8").splitlines()]
                rival = statistics.median(rates["plain loop"])
                for name, values in rates.items():
                    rate, ends = statistics.median(values), f"{min(values):.0f} to {max(values):.0f}"
                    print(f"{name}: {rate:.0f} lines a second ({ends}), {rate / rival:.2f} times the loop")
                same = sum(one == other for one, other in zip(labels["fp32"], labels["bf16"], strict=True))
                print(f"{same} of {options.turn_lines} labels are the same in bf16; {options.turns} turns")
            if options.lines:
                with long.open("w", encoding="utf-8") as out:
                    out.writelines(f"{line}\n" for line in lines_of(options.file, options.lines))
                spent, seen = watched(options.classifier, long, options.text_column, output, options.threads)
                tenths = [seen[len(seen) * part // 10] for part in range(10)] + seen[-1:]
                print(f"{options.lines} lines in {spent:.0f} s, {options.lines / spent:.0f} a second")
                print("memory (MB) at each tenth: " + " ".join(f"{each:.0f}" for each in tenths))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
