"""The outcome of an evaluation: as evaluation.json, as a table, and as the verdicts that its intervals support."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from distmeta.evaluate.kept import other_corpus
from distmeta.evaluate.results import TOGETHER, USES, MethodResult
from distmeta.evaluate.sentences import (
    bounds,
    describe_similarity,
    describe_used,
    episodes_text,
    findings,
    interval_text,
    same_networks,
)
from distmeta.evaluate.statistics import mean_ci95, paired_gain
from distmeta.evaluate.verdict import verdict
from distmeta.tasks.config import Split

WIDTH = 100


def evaluation_report(
    results: Sequence[MethodResult],
    *,
    split: Split,
    n_way: int | list[int] | str,
    k_shot: int | list[int],
    query_per_class: int | None,
    judged: str = "meta-pretrained",
    against: Sequence[str] = ("starting", "language-model"),
    rivals: Sequence[str] | None = None,
    same: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of evaluation.json: the episodes' shape, `methods` (a list, by use), `verdict`: how the network
    `judged` compares with the strongest of the `rivals` (networks; unset: all others), whatever its use (see
    `distmeta.evaluate.verdict`); and `verdicts`: how it compares with each of those `against` which it is held, in
    each use.

    Scores and gains are fractions, not per cent. A gain is the mean paired difference to the starting network in the
    same use, and `paired_with` names that method; TF-IDF is paired with the starting network's logistic regression,
    which differs from it in the features alone. `accuracies` are those of the episodes, in order; of a method that has
    the first ones alone, `episodes` says how many. `accuracy_range` are the ends of the interval, none of them below 0
    or above 1. `same` names, of networks that are equal to another one to the last weight, that other one: they have
    its scores. What can't be computed (the interval of a single episode) is absent.
    """
    same = dict(same or {})
    in_order = sorted(results, key=lambda result: USES.index(result.use))
    by_name = {result.name: result for result in in_order}
    alone = [result for result in in_order if result.use != TOGETHER]
    return {
        "split": split,
        "n_way": n_way,
        "k_shot": k_shot,
        "query_per_class": query_per_class,
        "episodes": max(len(result.accuracy) for result in in_order),
        "methods": [_method(result, by_name) for result in in_order],
        "verdict": verdict(alone, judged, rivals, same.get(judged)),
        "verdicts": _verdicts(alone, by_name, judged, against),
        "same": same,
    }


def evaluation_table(report: Mapping[str, Any], question: str = "Did meta-pretraining help?") -> str:
    """The report as plain text of at most 100 columns: the table, what its columns mean, and the verdict, which answers
    the question."""
    header = ("method", "accuracy", "before", "gain", "prec.", "recall", "F1", "adapt s")
    same = report.get("same", {})
    rows = [header, *(_cells(method) for method in report["methods"] if method["network"] not in same)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        f"{episodes_text(report)}, the same for every method",
        *other_corpus(report),
        "",
    ]
    for position, row in enumerate(rows):
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
        if position == 0:
            lines.append("  ".join("-" * width for width in widths))
    lines += [
        "",
        "In %, with 95% intervals over the episodes. Before: accuracy before the inner loop. Gain: paired",
        "difference to the starting network in the same use (tf-idf: to its logistic regression).",
    ]
    lines += _by_dataset(report)
    lines += _wrapped([*same_networks(report), *describe_used(report), *describe_similarity(report)])
    if found := report.get("verdict"):
        lines += ["", question, *_wrapped([found["text"], *findings(report), *found["notes"]], "  ")]
    return "\n".join(lines)


def _by_dataset(report: Mapping[str, Any]) -> list[str]:
    """Where there are several data sets: the accuracy of each method on each of them."""
    lines = []
    for name, found in report.get("by_dataset", {}).items():
        lines += ["", f"{name or 'without a name'}, {found['episodes']} of the episodes:"]
        width = max(len(method["name"]) for method in found["methods"])
        for method in found["methods"]:
            text = interval_text(method["accuracy"], method.get("accuracy_ci95"))
            lines.append(f"  {method['name'].ljust(width)}  {text}")
    return lines


def _wrapped(lines: Sequence[str], indent: str = "") -> list[str]:
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")
    ]


def _method(result: MethodResult, by_name: Mapping[str, MethodResult]) -> dict[str, Any]:
    method: dict[str, Any] = {"name": result.name, "network": result.network, "use": result.use}
    mean, half_width = mean_ci95(result.accuracy)
    method |= _with_interval("accuracy", (mean, half_width))
    if math.isfinite(half_width):
        method["accuracy_range"] = list(bounds(mean, half_width))
    if result.accuracy_before is not None:
        method["accuracy_before"] = mean_ci95(result.accuracy_before)[0]
    partner = f"starting {result.use}"
    if result.network != "starting" and partner in by_name:
        method |= _with_interval("paired_gain", paired_gain(result.accuracy, by_name[partner].accuracy))
        method["paired_with"] = partner
    for key in ("precision", "recall", "f1", "adapt_seconds"):
        method[key] = mean_ci95(getattr(result, key))[0]
    if len(result.accuracy) < max(len(each.accuracy) for each in by_name.values()):
        method["episodes"] = len(result.accuracy)
    return method | {"accuracies": list(result.accuracy)}


def _verdicts(
    results: Sequence[MethodResult], by_name: Mapping[str, MethodResult], judged: str, against: Sequence[str]
) -> list[dict[str, Any]]:
    verdicts = []
    for result in results:
        if result.network != judged:
            continue
        for network in against:
            other = by_name.get(f"{network} {result.use}")
            if other is None:
                continue
            gain, half_width = paired_gain(result.accuracy, other.accuracy)
            text = f"{result.use}: {_comparison(gain, half_width, network, len(other.accuracy))}"
            interval = _with_interval("gain", (gain, half_width))
            verdicts.append({"method": result.name, "against": other.name, **interval, "text": text})
    return verdicts


def _comparison(gain: float, half_width: float, other: str, episodes: int) -> str:
    if gain > half_width:
        return f"better than {other} by {_percent(gain)} ± {_percent(half_width)} points"
    if gain < -half_width:
        return f"worse than {other} by {_percent(-gain)} ± {_percent(half_width)} points"
    if math.isinf(half_width):
        return f"no difference to {other} that one episode can show ({_percent(gain, '+')})"
    interval = f"{_percent(gain, '+')} ± {_percent(half_width)}"
    return f"no difference to {other} that {episodes} episodes can show ({interval})"


def _cells(method: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        method["name"] + (f" (first {method['episodes']})" if "episodes" in method else ""),
        interval_text(method["accuracy"], method.get("accuracy_ci95")),
        _percent(method["accuracy_before"]) if "accuracy_before" in method else "",
        _mean_and_interval(method, "paired_gain", "+") if "paired_gain" in method else "",
        _percent(method["precision"]),
        _percent(method["recall"]),
        _percent(method["f1"]),
        f"{method['adapt_seconds']:.3f}",
    )


def _with_interval(key: str, mean_and_half_width: tuple[float, float]) -> dict[str, float]:
    mean, half_width = mean_and_half_width
    return {key: mean} if math.isinf(half_width) else {key: mean, f"{key}_ci95": half_width}


def _mean_and_interval(method: Mapping[str, Any], key: str, sign: str = "") -> str:
    mean = _percent(method[key], sign)
    return f"{mean} ± {_percent(method[f'{key}_ci95'])}" if f"{key}_ci95" in method else mean


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}"
