"""The page of several runs side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distmeta.report.blocks import Cell, Column, Page, Picture, Section, Table
from distmeta.report.drawing import LINES, drawing, noisy_line, percent_axis
from distmeta.report.evaluation import episodes_text, ways
from distmeta.report.read import Json, Run, kept_network
from distmeta.report.run_page import cost, state
from distmeta.report.units import NONE, count, duration, memory, money, percent, points, score, setting

Series = tuple[list[float], list[float]]
"""Outer steps and values."""


@dataclass(frozen=True)
class Curves:
    """What the runs are drawn beside each other in."""

    name: str
    title: str
    caption: str
    of: Callable[[Run], Series]
    """The run's own; empty where it has none."""
    noisy: bool = True
    fractions: bool = True


CURVES = (
    Curves(
        "query",
        "Query accuracy after adaptation",
        "In training. Running means over a twentieth of each run.",
        lambda run: _series(run.metrics, "training/query_accuracy"),
    ),
    Curves(
        "validation",
        "Accuracy on meta-valid classes",
        "By the accuracy that selects in each run.",
        lambda run: _series(run.validation, run.select_by),
        noisy=False,
    ),
    Curves(
        "language",
        "Language-model loss (nats)",
        "In training. Running means over a twentieth of each run.",
        lambda run: _series(run.metrics, "training/lm_loss"),
        fractions=False,
    ),
)


def compare_page(runs: Sequence[Run]) -> Page:
    """The page of several runs; what a run does not have is left out and said."""
    missing = [f"{run.name}: {line}" for run in runs for line in run.unreadable]
    drawn = [picture for curves in CURVES if (picture := _picture(curves, runs, missing))]
    missing += [f"{run.name}: has no evaluation yet" for run in runs if not run.evaluation]
    answer, findings = _answer(runs)
    return Page(
        kind="Runs",
        title=", ".join(run.name for run in runs) if len(runs) <= 4 else f"{len(runs)} runs",
        subtitle=f"{len(runs)} runs side by side",
        question="Which run is best on held-out classes?",
        answer=answer,
        findings=findings,
        facts=[],
        sections=[
            Section("Results", tables=[_results(runs)]),
            Section("Curves", pictures=drawn),
            *_differences(runs),
        ],
        missing=missing,
    )


def _series(rows: Sequence[Json], key: str) -> Series:
    there = [row for row in rows if key in row]
    return [row["outer_step"] for row in there], [row[key] for row in there]


