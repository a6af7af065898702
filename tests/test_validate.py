"""A validation scores from features that are computed once, and as the network itself would score each episode."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distmeta.compute.batch import collate_task
from distmeta.evaluate.baselines import nearest_prototype
from distmeta.meta.registry import algorithm_class
from distmeta.models import Network
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.train import validate
from distmeta.train.validate import POOL_TEXTS, Validator
from tests.training import CPU, configure, prepared_corpus

EPISODES = 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_corpus(tmp_path_factory.mktemp("corpus"))


class Scored:
    """A validation of a new network, and what is needed to score its episodes by hand."""

    def __init__(self, corpus: Path, algorithm: str, **train: Any) -> None:
        train = {"validate_every": 1, "validate_episodes": EPISODES} | train
        config = configure(corpus, meta={"algorithm": algorithm}, train=train)
        self.setup = Setup(config, RunDirectory(corpus))
        self.network: Network = self.setup.network()
        self.algorithm = algorithm_class(algorithm)(self.network, config.meta)
        self.parameters = {name: value.detach() for name, value in self.network.named_parameters()}
        self.validator = Validator(self.setup, self.network, self.algorithm, 0, 1, CPU)

    def score(self, is_stopping: Any = lambda: False) -> Any:
        return self.validator.score(self.parameters, is_stopping)

    def batches(self, count: int, **shape: Any) -> Any:
        source = self.setup.tasks("valid", pool_texts=POOL_TEXTS, **shape)
        self.network.eval()
        return [collate_task(source.draw(index), self.setup.tokenizer.pad_token_id, CPU) for index in range(count)]


def accuracy(predicted: Any, batch: Any) -> float:
    return float(np.mean(np.asarray(predicted) == batch.query_labels.numpy()))


@torch.no_grad()
def by_prototype(scored: Scored, batch: Any) -> float:
    support, query = (scored.network.features(scored.parameters, half).numpy() for half in (batch.support, batch.query))
    return accuracy(nearest_prototype(support, batch.support_labels.numpy(), query, batch.n_way), batch)


def test_episodes_are_scored_as_the_network_itself_would(corpus):
    """A prototypical network's Euclidean classifier, its prototypes by cosine, and those of all classes."""
    scored = Scored(corpus, "protonet")
    found = scored.score().accuracies
    own = []
    for batch in scored.batches(EPISODES):
        classify = scored.algorithm.fit(scored.parameters, batch.support, batch.support_labels, batch.n_way, 1)
        own.append(accuracy(classify(batch.query).argmax(1), batch))
    assert found["inner-loop"][""] == pytest.approx(own)
    assert found["prototype"][""] == pytest.approx([by_prototype(scored, each) for each in scored.batches(EPISODES)])
    assert len(set(found["prototype"][""])) > 1
    all_way = scored.batches(EPISODES // validate.ALL_WAY_SHARE, n_way="all")
    assert all_way[0].n_way > 3
    assert found["prototype-all-way"][""] == pytest.approx([by_prototype(scored, each) for each in all_way])


def test_an_inner_loop_that_adapts_the_network_has_fewer_episodes(corpus):
    found = Scored(corpus, "fomaml", validate_inner_loops=3).score().accuracies
    assert {use: len(values[""]) for use, values in found.items()} == {
        "inner-loop": 3,
        "prototype": EPISODES,
        "prototype-all-way": 2,
    }
    few = Scored(corpus, "fomaml", validate_inner_loops=3, validate_episodes=2).score().accuracies
    assert len(few["inner-loop"][""]) == 2


def test_each_text_goes_through_the_network_once_a_validation(corpus, monkeypatch):
    scored = Scored(corpus, "protonet", validate_episodes=50)
    passed: list[int] = []
    features = Network.features

    def counted(self: Network, parameters: Any, batch: Any) -> Any:
        passed.extend(map(tuple, batch.sequences()))
        return features(self, parameters, batch)

    monkeypatch.setattr(Network, "features", counted)
    first = scored.score().scores
    assert len(passed) == len(scored.validator._texts) < 50 * 9  # texts of an episode
    passed.clear()
    assert scored.score().scores == first
    assert len(passed) == len(scored.validator._texts)


def test_a_stop_leaves_no_score(corpus):
    scored = Scored(corpus, "protonet")
    assert scored.score(lambda: True) is None
    assert scored.score() is not None
