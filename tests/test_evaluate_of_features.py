"""Algorithms that take features as they are: their own use is scored from those that are there already."""

from pathlib import Path

import numpy as np
import pytest

from distmeta.corpus.executor import LocalExecutor
from distmeta.evaluate import methods
from distmeta.evaluate.episodes import Texts, draw_episodes
from distmeta.evaluate.features import compute_features
from distmeta.evaluate.methods import methods_of
from distmeta.evaluate.networks import Candidate, load
from distmeta.meta.config import MetaConfig
from distmeta.meta.registry import algorithm_class, algorithm_names
from distmeta.setup import Setup
from tests.runs import begun_run


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_prototypes_from_features_are_those_of_the_network(
    distance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two examples a class the two distances, and prototypes of normalised features, are three classifiers."""
    config, run = begun_run(tmp_path, meta={"algorithm": "protonet", "distance": distance, "learn_temperature": True})
    network = Candidate("meta-pretrained", Setup(config, run), run.best_weights)
    texts = Texts()
    episodes = draw_episodes(network.setup.evaluation_tasks(), 20, texts, lambda: False)
    tokens = network.encode(texts.examples)
    expected = [
        next(load(network.place).score([each.encoded(tokens)], ("inner-loop",)))["inner-loop"] for each in episodes
    ]
    features = compute_features(network, tokens, LocalExecutor())
    monkeypatch.setattr(methods, "load", lambda _: pytest.fail("the network is asked again"))
    own, by_prototype, _ = methods_of(network, tokens, lambda: features, LocalExecutor())
    assert own.name == "meta-pretrained inner-loop"
    found = list(own.score(episodes))
    for each, wanted in zip(found, expected, strict=True):
        assert np.array_equal(each.predictions, wanted.predictions)
        assert each.accuracy_before is None
        assert wanted.accuracy_before is None
    others = list(by_prototype.score(episodes))
    assert any(not np.array_equal(a.predictions, b.predictions) for a, b in zip(found, others, strict=True))


def test_no_other_algorithm_does_without_the_network() -> None:
    taking = {name for name in algorithm_names() if algorithm_class(name).of_features(MetaConfig(algorithm=name))}
    assert taking == {"protonet"}
