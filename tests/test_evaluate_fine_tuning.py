"""Fine-tuning on a support set, against the same loop on the model itself; and what is not scored twice."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from distmeta.compute.batch import TokenBatch, collate_task
from distmeta.evaluate import fine_tuning, run
from distmeta.evaluate.fine_tuning import FineTuningUnit, fine_tune, tuned_weights
from distmeta.evaluate.networks import Candidate, load
from distmeta.evaluate.run import evaluate_candidates, find_same
from distmeta.models import load_weights, save_weights
from distmeta.setup import Setup
from tests.runs import begun_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    config, run = begun_run(tmp_path_factory.mktemp("project"), evaluate={"episodes": 3})
    return Candidate("starting", Setup(config, run), run.starting_weights, fine_tuning_episodes=2)


def test_it_is_adamw_on_all_weights_and_a_head_that_starts_at_the_logistic_regression(starting: Candidate) -> None:
    """Written out with the model itself and padded texts."""
    task = starting.setup.evaluation_tasks().draw(0)
    scorer = load(starting.place)
    before = {name: value.clone() for name, value in scorer.parameters.items()}
    batch = collate_task(task, scorer.pad_token_id, CPU)
    weights, head = tuned_weights(scorer.network, scorer.parameters, batch.support, batch.support_labels, batch.n_way)
    assert all(torch.equal(value, before[name]) for name, value in scorer.parameters.items())

    network = starting.setup.network().eval()
    bert = copy.deepcopy(network.model.bert)

    def features(half: TokenBatch) -> torch.Tensor:
        hidden = bert(half.input_ids, half.attention_mask).last_hidden_state
        mask = half.attention_mask[..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    def unit(rows: torch.Tensor) -> torch.Tensor:
        return rows / rows.norm(dim=1, keepdim=True)

    with torch.no_grad():
        rows = unit(features(batch.support))
        centre = rows.mean(0)
        rows = unit(rows - centre)
    regression = LogisticRegression(C=10.0, max_iter=10_000, tol=1e-8).fit(rows.numpy(), batch.support_labels.numpy())
    w, b = (torch.tensor(value, dtype=torch.float32) for value in (regression.coef_, regression.intercept_))
    w.requires_grad_()
    b.requires_grad_()

    def scores(half: TokenBatch) -> torch.Tensor:
        return unit(unit(features(half)) - centre) @ w.t() + b

    optimizer = torch.optim.AdamW(
        [
            {"params": list(bert.parameters()), "lr": fine_tuning.LEARNING_RATE, "weight_decay": 0.01},
            {"params": [w, b], "lr": fine_tuning.HEAD_RATE, "weight_decay": 0.0},
        ]
    )
    losses = []
    for _ in range(fine_tuning.STEPS):
        optimizer.zero_grad()
        loss = functional.cross_entropy(scores(batch.support), batch.support_labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*bert.parameters(), w, b], 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    torch.testing.assert_close(head.weight, w, rtol=0.01, atol=0.02)
    name = "model.bert.encoder.layer.0.intermediate.dense.weight"
    moved = (weights[name] - before[name]).norm()
    assert moved > 0
    # Adam makes much of rounding where a gradient is tiny.
    assert (weights[name] - bert.encoder.layer[0].intermediate.dense.weight).norm() < 0.02 * moved
    with torch.no_grad():
        expected = scores(batch.query).argmax(1).numpy()
    found = fine_tune(FineTuningUnit(starting.place, task))
    assert np.mean(found.predictions == expected) > 0.8
    assert found.labels.tolist() == batch.query_labels.tolist()


def test_without_a_step_it_is_the_logistic_regression(starting: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tuning, "STEPS", 0)
    for index in range(2):
        task = starting.setup.evaluation_tasks().draw(index)
        scored = next(load(starting.place).score([task], ("logistic-regression",)))["logistic-regression"]
        assert fine_tune(FineTuningUnit(starting.place, task)).predictions.tolist() == scored.predictions.tolist()


def test_many_texts_go_in_batches_each_at_least_twice() -> None:
    few, many = fine_tuning._steps(20), fine_tuning._steps(400)
    assert [len(batch) for batch in few] == [20] * fine_tuning.STEPS
    assert max(len(batch) for batch in many) == fine_tuning.MOST_TEXTS
    assert torch.bincount(torch.cat(list(many)), minlength=400).min() >= 2


def test_it_stands_in_the_table_on_the_first_episodes_and_the_same_network_is_scored_once(
    starting: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = replace(starting, name="meta-pretrained", fine_tuning_episodes=0)
    scored = []
    original = run.methods_of
    monkeypatch.setattr(run, "methods_of", lambda each, *rest: scored.append(each.name) or original(each, *rest))
    report = evaluate_candidates([kept, starting], lambda _: None)
    assert scored == ["starting"]
    assert report["same"] == {"meta-pretrained": "starting"}
    methods = {method["name"]: method for method in report["methods"]}
    for use in ("inner-loop", "prototype", "logistic-regression"):
        assert methods[f"meta-pretrained {use}"]["accuracies"] == methods[f"starting {use}"]["accuracies"]
    tuned = methods["starting fine-tuning"]
    assert (tuned["episodes"], len(tuned["accuracies"])) == (2, 2)
    assert "meta-pretrained fine-tuning" not in methods
    assert report["verdict"]["answer"] == "no"

    other = tmp_path / "other.safetensors"
    parameters = {name: value + 0.01 for name, value in starting.setup.network().state_dict().items()}
    save_weights(other, {name: value.clone() for name, value in parameters.items()}, 3)
    assert find_same([replace(kept, weights=other), starting]) == {}
    adapted = copy.copy(starting.setup)
    adapted.config = starting.setup.config.model_copy(deep=True)
    adapted.config.meta.inner_lr = 0.5
    assert find_same([replace(kept, setup=adapted), starting]) == {}  # its inner loop is another one

    # The head of multi-task training is in the file of its weights, and features don't depend on it.
    headed = tmp_path / "headed.safetensors"
    weights, _ = load_weights(starting.weights, torch.device("cpu"))
    save_weights(headed, weights | {"learned.head": torch.ones(3, 2)}, 0)
    multitask = replace(kept, name="multitask", weights=headed, adapts=False)
    assert find_same([kept, starting, multitask]) == {"meta-pretrained": "starting", "multitask": "starting"}
    assert "multitask inner-loop" not in {
        method["name"] for method in evaluate_candidates([starting, multitask], lambda _: None)["methods"]
    }
    assert find_same([replace(kept, weights=headed), starting]) == {}  # what it learned may be of its inner loop
