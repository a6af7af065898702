"""The pictures of a sweep."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from distmeta.report.blocks import Picture
from distmeta.report.drawing import (
    BLACK,
    BLUE,
    GREY,
    LINES,
    ORANGE,
    Drawing,
    drawing,
    error_bars,
    log_axis,
    percent_axis,
)
from distmeta.report.read import Json, Sweep, Trial
from distmeta.report.units import percent

RATES = ("meta.inner_lr", "meta.outer_lr")
MARKERS = {"finished": "o", "stopped": "s", "running": "^", "interrupted": "v", "diverged": "x", "failed": "+"}
SHADES = matplotlib.colormaps["cividis"].resampled(24)
"""Lighter is more, also in print. So few that the scale is drawn as shapes and not as an image."""
MOST_LABELS = 30
"""Trials up to which each point has its accuracy written beside it."""


def plane(sweep: Sweep) -> Picture | None:
    """Accuracy over the inner and outer learning rate, or over the one or two numeric keys that are swept; None where
    no numeric key takes two values, or no trial has an accuracy."""
    keys = _plane_keys(sweep)
    if not keys or not any(trial.accuracy is not None for trial in sweep.trials):
        return None
    others = [key for key in sweep.swept if key not in keys]
    with_others = f" Other keys vary, too: {', '.join(others)}." if others else ""
    if len(keys) == 1:
        return _over_one(sweep, keys[0], "plane", with_others)
    return _over_two(sweep, keys[0], keys[1], with_others)


def over_other_keys(sweep: Sweep) -> list[Picture]:
    """Accuracy over each numeric key that is swept and not on the plane, as the weights of sources beside the rates."""
    shown = _plane_keys(sweep)
    others = [key for key in _numeric_keys(sweep) if key not in shown]
    scored = [trial for trial in sweep.trials if trial.accuracy is not None]
    return [
        _over_one(sweep, key, f"over-{number}", " All other keys vary, too.")
        for number, key in enumerate(others)
        if any(key in trial.config for trial in scored)
    ]


def _over_two(sweep: Sweep, x: str, y: str, with_others: str) -> Picture:
    placed = [trial for trial in sweep.trials if _is_number(trial.config.get(x)) and _is_number(trial.config.get(y))]
    scored = [trial for trial in placed if trial.accuracy is not None]
    low, high = min(trial.accuracy or 0 for trial in scored), max(trial.accuracy or 0 for trial in scored)
    with drawing("plane", "Accuracy over the plane that is swept", height=3.7) as drawn:
        axes = drawn.axes
        for status, marker in MARKERS.items():
            trials = [trial for trial in placed if trial.status == status]
            if not trials:
                continue
            colored = [trial for trial in trials if trial.accuracy is not None]
            without = [trial for trial in trials if trial.accuracy is None]
            if colored:
                points = axes.scatter(
                    [trial.config[x] for trial in colored],
                    [trial.config[y] for trial in colored],
                    c=[trial.accuracy or 0.0 for trial in colored],
                    cmap=SHADES,
                    vmin=low,
                    vmax=high,
                    marker=marker,
                    s=60,
                    edgecolors=BLACK,
                    linewidths=0.6,
                )
            if without:
                filled: dict[str, Any] = {} if marker in "x+" else {"facecolors": "none"}
                axes.scatter(
                    [trial.config[x] for trial in without],
                    [trial.config[y] for trial in without],
                    marker=marker,
                    s=60,
                    color=BLACK,
                    **filled,
                )
            legend: dict[str, Any] = {"color": BLACK} if marker in "x+" else {"facecolors": "none", "edgecolors": BLACK}
            axes.scatter([], [], marker=marker, s=45, label=status, **legend)
        _mark(drawn, sweep, [(trial, trial.config[x], trial.config[y]) for trial in placed])
        if len(scored) <= MOST_LABELS:
            for trial in scored:
                place = (trial.config[x], trial.config[y])
                axes.annotate(
                    f"{100 * (trial.accuracy or 0):.0f}", place, (6, 5), textcoords="offset points", fontsize=8
                )
        for which, key in (("x", x), ("y", y)):
            if _is_logarithmic(sweep, key):
                log_axis(axes, which)
        axes.margins(0.12)
        axes.set_xlabel(_axis_name(x))
        axes.set_ylabel(_axis_name(y))
        bar = drawn.figure.colorbar(points, ax=axes, pad=0.02)
        percent_axis(bar.ax.yaxis)
        drawn.legend(4)
    return drawn.picture(
        f"Meta-valid accuracy over {x} and {y}, from {percent(low)} to {percent(high)}.",
        f"Lighter is better; the numbers are the accuracy on the meta-valid classes in %.{with_others}",
    )


def _over_one(sweep: Sweep, key: str, name: str, with_others: str) -> Picture:
    placed = [trial for trial in sweep.trials if _is_number(trial.config.get(key)) and trial.accuracy is not None]
    with drawing(name, f"Accuracy over {_axis_name(key)}") as drawn:
        _dots(drawn.axes, [(trial, trial.config[key]) for trial in placed])
        _mark(drawn, sweep, [(trial, trial.config[key], trial.accuracy or 0.0) for trial in placed])
        if _is_logarithmic(sweep, key):
            log_axis(drawn.axes, "x")
        drawn.axes.set_xlabel(_axis_name(key))
        percent_axis(drawn.axes.yaxis)
        drawn.legend(3)
    return drawn.picture(
        f"Meta-valid accuracy over {key}.", f"Accuracy on the meta-valid classes, with 95% intervals.{with_others}"
    )


def accuracy_against_cost(sweep: Sweep, currency: str) -> Picture | None:
    """Accuracy against what each trial took, in money where it has a price; None where no trial has both.

    The Pareto front joins the trials that no other beats in accuracy at the same price or less.
    """
    with_price = any(trial.cost is not None for trial in sweep.trials)
    key, unit = ("cost", f"cost ({currency})") if with_price else ("worker_seconds", "worker-seconds")
    placed = [
        (trial, float(getattr(trial, key)))
        for trial in sweep.trials
        if trial.has_result and getattr(trial, key) is not None
    ]
    if not placed:
        return None
    front = pareto_front([(spent, trial.accuracy or 0.0) for trial, spent in placed])
    with drawing("cost", "Accuracy against cost", height=3.7) as drawn:
        axes = drawn.axes
        _dots(axes, placed)
        line = [*front, (max(spent for _, spent in placed), front[-1][1])]
        steps: dict[str, Any] = {"where": "post", "color": BLACK, "linestyle": "--", "linewidth": 1.3}
        axes.step([x for x, _ in line], [y for _, y in line], **steps, label="Pareto front")
        _mark(drawn, sweep, [(trial, spent, trial.accuracy or 0.0) for trial, spent in placed])
        axes.set_xlabel(unit)
        axes.set_xlim(left=0)
        percent_axis(axes.yaxis)
        drawn.legend(3)
    return drawn.picture(
        f"Meta-valid accuracy against {unit}; {len(front)} of {len(placed)} trials are on the Pareto front.",
        "Front: no other trial is at least as accurate for less. 95% intervals over the validation episodes."
        + ("" if with_price else " No price is set (tracking.price_per_worker_hour), so cost is time."),
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy), those that no other equals in accuracy for less or beats for the same, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def trial_curves(sweep: Sweep) -> Picture | None:
    """The meta-valid accuracy of every trial by outer step; None where no trial has validated."""
    key = sweep.select_by
    curves = [(trial, [row for row in trial.validation if key in row]) for trial in sweep.trials]
    curves = [(trial, rows) for trial, rows in curves if rows]
    if not curves:
        return None
    best, default = sweep.best, sweep.default
    with drawing("trials", f"Every trial's meta-valid accuracy ({key})", height=3.7) as drawn:
        axes = drawn.axes
        seen = set()
        for trial, rows in curves:
            steps, values = [row["outer_step"] for row in rows], [row[key] for row in rows]
            if trial is best:
                name = "best, default" if trial is default else f"best: {trial.trial_id}"
                axes.plot(steps, values, color=BLUE, linewidth=2.4, zorder=4, label=name)
            elif trial is default:
                axes.plot(steps, values, color=ORANGE, linewidth=2.0, linestyle="--", zorder=3, label="default")
            else:
                axes.plot(steps, values, color=GREY, linewidth=0.9, alpha=0.8)
            status = None if trial.status in seen else trial.status
            seen.add(trial.status)
            style: dict[str, Any] = {"marker": MARKERS.get(trial.status, "o"), "linestyle": "none", "color": BLACK}
            axes.plot(steps[-1:], values[-1:], **style, markersize=5, zorder=5, label=status)
        axes.set_xlabel("outer step")
        percent_axis(axes.yaxis)
        drawn.legend(3)
    return drawn.picture(
        f"Meta-valid accuracy of {len(curves)} trials by outer step.",
        "Each line ends where its trial does, with the mark of how it stands.",
    )


def luck(selection: Sequence[Json], scored_on: str) -> Picture:
    """For each trial that was scored again: accuracy on the classes that chose it beside that on those of the
    evaluation, which are described by `scored_on`."""
    with drawing("luck", "Selection beside evaluation", height=1.4 + 0.36 * len(selection)) as drawn:
        axes = drawn.axes
        splits: list[tuple[str, float, str, Json]] = [
            ("valid", -0.11, "meta-valid (chosen by)", {"marker": "o", "color": ORANGE, "markerfacecolor": "white"}),
            ("test", 0.11, scored_on, {"marker": "s", "color": BLUE}),
        ]
        for split, shift, label, style in splits:
            rows = [(place, row) for place, row in enumerate(selection) if f"{split}_accuracy" in row]
            axes.errorbar(
                (means := [row[f"{split}_accuracy"] for _, row in rows]),
                [place + shift for place, _ in rows],
                xerr=error_bars(means, [row.get(f"{split}_accuracy_ci95", 0.0) for _, row in rows]),
                linestyle="none",
                capsize=3,
                label=label,
                **style,
            )
        axes.set_yticks(range(len(selection)), [f"trial {row['trial_id']}" for row in selection])
        axes.set_ylim(len(selection) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        percent_axis(axes.xaxis)
        drawn.legend()
    return drawn.picture(
        f"Accuracy of the best trials on meta-valid (chosen by) and on {scored_on} classes.",
        "95% intervals. Best on meta-valid first: a winner that falls back on fresh classes was lucky.",
    )


def _dots(axes: Axes, placed: Sequence[tuple[Trial, float]]) -> None:
    """Accuracy with its interval at each place, with the marker of the trial's status."""
    for status, marker in MARKERS.items():
        trials = [(trial, place) for trial, place in placed if trial.status == status]
        if trials:
            axes.errorbar(
                [place for _, place in trials],
                (means := [trial.accuracy or 0.0 for trial, _ in trials]),
                yerr=error_bars(means, [trial.accuracy_ci95 or 0.0 for trial, _ in trials]),
                linestyle="none",
                marker=marker,
                markersize=6,
                color=LINES[list(MARKERS).index(status) % 2]["color"],
                elinewidth=0.8,
                label=status,
            )


