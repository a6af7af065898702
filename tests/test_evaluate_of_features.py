"""Algorithms that take features as they are: their own use is scored from those that are there already."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distmeta.compute.batch import collate_task
from distmeta.corpus.executor import LocalExecutor
from distmeta.evaluate import methods
from distmeta.evaluate.episodes import Texts, draw_episodes
from distmeta.evaluate.features import compute_features
from distmeta.evaluate.methods import methods_of
from distmeta.evaluate.networks import Candidate, load
from distmeta.evaluate.score import Scorer
from distmeta.meta.config import MetaConfig
from distmeta.meta.registry import algorithm_class, algorithm_names
from distmeta.setup import Setup
from distmeta.tasks.episode import Task
from tests.runs import begun_run


def fitted(scorer: Scorer, task: Task) -> np.ndarray:
    """The predictions of the algorithm's own classifier, which asks the network for features."""
    batch = collate_task(task, scorer.pad_token_id, torch.device("cpu"))
    scorer.network.eval()
    classify = scorer.algorithm.fit(scorer.parameters, batch.support, batch.support_labels, batch.n_way, 1)
    return classify(batch.query).argmax(1).numpy()


@pytest.mark.parametrize("distance", ["cosine", "centred-cosine", "euclidean"])
def test_prototypes_from_features_are_those_of_the_network(
    distance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two examples a class the distances, and prototypes of normalised features, are classifiers of their own."""
    config, run = begun_run(tmp_path, meta={"algorithm": "protonet", "distance": distance, "learn_temperature": True})
    network = Candidate("meta-pretrained", Setup(config, run), run.best_weights)
    texts = Texts()
    episodes = draw_episodes(network.setup.evaluation_tasks(), 20, texts, lambda: False)
    tokens = network.encode(texts.examples)
    scorer = load(network.place)
    expected = [fitted(scorer, each.encoded(tokens)) for each in episodes]
    in_training = [each["inner-loop"] for each in scorer.score([each.encoded(tokens) for each in episodes])]
    assert all(np.array_equal(each.predictions, wanted) for each, wanted in zip(in_training, expected, strict=True))
    features = compute_features(network, tokens, LocalExecutor())
    monkeypatch.setattr(methods, "load", lambda _: pytest.fail("the network is asked again"))
    own, by_prototype, _ = methods_of(network, tokens, lambda: features, LocalExecutor())
    assert own.name == "meta-pretrained inner-loop"
    found = list(own.score(episodes))
    for each, wanted in zip(found, expected, strict=True):
        assert np.array_equal(each.predictions, wanted)
        assert each.accuracy_before is None
    others = list(by_prototype.score(episodes))
    assert any(not np.array_equal(a.predictions, b.predictions) for a, b in zip(found, others, strict=True))


def test_no_other_algorithm_does_without_the_network() -> None:
    taking = {name for name in algorithm_names() if algorithm_class(name).of_features(MetaConfig(algorithm=name))}
    assert taking == {"protonet", "multitask"}


def test_a_multi_task_network_is_used_by_what_is_computed_once(tmp_path: Path) -> None:
    config, run = begun_run(tmp_path, meta={"algorithm": "multitask"})
    network = Candidate("meta-pretrained", Setup(config, run), run.best_weights)
    texts = Texts()
    episodes = draw_episodes(network.setup.evaluation_tasks(), 5, texts, lambda: False)
    tokens = network.encode(texts.examples)
    scorer = load(network.place)
    own, *_ = methods_of(network, tokens, lambda: compute_features(network, tokens, LocalExecutor()), LocalExecutor())
    for each, found in zip(episodes, own.score(episodes), strict=True):
        assert np.array_equal(found.predictions, fitted(scorer, each.encoded(tokens)))
