"""A few-shot evaluation: every network and every use of it on the same episodes."""

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from distmeta.corpus.executor import Executor, LocalExecutor
from distmeta.errors import Interrupted
from distmeta.evaluate.config import EvaluateConfig
from distmeta.evaluate.episodes import Episode, EpisodeSource, Texts, draw_episodes
from distmeta.evaluate.features import compute_features
from distmeta.evaluate.kept import KeptEvaluation, Score
from distmeta.evaluate.methods import Method, methods_of, tf_idf
from distmeta.evaluate.networks import Candidate, ScoredNetwork, load
from distmeta.evaluate.overlap import count_overlap, describe_overlap
from distmeta.evaluate.results import MethodResult
from distmeta.evaluate.score import EpisodeScore
from distmeta.evaluate.similarity import measure_similarity, read_pairs
from distmeta.evaluate.statistics import classification_scores, mean_ci95
from distmeta.evaluate.table import evaluation_report

__all__ = ["Asked", "Candidate", "evaluate_candidates", "evaluate_networks"]

SECONDS_KEPT = 1.0
"""What is scored is written down this often (seconds)."""


@dataclass
class Asked:
    """An evaluation that is asked for: its episodes, and where its scores are kept."""

    source: EpisodeSource
    episodes: int
    kept: KeptEvaluation | None = None
    drawn: list[Episode] = field(default_factory=list)
    scores: dict[str, list[Score]] = field(default_factory=dict)
    """Of each method that has begun."""

    def results(self) -> list[MethodResult]:
        """The scores of all episodes, a method an item."""
        return [_result(name, scores) for name, scores in self.scores.items()]