def _mark(drawn: Drawing, sweep: Sweep, placed: Sequence[tuple[Trial, float, float]]) -> None:
    """Rings around the best trial and the default one."""
    for marked, shape, size, label in ((sweep.best, "o", 230, "best"), (sweep.default, "D", 190, "default")):
        for trial, x, y in placed:
            if trial is marked:
                ring: dict[str, Any] = {"facecolors": "none", "edgecolors": BLACK, "linewidths": 1.4}
                drawn.axes.scatter([x], [y], s=size, marker=shape, label=label, zorder=6, **ring)


def _plane_keys(sweep: Sweep) -> list[str]:
    """The two keys, or the only one, of the plane: both learning rates, or those that are swept first."""
    keys = _numeric_keys(sweep)
    return list(RATES) if set(RATES) <= set(keys) else keys[:2]


def _numeric_keys(sweep: Sweep) -> list[str]:
    """The swept keys that take at least two numeric values and nothing else."""
    values = {key: [trial.config[key] for trial in sweep.trials if key in trial.config] for key in sweep.swept}
    return [key for key, taken in values.items() if all(map(_is_number, taken)) and len(set(taken)) > 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_logarithmic(sweep: Sweep, key: str) -> bool:
    """Whether a key is drawn in proportion: a learning rate, a log-uniform draw, or values far apart."""
    values = [trial.config[key] for trial in sweep.trials if _is_number(trial.config.get(key))]
    if min(values) <= 0 or min(values) == max(values):
        return False
    space = sweep.settings.get("sweep.space") or {}
    drawn = (space.get(key) or {}).get("type")
    return key in RATES or drawn == "loguniform" or (drawn != "uniform" and max(values) >= 20 * min(values))


def _axis_name(key: str) -> str:
    if key.startswith("corpus.sources."):
        return f"weight of {key.removeprefix('corpus.sources.').removesuffix('.weight')}"
    return {"meta.inner_lr": "inner learning rate", "meta.outer_lr": "outer learning rate"}.get(key, key)
