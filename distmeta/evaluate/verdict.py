"""What a table says of the network that it judges: held against the strongest of all others, and what it rests on.

Each use of the judged network is compared with every use of every rival by paired differences on the episodes that both
have. The verdict is about the use with the highest accuracy. To take the best of several uses on the very episodes that
it is judged by is a choice, which luck helps; so the intervals of all uses hold together (Bonferroni: each of m uses at
100 - 5/m %), whichever of them is the best one. The rivals are given the same choice without any such price: "better"
is said only where each one of them is worse, so a rival's luck makes "yes" rarer, never more likely.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distmeta.evaluate.results import MethodResult
from distmeta.evaluate.sentences import NAMES, interval_text, named
from distmeta.evaluate.statistics import mean_ci95, mean_interval


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A use of the judged network against a rival, on the episodes that both have."""

    method: MethodResult
    rival: MethodResult
    gain: float
    half_width: float

    @property
    def is_better(self) -> bool:
        return self.gain > self.half_width

    @property
    def is_worse(self) -> bool:
        return self.gain < -self.half_width


def verdict(
    results: Sequence[MethodResult], judged: str, rivals: Sequence[str] | None = None, same_as: str | None = None
) -> dict[str, Any] | None:
    """The content of `verdict` in evaluation.json; None where there is nothing to compare with.

    `answer` is yes, no or open; `text` says it in a sentence, with `method`, the `against` that decides it, and `gain`
    with `gain_ci95` between these; `uses` has the same for every use of the judged network; `notes` are sentences
    that belong to it. Gains are fractions. An interval that one episode cannot give is absent.

    Args:
        results: all methods.
        judged: the network that it is about.
        rivals: the networks that it is held against; unset: all others.
        same_as: the network that the judged one is the same as, to the last weight, if it is.
    """
    own = [result for result in results if result.network == judged]
    others = [result for result in results if (result.network in rivals if rivals else result.network != judged)]
    others = [
        result
        for result in others
        if result.network != judged and (result.network != same_as or result.use == "fine-tuning")
    ]
    if not own or not others:
        return None
    level = 1 - 0.05 / len(own)
    uses = [_decisive([_compare(method, rival, level) for rival in others]) for method in own]
    best = max(uses, key=lambda each: sum(each.method.accuracy) / len(each.method.accuracy))
    answer = "no" if same_as or best.is_worse else "yes" if best.is_better else "open"
    if same_as:
        text = f"No: what is kept is {NAMES.get(same_as, same_as)} itself, to the last weight. {_sentence(best)}"
    else:
        text = {"yes": "Yes: ", "no": "No: ", "open": "Not that these episodes can show: "}[answer] + _sentence(best)
    return {
        "answer": answer,
        "text": f"{text}.",
        **_written(best),
        "uses": [_written(each) | {"text": _line(each)} for each in uses],
        "notes": [],
    }


def _compare(method: MethodResult, rival: MethodResult, level: float) -> _Comparison:
    both = zip(method.accuracy, rival.accuracy, strict=False)  # some have the first episodes alone
    return _Comparison(method, rival, *mean_interval([own - other for own, other in both], level))


def _decisive(comparisons: Sequence[_Comparison]) -> _Comparison:
    """The one that decides, with the strongest rival of its kind: of those that are surely better; where there are
    none, of those that are not surely worse, whose number of episodes may be small; and where all are surely worse, of
    these."""
    better = [each for each in comparisons if each.is_worse]
    not_shown = [each for each in comparisons if not each.is_better]
    return min(better or not_shown or comparisons, key=lambda each: each.gain)


def _sentence(found: _Comparison) -> str:
    difference, episodes = _points(found), len(found.rival.accuracy)
    own, other = _accuracy(found.method.accuracy), _accuracy(found.rival.accuracy)
    where = f" on the first {episodes} episodes" if episodes < len(found.method.accuracy) else ""
    if found.is_better:
        return (
            f"{own} by {found.method.use}, better than the strongest rival, {_named(found.rival)} ({other}), by "
            f"{difference} points{where}"
        )
    if found.is_worse:
        return (
            f"{_named(found.rival)} ({other}) is better by {difference} points{where} than {found.method.use} ({own})"
        )
    return (
        f"{own} by {found.method.use}, and {_named(found.rival)} has {other}; the difference{where} is {difference} "
        "points"
    )


def _line(found: _Comparison) -> str:
    how = "better than" if found.is_better else "worse than" if found.is_worse else "not to be told from"
    by = f"by {_points(found)} points" if found.is_better or found.is_worse else f"({_points(found)} points)"
    return f"{found.method.use}: {how} {_named(found.rival)} {by}"


def _points(found: _Comparison) -> str:
    shown = abs(found.gain) if found.is_better or found.is_worse else found.gain
    sign = "" if found.is_better or found.is_worse else "+"
    return f"{100 * shown:{sign}.1f}" + ("" if math.isinf(found.half_width) else f" ± {100 * found.half_width:.1f}")


def _accuracy(values: Sequence[float]) -> str:
    mean, half_width = mean_ci95(values)
    return interval_text(mean, None if math.isinf(half_width) else half_width)


def _named(method: MethodResult) -> str:
    return named(method.network, method.use)


def _written(found: _Comparison) -> dict[str, Any]:
    interval = {} if math.isinf(found.half_width) else {"gain_ci95": found.half_width}
    return {"method": found.method.name, "against": found.rival.name, "gain": found.gain, **interval}