def score_networks(
    networks: Sequence[ScoredNetwork],
    asked: Sequence[Asked],
    say: Callable[[str], None],
    *,
    executor: Executor,
    queries_together: bool = False,
    work: Path | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Scores every network in every use, and TF-IDF, on the episodes of every evaluation that is asked for.

    All episodes are drawn first. Each network computes the features of their distinct texts once, whatever the number
    of evaluations and episodes. With a folder `work`, features are kept there while anything is unfinished.

    Raises:
        UserError: the held-out classes cannot fill the episodes, or a network is not there.
        Interrupted: `is_stopped` said so before the last score.
    """
    texts = Texts()
    for each in asked:
        each.drawn = draw_episodes(each.source, each.episodes, texts, is_stopped)
        begun = each.kept.scores() if each.kept else {}
        each.scores = {name: scores[: each.episodes] for name, scores in begun.items()}
    if is_stopped():
        raise Interrupted("stopped before the first score")
    known = sum(len(scores) for each in asked for scores in each.scores.values())
    if known:
        say(f"going on behind {known} scores of episodes that are there already")
    names: list[str] = []
    uses: dict[str, list[str]] = defaultdict(list)
    same = find_same(networks)
    for network in networks:
        if network.name in same:
            continue
        tokens = network.encode(texts.examples)
        features = cache(partial(compute_features, network, tokens, executor, work, is_stopped))
        for method in methods_of(network, tokens, features, executor, queries_together):
            names.append(method.name)
            if method.use != "fine-tuning":  # which is asked for of one of them alone
                uses[network.name].append(method.use)
            for each in asked:
                _score(method, each, is_stopped)
        if features.cache_info().currsize:  # they were needed, and what they are for is there
            _remove(features().folders)
        load.cache_clear()  # a network may be large
    method = tf_idf()
    names.append(method.name)
    for each in asked:
        _score(method, each, is_stopped)
        each.scores = {name: each.scores[name] for name in names}  # in this order, also where some were there before
        for network in networks:
            if other := same.get(network.name):
                own = [use for use in uses[other] if use != "inner-loop" or network.adapts]
                each.scores |= {f"{network.name} {use}": each.scores[f"{other} {use}"] for use in own}


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another evaluation, which was stopped, has some there
            folder.parent.rmdir()
            folder.parent.parent.rmdir()


def find_same(networks: Sequence[ScoredNetwork]) -> dict[str, str]:
    """Of each network that has the weights of another one, and adapts in the same way or not at all, the name of that,
    which alone is scored: the starting one, where it is among them, else the first."""
    same: dict[str, str] = {}
    for network in networks:
        alike = [
            each.name
            for each in networks
            if each.identity == network.identity and (not network.adapts or each.adaptation == network.adaptation)
        ]
        original = "starting" if "starting" in alike else alike[0]
        if network.name != original:
            same[network.name] = original
    return same


def _score(method: Method, asked: Asked, is_stopped: Callable[[], bool]) -> None:
    """Adds the scores of a method that are missing."""
    scores = asked.scores.setdefault(method.name, [])
    total = min(len(asked.drawn), method.episodes or len(asked.drawn))
    written, said = len(scores), time.monotonic()

    def keep() -> None:
        if asked.kept and len(scores) > written:
            asked.kept.add(method.name, scores[written:])

    for found in _missing(method, asked.drawn[len(scores) : total]):
        scores.append(_scores(found))
        if time.monotonic() - said > SECONDS_KEPT or is_stopped():
            keep()
            written, said = len(scores), time.monotonic()
        if is_stopped() and len(scores) < total:
            where = "; they are kept, and the same evaluation goes on from there" if asked.kept else ""
            raise Interrupted(f"stopped after {len(scores)} of {total} episodes of {method.name}{where}")
    keep()


def _missing(method: Method, episodes: Sequence[Episode]) -> Iterator[EpisodeScore]:
    return method.score(episodes) if episodes else iter(())


def evaluate_networks(
    networks: Sequence[ScoredNetwork],
    asked: Sequence[Asked],
    say: Callable[[str], None],
    *,
    options: EvaluateConfig,
    against: Sequence[str] = ("starting", "language-model"),
    rivals: Sequence[str] | None = None,
    executor: Executor,
    work: Path | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Scores networks as `score_networks` does, and returns the report of each evaluation that is asked for: see
    `distmeta.evaluate.table.evaluation_report`, and `similarity`, where `options` ask for it: see `measure_similarity`.

    The first network is the one that the verdicts are about, `against` those of the others that are named, and against
    the strongest of its `rivals` (unset: all others). Of the `options`, their split says whose classes the episodes are
    of; their ways and shots are those of each evaluation.

    Raises:
        UserError: the classes cannot fill the episodes, a network is not there, or pairs of texts cannot be read.
        Interrupted: `is_stopped` said so before the end.
    """
    groups = read_pairs(options.similarity, options.similarity_pairs) if options.similarity else {}
    score_networks(
        networks,
        asked,
        say,
        executor=executor,
        queries_together=options.queries_together,
        work=work,
        is_stopped=is_stopped,
    )
    same, more = find_same(networks), {}
    if options.similarity:
        distinct = [network for network in networks if network.name not in same]
        found = measure_similarity(distinct, options.similarity, groups, executor, is_stopped=is_stopped)
        more = {"similarity": found}
    return [
        evaluation_report(
            each.results(),
            split=options.split,
            n_way=each.source.n_way,
            k_shot=each.source.k_shot,
            query_per_class=each.source.query_per_class,
            judged=networks[0].name,
            against=against,
            rivals=rivals,
            same=same,
        )
        | _by_dataset(each)
        | more
        for each in asked
    ]


def _by_dataset(asked: Asked) -> dict[str, Any]:
    """Where the episodes are of several data sets: `by_dataset`, of each the number of its `episodes`, and `methods`,
    the mean accuracy of each and half the width of its interval."""
    names = sorted({episode.source for episode in asked.drawn})
    if len(names) < 2:
        return {}
    found: dict[str, Any] = {}
    for name in names:
        own = [number for number, episode in enumerate(asked.drawn) if episode.source == name]
        methods = []
        for result in asked.results():
            values = [result.accuracy[number] for number in own if number < len(result.accuracy)]
            if values:
                mean, half_width = mean_ci95(values)
                interval = {"accuracy_ci95": half_width} if math.isfinite(half_width) else {}
                methods.append({"name": result.name, "accuracy": mean, **interval})
        found[name] = {"episodes": len(own), "methods": methods}
    return {"by_dataset": found}


def evaluate_candidates(
    candidates: Sequence[Candidate],
    say: Callable[[str], None],
    against: Sequence[str] = ("starting", "language-model"),
    *,
    rivals: Sequence[str] | None = None,
    kept: KeptEvaluation | None = None,
    work: Path | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Scores every candidate in every use, and TF-IDF, on the episodes that the first one's `evaluate` describes, in
    this process.

    Goes on behind the scores that are `kept` already, and keeps each one there as soon as it is there. All need the
    same tokenizer, and were trained on the corpus of the episodes. Returns the content of `evaluation.json`: see
    `evaluate_networks`, and `overlap`: see `count_overlap`.

    Raises:
        UserError: the held-out classes cannot fill the episodes, a network is not there, or pairs of texts cannot be
            read.
        Interrupted: `is_stopped` said so before the last episode.
    """
    setup = candidates[0].setup
    options = setup.config.evaluate
    say(f"evaluating {len(candidates)} networks on {options.episodes} episodes of meta-{options.split} classes")
    (report,) = evaluate_networks(
        candidates,
        [Asked(setup.evaluation_tasks(), options.episodes, kept)],
        say,
        against=against,
        rivals=rivals,
        options=options,
        executor=LocalExecutor(),
        work=work,
        is_stopped=is_stopped,
    )
    overlap = count_overlap(setup, setup, options.split)
    for line in describe_overlap(overlap, options.split):
        say(line)
    return report | {"overlap": overlap}


def _scores(score: EpisodeScore) -> Score:
    each = classification_scores(score.labels, score.predictions, int(score.labels.max()) + 1)
    before = {} if score.accuracy_before is None else {"accuracy_before": score.accuracy_before}
    return {**asdict(each), **before, "adapt_seconds": score.adapt_seconds}


def _result(name: str, scores: list[Score]) -> MethodResult:
    network, _, use = name.rpartition(" ")
    columns = {key: [score[key] for score in scores] for key in scores[0]}
    return MethodResult(network=network, use=use, **columns)  # type: ignore[arg-type]  # one of USES
