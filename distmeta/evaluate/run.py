"""The few-shot evaluation of a run: every network and every use of it on the same episodes of held-out classes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from distmeta.engine.precision import set_up_arithmetic
from distmeta.errors import Interrupted
from distmeta.evaluate.baselines import tf_idf_logistic_regression
from distmeta.evaluate.kept import Episode, KeptEvaluation
from distmeta.evaluate.overlap import count_overlap, describe_overlap
from distmeta.evaluate.score import EpisodeScore, Scorer
from distmeta.evaluate.statistics import classification_scores
from distmeta.evaluate.table import MethodResult, evaluation_report
from distmeta.meta import algorithm_class
from distmeta.models import load_weights
from distmeta.setup import Setup
from distmeta.tasks.episode import Task


@dataclass(frozen=True)
class Candidate:
    """A network that is scored."""

    name: str
    setup: Setup
    """Its inner loop adapts as this configuration says."""
    weights: Path


def evaluate_candidates(
    candidates: Sequence[Candidate],
    say: Callable[[str], None],
    against: Sequence[str] = ("starting", "language-model"),
    *,
    trained: Setup | None = None,
    is_trained_known: bool = True,
    kept: KeptEvaluation | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Scores every candidate in every use, and TF-IDF, on the episodes that the first one's `evaluate` describes.

    What the networks were `trained` on is taken to be the corpus of the episodes, unless it is given, or is not known.

    Goes on behind the episodes that are `kept` already, and keeps each one there as soon as it is scored.

    The first one is also the one that the verdicts are about, `against` those of the others that are named. All need
    the same tokenizer, and are computed in the first one's precision. Returns the content of `evaluation.json`: see
    `distmeta.evaluate.table.evaluation_report`, and `overlap`: see `count_overlap`.

    Raises:
        UserError: the held-out classes cannot fill the episodes, or a network is not there.
        Interrupted: `is_stopped` said so before the last episode.
    """
    setup = candidates[0].setup
    options = setup.config.evaluate
    source = setup.evaluation_tasks()
    device = torch.device("cuda" if torch.cuda.is_available() and setup.config.engine.device != "cpu" else "cpu")
    precision = set_up_arithmetic(setup.config.engine.precision, device)
    scorers = {candidate.name: _scorer(candidate, device, precision) for candidate in candidates}
    say(f"evaluating {len(scorers)} networks on {options.episodes} episodes of meta-{options.split} classes")
    episodes = kept.episodes() if kept else []
    if episodes:
        say(f"going on behind the {len(episodes)} episodes that are scored already")
    first = len(episodes)
    for index in tqdm(range(first, options.episodes), desc="evaluation", unit="episode", disable=None):
        if is_stopped():
            where = "; they are kept, and the same evaluation goes on from there" if kept else ""
            raise Interrupted(f"stopped after {index} of {options.episodes} episodes{where}")
        task = source.draw(index)
        episode: Episode = {}
        for name, scorer in scorers.items():
            for use, score in next(scorer.score([task])).items():
                episode[f"{name} {use}"] = _scores(score)
        episode["tf-idf logistic-regression"] = _scores(_tf_idf(task))
        episodes.append(episode)
        if kept:
            kept.add(episode)
    overlap = count_overlap(setup, trained or setup, options.split) if is_trained_known else {}
    for line in describe_overlap(overlap, options.split):
        say(line)
    report = evaluation_report(
        [_result(name, [episode[name] for episode in episodes]) for name in episodes[0]],
        split=options.split,
        n_way=source.n_way,
        k_shot=source.k_shot,
        query_per_class=source.query_per_class,
        judged=candidates[0].name,
        against=against,
    )
    return report | {"overlap": overlap}


def _scorer(candidate: Candidate, device: torch.device, precision: str) -> Scorer:
    config = candidate.setup.config
    network = candidate.setup.network().to(device)
    parameters, _ = load_weights(candidate.weights, device)
    assert config.evaluate.inner_steps is not None  # resolved
    skeleton = network.skeleton().to(device)
    return Scorer(
        skeleton,
        parameters,
        algorithm_class(config.meta.algorithm)(skeleton, config.meta),
        config.evaluate.inner_steps,
        precision,
        candidate.setup.tokenizer.pad_token_id,
    )


def _tf_idf(task: Task) -> EpisodeScore:
    start = time.perf_counter()
    predictions = tf_idf_logistic_regression(
        [example.shown for example in task.support],
        np.array([example.label for example in task.support]),
        [example.shown for example in task.query],
    )
    labels = np.array([example.label for example in task.query])
    return EpisodeScore(labels, np.asarray(predictions), None, time.perf_counter() - start)


def _scores(score: EpisodeScore) -> dict[str, float]:
    each = classification_scores(score.labels.tolist(), score.predictions.tolist(), int(score.labels.max()) + 1)
    before = {} if score.accuracy_before is None else {"accuracy_before": score.accuracy_before}
    return {**asdict(each), **before, "adapt_seconds": score.adapt_seconds}


def _result(name: str, episodes: list[dict[str, float]]) -> MethodResult:
    network, _, use = name.rpartition(" ")
    columns = {key: [episode[key] for episode in episodes] for key in episodes[0]}
    return MethodResult(network=network, use=use, **columns)  # type: ignore[arg-type]  # one of USES
