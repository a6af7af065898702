"""What is said of an evaluation, from its report alone; imports next to nothing, so that pages are made at once."""

from collections.abc import Mapping
from typing import Any

from distmeta.tasks.config import as_words

NAMES = {
    "starting": "the starting network",
    "language-model": "plain language modelling",
    "multitask": "multi-task training",
    "tf-idf": "TF-IDF",
}
"""Networks as they are called in a sentence."""


def named(network: str, use: str) -> str:
    """A method as it is called in a sentence."""
    if use == "fine-tuning":
        return f"fine-tuning {NAMES.get(network, network)}"
    return NAMES[network] if network == "tf-idf" else f"{NAMES.get(network, network)} by {use}"


def bounds(mean: float, half_width: float) -> tuple[float, float]:
    """The ends of an accuracy's interval, none beyond 0 or 1.

    What lies beyond is cut off, which changes nothing of how often the interval holds the true mean: that is never
    there. (A Wilson interval would need to know how far the queries of an episode are alike.)
    """
    return max(0.0, mean - half_width), min(1.0, mean + half_width)


def interval_text(mean: float, half_width: float | None) -> str:
    """An accuracy in per cent with its interval: `64.6 ± 2.3`, or `99.5 (98.5 to 100.0)` where it ends at 0 or 100."""
    if half_width is None:
        return f"{100 * mean:.1f}"
    low, high = bounds(mean, half_width)
    if mean - half_width < low or mean + half_width > high:
        return f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * mean:.1f} ± {100 * half_width:.1f}"


def episodes_text(report: Mapping[str, Any]) -> str:
    """The episodes that an evaluation is made of: `200 episodes of meta-test classes, 5-way 1-shot, 5 queries a class`,
    or `the 10 given draws of airline, 3-way 4-shot, 400 queries each`."""
    ways = f"{as_words(report['n_way'])}-way {as_words(report['k_shot'])}-shot"
    ways += " and the class's name" if report.get("class_names") else ""
    if given := report.get("given"):
        queries = as_words(given["queries"])
        return f"the {report['episodes']} given draws of {report['on']['name']}, {ways}, {queries} queries each"
    classes = f"classes of {report['on']['name']}" if "on" in report else f"meta-{report['split']} classes"
    return f"{report['episodes']} episodes of {classes}, {ways}, {report['query_per_class']} queries a class"


def findings(report: Mapping[str, Any]) -> list[str]:
    """What there is to say beside the verdict: of each use, against the strongest rival, and against those networks of
    `verdicts` that are neither this rival nor the starting network, to which the gains of the table are."""
    found = report["verdict"]
    strongest = {each["against"].rpartition(" ")[0] for each in found["uses"]} | {"starting"}
    others = [each["text"] for each in report["verdicts"] if each["against"].rpartition(" ")[0] not in strongest]
    return [f"{line}." for line in [*(each["text"] for each in found["uses"]), *others]]


def same_networks(report: Mapping[str, Any]) -> list[str]:
    """A sentence about each network that is another one, and was not scored again."""
    return [
        f"{name} is the same network as {other}, to the last weight, and was scored once, as {other}."
        for name, other in report.get("same", {}).items()
    ]


def describe_used(report: Mapping[str, Any]) -> list[str]:
    """A sentence about what the results come from, beside the support set; none where that is not known."""
    used = report.get("used")
    if not used:
        return []
    total = used.get("evaluation_texts", 0)
    read, seen = (
        f"{used[key]:,} of {total:,}" if used.get(key) else "no" if key in used else "an unknown number of"
        for key in ("unlabelled_test_texts", "texts_seen_in_training")
    )
    names = "class names" if used["class_names"] else "no class names"
    queries = "each query by itself" + (" but in queries-together" if used["queries_together"] else "")
    return [
        f"Used: {used['encoder']}; {names}; {queries}; {read} test texts as unlabelled text; {seen} test texts in "
        "training tasks."
    ]


def describe_similarity(report: Mapping[str, Any]) -> list[str]:
    """A sentence about what was paid: how each network tells alike texts, and the difference to the starting one."""
    found = report.get("similarity")
    if not found:
        return []
    means = {name: each["mean"] for name, each in found["networks"].items() if "mean" in each}
    start = means.get("starting")

    def told(name: str, mean: float) -> str:
        paid = "" if start is None or name == "starting" else f" ({100 * (mean - start):+.1f})"
        return f"{name} {100 * mean:.1f}{paid}"

    pairs, groups = sum(found["pairs"].values()), len(found["pairs"])
    over = f", mean of {groups} groups" if groups > 1 else ""
    each = ", ".join(told(name, mean) for name, mean in means.items()) or "not defined for any network"
    return [
        f"What was paid: similarity of {pairs:,} pairs of texts without training (100 x Pearson of the cosine of mean "
        f"features{over}): {each}."
    ]
