"""How fast the meta-gradient of a meta-batch is computed: by us, by a plain loop by hand, and by the known libraries.

    pip install --editable '.[benchmark,benchmark-betty]'     # betty takes a pip below 24.1
    python jobs/benchmarks/meta.py --output runs/benchmark [--workloads fomaml/all ...] [--shots 1 5] [--threads 1]

All get the same new BERT, the same weights and the same tasks, and take turns in random order within each round. The
gradient of each is held against the plain loop's in float64 before anything is timed. Prints a table and writes it with
`benchmark.json` and `benchmark.svg`. The exit status is 1 if a gradient is wrong.
"""

import argparse
import gc
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from peers import CONTESTANTS, Contestant, UnavailableError, load
from peers.matrix_product import DTYPES, MatrixProducts, needed, synchronize
from peers.report import Benchmark, Row
from peers.work import N_WAY, WORKLOADS, Shape, Weights, Work, draw_tasks, new_weights

from distmeta.compute.batch import TaskBatch

BY_HAND = "by hand"
WARM_UPS = {"cpu": 1, "cuda": 8}
"""Meta-batches before anything is timed; on a GPU distmeta records in the first ones what it plays from then on."""
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}
"""Relative error of a meta-gradient that the precision explains."""


class Parser(argparse.ArgumentParser):
    """Answers a bad option with one line."""

    def error(self, message: str) -> NoReturn:
        """Ends with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parser() -> Parser:
    """The options, with their defaults."""
    options = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    options.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    options.add_argument("--shots", nargs="+", type=positive, default=[1, 5])
    options.add_argument("--queries", type=positive, default=5, help="query sentences a class")
    options.add_argument("--lengths", choices=["natural", "equal", "both"], default="both")
    options.add_argument("--precision", choices=sorted(TOLERANCE, reverse=True), default="fp32")
    options.add_argument("--threads", type=positive, default=1)
    options.add_argument("--rounds", type=positive, default=5)
    options.add_argument("--tasks", type=positive, default=8, help="tasks a meta-batch")
    options.add_argument("--inner-steps", type=positive, default=5)
    options.add_argument("--layers", type=positive, default=Shape.layers)
    options.add_argument("--width", type=positive, default=Shape.width, help="a multiple of 64")
    options.add_argument("--vocabulary", type=positive, default=Shape.vocabulary)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--skip-memory", action="store_true", help="measure no peak memory, which takes a run more")
    options.add_argument("--output", type=Path, default=Path("runs/benchmark"))
    # What a process that measures the memory of one contestant is started with.
    options.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    return options


def work_for(options: argparse.Namespace, workload: str) -> Work:
    """The work of a workload, on the GPU where there is one."""
    return Work(
        WORKLOADS[workload],
        Shape(options.layers, options.width, options.vocabulary),
        inner_lr=0.05,
        inner_steps=options.inner_steps,
        precision=options.precision,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )


def draw(options: argparse.Namespace, shots: int, lengths: str, number: int = 0) -> list[TaskBatch]:
    """The tasks that all contestants get in the round of a number, as new tensors."""
    work = work_for(options, options.workloads[0])
    return draw_tasks(options.tasks, shots, options.queries, lengths, work.shape, options.seed + number, work.device)


def warm_ups(options: argparse.Namespace, shots: int, lengths: str) -> list[list[TaskBatch]]:
    """What comes before the first round."""
    device = work_for(options, options.workloads[0]).device
    return [draw(options, shots, lengths, number) for number in range(WARM_UPS[device.type])]


def gradient_error(gradients: Weights, reference: Weights) -> float:
    """Relative error in the Euclidean norm over all weights; infinite where a gradient is missing or too many."""
    if gradients.keys() != reference.keys():
        return math.inf
    difference = sum(float((gradients[name].double() - value).square().sum()) for name, value in reference.items())
    return math.sqrt(difference / sum(float(value.square().sum()) for value in reference.values()))


def peak_memory(contestant: Contestant, weights: Weights, rounds: list[list[TaskBatch]]) -> int | None:
    """Bytes that meta-batches take beyond what was there before; None where the system does not say."""
    device = next(iter(weights.values())).device
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for tasks in rounds:
            contestant(weights, tasks)
        return torch.cuda.max_memory_allocated(device) - before

    def status(key: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
        return int(line.split()[1]) * 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = status("VmRSS")
    except OSError:
        return None
    for tasks in rounds:
        contestant(weights, tasks)
    return status("VmHWM") - before


def peak_memory_elsewhere(
    options: argparse.Namespace, workload: str, shots: int, lengths: str, name: str, notes: list[str]
) -> int | None:
    """The same, measured in a fresh process, whose allocator has seen nobody else."""
    command = [sys.executable, __file__, "--memory-of", name, "--workloads", workload]
    command += ["--shots", str(shots), "--lengths", lengths]
    for key in ("queries", "precision", "threads", "tasks", "inner_steps", "layers", "width", "vocabulary", "seed"):
        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        note = (
            f"peak memory of {name} on {workload} is missing: {(result.stderr.strip() or 'no reason').splitlines()[-1]}"
        )
        notes.append(note)
        print(note, flush=True)
        return None
    answer = result.stdout.split()[-1]
    return None if answer == "None" else int(answer)


def compare(
    options: argparse.Namespace,
    workload: str,
    shots: int,
    lengths: str,
    products: MatrixProducts,
    rates: list[dict[str, float]],
    notes: list[str],
) -> list[Row]:
    """Checks, then times all contestants on one piece of work; who cannot take part gets a note.

    The machine's matrix products are measured once a round, so that what disturbs one disturbs the other, and `rates`
    gets them.
    """
    work = work_for(options, workload)
    weights = new_weights(work, options.seed)
    before = warm_ups(options, shots, lengths)
    make_reference = load(BY_HAND)(replace(work, precision="fp64"))
    assert make_reference is not None
    reference = make_reference({name: value.double() for name, value in weights.items()}, before[-1])
    entered: dict[str, Contestant] = {}
    errors, losses = {}, {}
    for name in options.contestants:
        try:
            contestant = load(name)(work)
            if contestant is None:
                continue
            for tasks in before:
                outcome = contestant(weights, tasks)
        except UnavailableError as error:
            note = str(error)
        except Exception as error:
            note = f"{name} failed on {workload}: {type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            entered[name] = contestant
            errors[name] = gradient_error(outcome.gradients, reference.gradients)
            losses[name] = outcome.query_loss
            continue
        if note not in notes:
            notes.append(note)
            print(note, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in entered}
    processor_seconds: dict[str, list[float]] = {name: [] for name in entered}
    inner_seconds: dict[str, list[float]] = {name: [] for name in entered}
    turns = random.Random(options.seed)
    order = list(entered)
    round_rates, operations = [], []
    for number in range(len(before), len(before) + options.rounds):
        rates.append(products.rates())
        round_rates.append(rates[-1][options.precision])
        turns.shuffle(order)
        for name in order:
            # A task is seen once in training too: nothing can be kept of it, nor of its lengths.
            tasks = draw(options, shots, lengths, number)
            gc.collect()
            synchronize(work.device)
            started, processor_started = time.perf_counter(), time.process_time()
            outcome = entered[name](weights, tasks)
            synchronize(work.device)
            seconds[name].append(time.perf_counter() - started)
            processor_seconds[name].append(time.process_time() - processor_started)
            if outcome.inner_seconds is not None:
                inner_seconds[name].append(outcome.inner_seconds)
        operations.append(needed(work.workload, work.shape, tasks, work.inner_steps))
    rows = []
    for name in entered:
        median = statistics.median(seconds[name])
        inner = None
        if inner_seconds[name]:
            inner = share([each.inner for each in operations], inner_seconds[name], round_rates)
        alone = work.device.type == "cpu" and options.threads == 1
        rows.append(
            Row(
                lengths,
                shots,
                workload,
                name,
                seconds[name],
                median,
                len(tasks) / median,
                ratio(seconds, name),
                ratio(processor_seconds, name) if alone else None,
                None if options.skip_memory else peak_memory_elsewhere(options, workload, shots, lengths, name, notes),
                inner,
                share([each.whole for each in operations], seconds[name], round_rates),
                losses[name],
                errors[name] if math.isfinite(errors[name]) else None,
                not errors[name] <= TOLERANCE[work.precision],  # a NaN is wrong too
            )
        )
    return rows


def ratio(seconds: dict[str, list[float]], name: str) -> float | None:
    """How many times as fast as by hand: the median over the rounds; None where that is no contestant."""
    if BY_HAND not in seconds:
        return None
    return statistics.median(by_hand / own for by_hand, own in zip(seconds[BY_HAND], seconds[name], strict=True))


def share(operations: list[float], seconds: list[float], rates: list[float]) -> float:
    """Of the rate of the matrix product: the median over the rounds."""
    return statistics.median(each / own / rate for each, own, rate in zip(operations, seconds, rates, strict=True))


def machine(device: torch.device, threads: int) -> dict[str, object]:
    """What was measured on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return {"device": name, "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}


def run(options: argparse.Namespace) -> Benchmark:
    """All that the options ask for."""
    lengths = ["natural", "equal"] if options.lengths == "both" else [options.lengths]
    work = work_for(options, options.workloads[0])
    load_average = os.getloadavg()[0]
    notes = []
    if load_average > 0.5:
        notes.append(
            f"Other work kept {load_average:.1f} of {os.cpu_count()} cores busy in the minute before the start."
        )
    benchmark = Benchmark(
        {
            "precision": options.precision,
            "way": N_WAY,
            "queries a class": options.queries,
            "tasks a meta-batch": options.tasks,
            "inner steps": options.inner_steps,
            "layers": options.layers,
            "width": options.width,
            "vocabulary": options.vocabulary,
            "rounds": options.rounds,
            "seed": options.seed,
        },
        machine(work.device, options.threads),
        [],
        [],
        notes,
    )
    for each in lengths:
        for shots in options.shots:
            rows = round(statistics.mean(task.support.num_tokens for task in draw(options, shots, each)))
            products = MatrixProducts(work.shape, rows, work.device, options.seed)
            rates: list[dict[str, float]] = []
            for workload in options.workloads:
                print(f"{workload}, {shots}-shot, {each} lengths", flush=True)
                benchmark.rows.extend(compare(options, workload, shots, each, products, rates, benchmark.notes))
            medians = {precision: statistics.median(rate[precision] for rate in rates) for precision in DTYPES}
            benchmark.matrix_product.append({"lengths": each, "shots": shots, "rows": rows, **medians})
            benchmark.write(options.output)  # what there is, should it be interrupted
    return benchmark


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; the exit status."""
    options_parser = parser()
    options = options_parser.parse_args(arguments)
    if options.width % 64:
        options_parser.error(f"argument --width: {options.width} is not a multiple of 64")
    if options.vocabulary < 100:
        options_parser.error(f"argument --vocabulary: {options.vocabulary} is less than 100")
    torch.set_num_threads(options.threads)
    if options.memory_of:
        work = work_for(options, options.workloads[0])
        contestant: Any = load(options.memory_of)(work)
        rounds = warm_ups(options, options.shots[0], options.lengths)
        print(peak_memory(contestant, new_weights(work, options.seed), rounds))
        return 0
    benchmark = run(options)
    print(f"\n{benchmark.markdown()}\nwritten to {options.output}")
    return int(any(row.wrong for row in benchmark.rows))


if __name__ == "__main__":
    sys.exit(main())