def _picture(curves: Curves, runs: Sequence[Run], missing: list[str]) -> Picture | None:
    series = [(run.name, *curves.of(run)) for run in runs]
    names = [name for name, steps, _ in series if steps]
    absent = [name for name, steps, _ in series if not steps]
    if absent:
        missing.append(f"{curves.title}: {', '.join(absent)} {'has' if len(absent) == 1 else 'have'} none (yet)")
    if not names:
        return None
    with drawing(curves.name, curves.title, height=3.4 + 0.12 * len(names)) as drawn:
        for number, (name, steps, values) in enumerate(series):
            style = LINES[number % len(LINES)]  # a run has the same line in every picture
            if not steps:
                continue
            if curves.noisy:
                noisy_line(drawn.axes, steps, values, style, name, faint=len(names) <= 3)
            else:
                drawn.axes.plot(steps, values, **style, linewidth=1.6, markevery=max(1, len(steps) // 12), label=name)
        drawn.axes.set_xlabel("outer step")
        if curves.fractions:
            percent_axis(drawn.axes.yaxis)
        drawn.legend()
    return drawn.picture(f"{curves.title} of {', '.join(names)} by outer step.", curves.caption)


def _answer(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The run with the highest accuracy where they have the same episodes, and what else stands in the tables."""
    scored = [(run, method) for run in runs if (method := _chosen_method(run))]
    if not scored:
        return "Not known yet: none has an evaluation.", []
    episodes = [f"{run.name}: {episodes_text(run.evaluation or {})}." for run, _ in scored]
    if any(_classes(run) != _classes(scored[0][0]) for run, _ in scored):
        return "They can't be ranked: they were scored on other classes or in other ways.", episodes
    best, method = max(scored, key=lambda pair: pair[1]["accuracy"])
    answer = f"{best.name}, with {score(method, 'accuracy')} ({method['use']})."
    if (best.evaluation or {}).get("split") == "train":
        answer = f"Not known. On the classes that they were trained on: {answer}"
    return answer, [*episodes, "Runs are not paired here: a difference within the intervals may be chance."]


def _classes(run: Run) -> list[Any]:
    """What has to be the same for two accuracies to be of the same thing."""
    shape = [(run.evaluation or {}).get(key) for key in ("split", "n_way", "k_shot", "query_per_class")]
    return shape + [run.settings.get(key) for key in ("corpus.sources", "tasks.label_column", "tasks.split_files")]


def _chosen_method(run: Run) -> Json | None:
    """The row of the few-shot table for the network that is kept, in the use that it was chosen by."""
    name = f"meta-pretrained {run.select_by.removesuffix('-all-way')}"
    methods = (run.evaluation or {}).get("methods", [])
    return next((method for method in methods if method["name"] == name), None)


def _results(runs: Sequence[Run]) -> Table:
    columns = ["kept step", "meta-valid accuracy", "evaluation accuracy", "paired gain (points)"]
    columns += ["to the strongest rival (points)", "time", "worker time"]
    rows = []
    for run in runs:
        summary, method, kept, spent = run.summary or {}, _chosen_method(run) or {}, kept_network(run), cost(run)
        rows.append(
            [
                Cell(run.name, run.name),
                Cell(state(run), state(run)),
                Cell(ways(run.evaluation) if run.evaluation else NONE),
                _cell(count, kept.step),
                Cell(percent(kept.accuracy, kept.half_width), kept.accuracy),
                Cell(score(method, "accuracy"), method.get("accuracy")),
                Cell(points(method.get("paired_gain"), method.get("paired_gain_ci95")), method.get("paired_gain")),
                _strongest_rival(run),
                _cell(duration, run.total("wall_seconds")),
                _cell(duration, run.total("worker_seconds")),
                Cell(money(spent, summary.get("currency", "")), spent),
                _cell(memory, summary.get("peak_memory_bytes")),
            ]
        )
    texts = [Column(title, is_text=True) for title in ("run", "state", "evaluated on")]
    numbers = [Column(title) for title in (*columns, "cost", "peak memory")]
    caption = (
        "95% intervals. Evaluation accuracy and its paired gain over the starting network: of the kept network, in the "
        "use that chose it, on the classes and in the ways of its own evaluation. To the strongest rival: of its best "
        "use, as the run's own page has it."
    )
    return Table([*texts, *numbers], rows, caption, sortable=True)


def _strongest_rival(run: Run) -> Cell:
    found = (run.evaluation or {}).get("verdict")
    if not found:
        return Cell(NONE)
    return Cell(f"{points(found['gain'], found.get('gain_ci95'))} ({found['against']})", found["gain"])


def _differences(runs: Sequence[Run]) -> list[Section]:
    """The settings that are not the same in all runs."""
    flat = [run.settings.flat() for run in runs]
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if not key.startswith("sweep.")]
    differing = [key for key in keys if any(values.get(key) != flat[0].get(key) for values in flat)]
    if not differing:
        return [Section("Settings", paragraphs=["The same in all of them."])]
    rows = [[Cell(key, key), *(Cell(setting(values.get(key))) for values in flat)] for key in differing]
    columns = [Column("key", is_text=True), *(Column(run.name, is_text=True) for run in runs)]
    return [Section("Settings that differ", tables=[Table(columns, rows)])]


def _cell(write: Callable[[Any], str], value: Any) -> Cell:
    return Cell(NONE) if value is None else Cell(write(value), value)
