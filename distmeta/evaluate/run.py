"""The few-shot evaluation of a run: every network and every use of it on the same episodes of held-out classes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from distmeta.engine.precision import set_up_arithmetic
from distmeta.evaluate.baselines import tf_idf_logistic_regression
from distmeta.evaluate.overlap import count_overlap, describe_overlap
from distmeta.evaluate.score import EpisodeScore, Scorer
from distmeta.evaluate.statistics import classification_scores
from distmeta.evaluate.table import MethodResult, Use, evaluation_report
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
    candidates: Sequence[Candidate], say: Callable[[str], None], against: Sequence[str] = ("starting", "language-model")
) -> dict[str, Any]:
    """Scores every candidate in every use, and TF-IDF, on the episodes that the first one's `evaluate` describes.

    The first one is also the one that the verdicts are about, `against` those of the others that are named. All need
    the same tokenizer, and are computed in the first one's precision. Returns the content of `evaluation.json`: see
    `distmeta.evaluate.table.evaluation_report`, and `overlap`: see `count_overlap`.

    Raises:
        UserError: the held-out classes cannot fill the episodes, or a network is not there.
    """
    setup = candidates[0].setup
    options = setup.config.evaluate
    source = setup.evaluation_tasks()
    device = torch.device("cuda" if torch.cuda.is_available() and setup.config.engine.device != "cpu" else "cpu")
    precision = set_up_arithmetic(setup.config.engine.precision, device)
    scorers = {candidate.name: _scorer(candidate, device, precision) for candidate in candidates}
    scores: dict[tuple[str, Use], list[EpisodeScore]] = {}
    say(f"evaluating {len(scorers)} networks on {options.episodes} episodes of meta-{options.split} classes")
    for index in tqdm(range(options.episodes), desc="evaluation", unit="episode", disable=None):
        task = source.draw(index)
        for name, scorer in scorers.items():
            for use, score in next(scorer.score([task])).items():
                scores.setdefault((name, use), []).append(score)
        scores.setdefault(("tf-idf", "logistic-regression"), []).append(_tf_idf(task))
    overlap = count_overlap(setup, setup, options.split)
    for line in describe_overlap(overlap, options.split):
        say(line)
    report = evaluation_report(
        [_result(network, use, each) for (network, use), each in scores.items()],
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
        [example.text for example in task.support],
        np.array([example.label for example in task.support]),
        [example.text for example in task.query],
    )
    labels = np.array([example.label for example in task.query])
    return EpisodeScore(labels, np.asarray(predictions), None, time.perf_counter() - start)


def _result(network: str, use: Use, scores: list[EpisodeScore]) -> MethodResult:
    each = [
        classification_scores(score.labels.tolist(), score.predictions.tolist(), int(score.labels.max()) + 1)
        for score in scores
    ]
    before = [score.accuracy_before for score in scores if score.accuracy_before is not None]
    return MethodResult(
        network=network,
        use=use,
        accuracy=[score.accuracy for score in each],
        accuracy_before=before or None,
        precision=[score.precision for score in each],
        recall=[score.recall for score in each],
        f1=[score.f1 for score in each],
        adapt_seconds=[score.adapt_seconds for score in scores],
    )
