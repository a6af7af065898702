"""The pictures of one run."""

from collections.abc import Sequence
from typing import Any

from distmeta.evaluate.sentences import bounds
from distmeta.report.blocks import Picture
from distmeta.report.drawing import (
    BLACK,
    BLUE,
    LINES,
    ORANGE,
    chance_line,
    drawing,
    error_bars,
    noisy_line,
    percent_axis,
    smoothing,
)
from distmeta.report.read import Json, Run, kept_network
from distmeta.report.units import count, duration, percent

PHASES = {
    "data": (BLUE, ""),
    "inner": ("#ffffff", "///"),
    "outer": ("#9fb8d0", ""),
    "communication": ("#ffffff", "--"),
    "optimizer": (ORANGE, ""),
    "validation": ("#ffffff", "\\\\"),
    "checkpoint": ("#555555", ""),
    "other": ("#e6e6e6", ""),
}
"""Fill and hatch, told apart without colour."""


def accuracy_curves(run: Run) -> Picture | None:
    """Query accuracy after adaptation, and before where there is an inner loop; None where no step has had a task."""
    rows = [row for row in run.metrics if "training/query_accuracy" in row]
    before = [row for row in rows if "training/query_accuracy_before" in row]
    if not rows:
        return None
    steps = [row["outer_step"] for row in rows]
    with drawing("accuracy", "Query accuracy in training") as drawn:
        axes = drawn.axes
        noisy_line(axes, steps, [row["training/query_accuracy"] for row in rows], LINES[0], "after adaptation")
        if before:
            accuracies = [row["training/query_accuracy_before"] for row in before]
            noisy_line(axes, [row["outer_step"] for row in before], accuracies, LINES[1], "before adaptation")
        chance_line(axes, run.settings.get("tasks.n_way"))
        axes.set_xlabel("outer step")
        axes.set_ylim(0, 1)
        percent_axis(axes.yaxis)
        drawn.legend(3)
    last = rows[-min(len(rows), 50) :]
    mean = sum(row["training/query_accuracy"] for row in last) / len(last)
    return drawn.picture(
        f"Query accuracy by outer step; in the last {len(last)} steps {percent(mean)} after adaptation.",
        f"On the query sets of the training tasks. {smoothing(len(rows))}",
    )


def loss_curves(run: Run) -> Picture | None:
    """Query loss after adaptation and the language model's loss; None where there is neither."""
    curves: list[tuple[str, str, dict[str, Any]]] = [
        ("training/query_loss", "query loss, after adaptation", LINES[0]),
        ("training/lm_loss", "language-model loss", LINES[1]),
    ]
    present = {key: [row for row in run.metrics if key in row] for key, _, _ in curves}
    if not any(present.values()):
        return None
    with drawing("loss", "Loss in training") as drawn:
        for key, label, style in curves:
            if rows := present[key]:
                noisy_line(drawn.axes, [row["outer_step"] for row in rows], [row[key] for row in rows], style, label)
        drawn.axes.set_xlabel("outer step")
        drawn.axes.set_ylabel("nats")
        drawn.legend()
    return drawn.picture(
        "Query loss and language-model loss by outer step.", smoothing(max(len(rows) for rows in present.values()))
    )


