"""Queries of an episode that are seen together: against the formula, and apart from all rows without it."""

import json

import numpy as np

from distmeta.config import load_config
from distmeta.evaluate.baselines import nearest_prototype
from distmeta.evaluate.together import ROUNDS, TEMPERATURE, nearest_moved_prototype
from distmeta.run_evaluation import evaluate
from distmeta.setup import resolve
from tests.runs import begun_run, quiet


def by_hand(support, labels, query, n_way):
    """Text by text and class by class."""
    unit = [row / np.linalg.norm(row) for row in support]
    texts = [row / np.linalg.norm(row) for row in query]
    prototypes = [np.mean([row for row, own in zip(unit, labels, strict=True) if own == c], 0) for c in range(n_way)]
    for _ in range(ROUNDS):
        cosines = [[text @ p / np.linalg.norm(p) for p in prototypes] for text in texts]
        weights = [np.exp(np.array(each) / TEMPERATURE) for each in cosines]
        shares = [each / each.sum() for each in weights]
        prototypes = [
            sum(row for row, own in zip(unit, labels, strict=True) if own == c)
            + sum(share[c] * text for share, text in zip(shares, texts, strict=True))
            for c in range(n_way)
        ]
    return [int(np.argmax([text @ p / np.linalg.norm(p) for p in prototypes])) for text in texts]


def test_prototypes_move_as_the_formula_has_it():
    random = np.random.default_rng(0)
    differs = 0
    for _ in range(20):
        labels = np.array([0, 0, 1, 2])
        centers = random.normal(size=(3, 8))
        support = (centers[labels] + random.normal(size=(4, 8))).astype(np.float32)
        query = (centers[random.integers(0, 3, 9)] + random.normal(size=(9, 8))).astype(np.float32)
        found = nearest_moved_prototype(support, labels, query, 3)
        assert found.tolist() == by_hand(support, labels, query, 3)
        differs += (found != nearest_prototype(support, labels, query, 3)).any()
        both = nearest_moved_prototype(np.stack([support] * 2), np.stack([labels] * 2), np.stack([query] * 2), 3)
        assert (both == found).all(), "episodes side by side know nothing of each other"
    assert differs > 3


def test_it_is_a_row_of_its_own_that_no_verdict_is_about(tmp_path):
    config, run = begun_run(tmp_path, evaluate={"fine_tuning_episodes": 0, "episodes": 4})
    plain = evaluate(config, run, quiet)
    assert "queries-together" not in plain
    told = evaluate(resolve(load_config(run.config, ["evaluate.queries_together=true"])), run, quiet)
    rows = [line for line in told.splitlines() if "queries-together  " in line]
    assert len(rows) == 2, "of the two networks"
    assert "each query by itself but in" in " ".join(told.split())
    assert "queries-together" not in told.partition("Did meta-pretraining help?")[2]
    (file,) = run.evaluations.glob("*queries-together*.json")
    before, after = (json.loads(path.read_text())["methods"] for path in (run.evaluation, file))
    for method in before:
        (other,) = [each for each in after if each["name"] == method["name"]]
        assert other["accuracies"] == method["accuracies"]
