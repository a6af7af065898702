"""Activation checkpointing in the inner loop: the same gradients, in less memory."""

from typing import Any

import pytest
from transformers import BertConfig, BertModel

from distmeta.meta import Learner, Work
from distmeta.meta.config import MetaConfig
from distmeta.models import Network
from tests.helpers import random_task, task_batch, tiny_network
from tests.meta_cases import relative_error
from tests.test_meta import peak_bytes
from tests.test_meta_side_by_side import mixed_work

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize(("at_a_time", "computation"), [(1, "plain"), (3, "packed")])
@pytest.mark.parametrize(
    ("algorithm", "adapt", "options"),
    [
        ("fomaml", "all", {}),
        ("fomaml", "lora", {}),
        ("fomaml", "bias", {"inner_optimizer": "adam"}),
        ("maml", "all", {}),
        ("maml", "lora", {"recompute": True}),
    ],
)
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_gradients_are_those_of_kept_activations(
    model_type: str, algorithm: str, adapt: str, options: dict[str, Any], at_a_time: int, computation: Any
) -> None:
    """With dropout where tasks come one at a time: it is drawn alike the second time."""
    dropout = 0.1 if at_a_time == 1 else 0.0
    attention = "eager" if algorithm == "maml" else "sdpa"
    network = tiny_network(model_type, lora_rank=2 if adapt == "lora" else 0, attention=attention, dropout=dropout)
    network.double().train()
    network.computation = computation
    config = MetaConfig(algorithm=algorithm, adapt=adapt, inner_lr=0.1, inner_steps=3, lm_weight=0.5, **options)
    parameters = dict(network.named_parameters())
    skeleton = network.skeleton()
    answers = []
    for skeleton.checkpoints_activations in (False, True):
        answers.append(Learner(skeleton, config, "fp32", 0, at_a_time).gradient(parameters, mixed_work(3), 3))
    (expected, expected_metrics), (found, metrics) = answers
    assert found.keys() == expected.keys()
    assert relative_error(found, expected)[0] < 1e-6  # summed up in fp32
    assert metrics["query_loss"] == pytest.approx(expected_metrics["query_loss"], rel=1e-9)


def test_less_memory_is_taken() -> None:
    """Of eight layers' activations one layer's are there at a time."""
    shape = {"vocab_size": 600, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 128}
    model = BertModel(BertConfig(num_hidden_layers=8, **shape, **NO_DROPOUT), add_pooling_layer=False)
    network = Network(model, "mean", computation="packed")
    parameters = dict(network.named_parameters())
    work = [Work(index, task_batch(random_task(index, n_way=5, k_shot=20)), None) for index in range(2)]
    config = MetaConfig(inner_lr=0.1, inner_steps=3, lm_weight=0.0, adapt="bias")

    def peak(network: Network) -> int:
        return peak_bytes(lambda: Learner(network, config, "fp32", 0).gradient(parameters, work, 2))

    kept = peak(network)
    network.checkpoints_activations = True
    assert peak(network) < 0.5 * kept


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_fast_weights_still_get_no_gradient_tensors(algorithm: str) -> None:
    """A layer that is computed again uses its weights once more, and they are updated where the gradient arises."""
    shape = {"vocab_size": 600, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    config = BertConfig(num_hidden_layers=4, attn_implementation="eager", **shape, **NO_DROPOUT)
    model = BertModel(config, add_pooling_layer=False)
    network = Network(model, "mean", computation="packed")
    parameters = dict(network.named_parameters())
    # Few tokens, so that what is held are weights.
    tasks = [random_task(index, n_way=2, k_shot=1, query_per_class=1) for index in range(3)]
    work = [Work(index, task_batch(task), None) for index, task in enumerate(tasks)]
    learner = Learner(network, MetaConfig(algorithm=algorithm, inner_lr=0.1, inner_steps=3, lm_weight=0.0), "fp32", 0)
    kept = peak_bytes(lambda: learner.gradient(parameters, work, 3))
    network.checkpoints_activations = True
    assert peak_bytes(lambda: learner.gradient(parameters, work, 3)) <= kept