def inner_loop_curve(run: Run) -> Picture | None:
    """Support loss by inner step, early in training against late; None where no step has had a task."""
    rows = [row for row in run.metrics if row.get("training/support_loss")]
    if not rows:
        return None
    rows = [row for row in rows if len(row["training/support_loss"]) == len(rows[-1]["training/support_loss"])]
    share = max(1, len(rows) // 10)
    parts = [("late in training", rows[-share:], LINES[0])]
    if len(rows) > 1:
        parts.insert(0, ("early in training", rows[:share], LINES[1]))
    with drawing("inner", "The inner loop") as drawn:
        for label, part, style in parts:
            means = _mean_by_position([row["training/support_loss"] for row in part])
            span = f"steps {part[0]['outer_step']:,} to {part[-1]['outer_step']:,}"
            drawn.axes.plot(range(len(means)), means, **style, linewidth=1.8, label=f"{label} ({span})")
        drawn.axes.set_xticks(range(len(rows[-1]["training/support_loss"])))
        drawn.axes.set_xlabel("inner steps taken")
        drawn.axes.set_ylabel("support loss (nats)")
        drawn.axes.set_ylim(bottom=0)
        drawn.legend(1)
    caption = "Does a task's support set get learned, and faster later on? Mean over "
    return drawn.picture(
        "Support loss by inner step, early and late in training.",
        caption + (f"the first and last {share:,} steps that had tasks." if len(parts) > 1 else "one step."),
    )


def validation_curves(run: Run) -> Picture | None:
    """Accuracy on the meta-valid classes with its interval, the kept step marked; None without a validation."""
    scored = list(dict.fromkeys(key for row in run.validation for key in row if _is_accuracy(key)))
    if not scored:
        return None
    scored.sort(key=lambda key: key != run.select_by)
    with drawing("validation", "Accuracy on meta-valid classes") as drawn:
        axes = drawn.axes
        for key, style in zip(scored, LINES, strict=False):
            rows = [row for row in run.validation if key in row]
            steps, values = [row["outer_step"] for row in rows], [row[key] for row in rows]
            label = f"{key} (selects)" if key == run.select_by else key
            axes.plot(steps, values, **style, linewidth=1.8, label=label, markevery=max(1, len(rows) // 15))
            if key == run.select_by:
                low, high = zip(*(bounds(row[key], row.get(f"{key}_ci95", 0.0)) for row in rows), strict=True)
                axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        kept = kept_network(run)
        if kept.step is not None:
            axes.axvline(
                kept.step, color=BLACK, linewidth=1.0, linestyle=(0, (1, 2)), label=f"kept: step {count(kept.step)}"
            )
        if not any("all-way" in key for key in scored):
            chance_line(axes, run.settings.get("tasks.n_way"))
        axes.set_xlabel("outer step")
        axes.set_ylim(0, 1)
        percent_axis(axes.yaxis)
        drawn.legend()
    has_interval = any(f"{run.select_by}_ci95" in row for row in run.validation)
    return drawn.picture(
        f"Accuracy on the meta-valid classes by outer step; kept is step {count(kept.step)}.",
        "On classes that training never sees, the same episodes each time."
        + (" Band: 95% interval over the episodes." if has_interval else ""),
    )


def phase_seconds(run: Run) -> dict[str, float]:
    """Seconds by phase, with what no phase accounts for as `other`; empty where they were not recorded."""
    if run.summary:
        phases = dict(run.summary.get("phase_seconds", {}))
    else:
        names = [name for name in PHASES if any(f"time/{name}" in row for row in run.metrics)]
        phases = {name: sum(row.get(f"time/{name}", 0.0) for row in run.metrics) for name in names}
    wall = run.total("wall_seconds")
    if phases and wall:
        phases["other"] = wall - sum(phases.values())
    return {name: phases[name] for name in PHASES if phases.get(name, 0.0) > 0}


def time_by_phase(run: Run) -> Picture | None:
    """One stacked bar of where the time went; None where it was not recorded."""
    phases = phase_seconds(run)
    if not phases:
        return None
    total = sum(phases.values())
    with drawing("phases", "Time by phase", height=2.4) as drawn:
        axes = drawn.axes
        left = 0.0
        for name, seconds in phases.items():
            fill, hatch = PHASES[name]
            label = f"{name} {percent(seconds / total)}"
            axes.barh(0, seconds, 0.6, left, color=fill, hatch=hatch, edgecolor=BLACK, linewidth=0.6, label=label)
            left += seconds
        axes.set_yticks([])
        axes.set_xlim(0, total)
        axes.set_xlabel("seconds, mean over the workers")
        axes.spines["left"].set_visible(False)
        drawn.legend(2)
    so_far = "" if run.summary else " Steps so far, without validations and checkpoints, which are in “other”."
    return drawn.picture(
        "Time by phase: " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases.items()),
        f"{duration(total)} in all.{so_far}",
    )


def methods_plot(evaluation: Json, name: str = "methods") -> Picture:
    """Accuracy of every method of the few-shot table with its 95% interval, grouped by use."""
    methods: Sequence[Json] = evaluation["methods"]
    networks = list(dict.fromkeys(method["network"] for method in methods))
    uses = list(dict.fromkeys(method["use"] for method in methods))
    # Half a row of room between two uses.
    places = [row + 0.5 * uses.index(method["use"]) for row, method in enumerate(methods)]
    classes = evaluation["on"]["name"] if "on" in evaluation else f"meta-{evaluation['split']} classes"
    with drawing(name, f"Accuracy on {classes}", height=1.2 + 0.27 * places[-1]) as drawn:
        axes = drawn.axes
        for place, method in zip(places, methods, strict=True):
            style = {**LINES[networks.index(method["network"]) % len(LINES)], "linestyle": "none"}
            if method["network"] == "starting":
                style["markerfacecolor"] = "white"
            bar = error_bars([method["accuracy"]], [method.get("accuracy_ci95", 0.0)])
            axes.errorbar(method["accuracy"], place, xerr=bar, capsize=3, markersize=6, **style)
        chance_line(axes, evaluation.get("n_way"), upright=True)
        axes.set_yticks(places, [method["name"] for method in methods])
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0)
        percent_axis(axes.xaxis)
        drawn.legend()
    label = "; ".join(
        f"{method['name']} {percent(method['accuracy'], method.get('accuracy_ci95'))}" for method in methods
    )
    return drawn.picture(f"Few-shot accuracy: {label}.", "Bars: 95% intervals over the episodes.")


def _is_accuracy(key: str) -> bool:
    # One with a slash is of a single data set, of which there may be many.
    return key not in ("outer_step", "not_finite") and not key.endswith("_ci95") and "/" not in key


def _mean_by_position(lists: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*lists, strict=True)]
