"""Every algorithm x adapted set x network x way of computing, against `tests.references` in double precision."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from distmeta.compute.batch import TaskBatch, collate_tokens
from distmeta.corpus.tokenizer import save_tokenizer
from distmeta.meta import Algorithm, Learner, TaskResult, Work, algorithm_class, register, registry
from distmeta.meta.algorithm import Classifier, Parameters
from distmeta.models import load_network, load_tokenizer
from distmeta.models.config import ModelConfig
from tests import references
from tests.helpers import meta_config, random_task, task_batch, tiny_network
from tests.meta_cases import (
    ADAPTED,
    RATE,
    STEPS,
    Case,
    case,
    fast_names,
    make_network,
    make_task,
    reference,
    relative_error,
    whole,
)
from tests.references import Setting

CPU = torch.device("cpu")
COMPUTATIONS = ("plain", "packed", "bucketed")
MODEL_TYPES = ("bert", "gpt2")
TOLERANCE = 1e-9

WORST: dict[str, float] = defaultdict(float)
"""Largest relative error by algorithm."""


SECOND = {"second_order": True}
CASES = [
    *(case(name, adapt) for name in ("maml", "fomaml", "reptile", "metasgd") for adapt in ADAPTED),
    *(case(name, adapt, **order) for name in ("protomaml", "leopard") for order in ({}, SECOND) for adapt in ADAPTED),
    case("anil"),
    case("anil", second_order=False),
    case("metasgd", second_order=False),
    case("protonet"),
    case("protonet", distance="cosine"),
    case("protonet", temperature=3.0),
    case("protonet", distance="cosine", learn_temperature=True),
    case("protonet", distance="centred-cosine"),
    case("metaicl"),
    case("multitask"),
    # The inner loop's settings.
    *(case(name, inner_steps=steps) for name in ("maml", "fomaml", "reptile") for steps in (1, 2)),
    *(case(name, inner_optimizer="momentum", inner_lr=0.2) for name in ("maml", "fomaml", "reptile")),
    # Adam makes large steps of the rounding errors of a key's bias, whose gradient is 0: it is not among these.
    *(case(name, "regex:dense|mlp", inner_optimizer="adam", inner_lr=0.01) for name in ("maml", "fomaml", "reptile")),
    *(case(name, inner_clipping=0.2) for name in ("maml", "fomaml", "reptile")),
    case("protomaml", inner_optimizer="momentum", inner_clipping=0.2, second_order=True),
    *(case(name, "last_k", inner_rates="layer_step") for name in ("maml", "fomaml", "leopard")),
    case("maml", "lora", inner_rates="layer_step", inner_clipping=0.2),
    *(case(name, multi_step_loss=0.8, progress=0.2) for name in ("maml", "fomaml", "protomaml")),
    *(case(name, "bias", multi_step_loss=0.8, progress=0.2, inner_rates="layer_step") for name in ("maml", "fomaml")),
    case("maml", multi_step_loss=0.8, progress=0.9),
    # Each inner step computed again on the way back.
    *(case("maml", adapt, recompute=True) for adapt in ("all", "lora", "last_k")),
    case("maml", "last_k", recompute=True, inner_rates="layer_step", multi_step_loss=0.8, progress=0.2),
    case("maml", recompute=True, inner_optimizer="momentum", inner_clipping=0.2),
    case("maml", "regex:dense|mlp", recompute=True, inner_optimizer="adam", inner_lr=0.01),
    case("metasgd", "lora", recompute=True),
    case("protomaml", second_order=True, recompute=True),
    case("leopard", "last_k", second_order=True, recompute=True),
    case("anil", recompute=True),
    # Part of the network alone in the outer loop.
    *(case(name, freeze=1) for name in ("maml", "fomaml", "reptile", "protonet", "multitask")),
    case("maml", "last_k", freeze=1, recompute=True),
]


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    yield
    print("\n\nlargest relative error of a meta-gradient, float64")
    for name, error in WORST.items():
        print(f"  {name:<28} {error:.1e}")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_meta_gradient_equals_the_reference(case: Case, model_type: str) -> None:
    """Of every parameter, with the losses that go with it, however the texts are put together."""
    if case.algorithm == "metaicl" and model_type == "bert":
        pytest.skip("metaicl is for decoders")
    algorithm, task = algorithm_class(case.algorithm), make_task(case)
    attention = "eager" if algorithm.differentiates_twice(case.config) else "sdpa"
    torch.manual_seed(5)
    prompt_order = tuple(torch.randperm(len(task.support_labels)).tolist()) if case.algorithm == "metaicl" else ()
    expected = reference(case, model_type, prompt_order)
    network = make_network(case, model_type, attention=attention)
    for computation in COMPUTATIONS if model_type == "bert" else COMPUTATIONS[:2]:
        network.computation = computation
        parameters = dict(network.named_parameters())
        torch.manual_seed(5)
        result = algorithm(network, case.config).task_gradient(parameters, task, case.progress)
        found = whole(result, parameters)
        # Reptile's first step moves the head alone: nothing, or zeros.
        absent = expected.gradients.keys() - found.keys()
        assert found.keys() <= expected.gradients.keys(), computation
        assert not any(expected.gradients[name].any() for name in absent), computation
        found |= {name: torch.zeros_like(expected.gradients[name]) for name in absent}
        assert all(gradient.dtype == torch.float64 for gradient in found.values())
        error, name = relative_error(found, expected.gradients)
        label = case.algorithm + (" second order" if case.config.second_order else "")
        WORST[label] = max(WORST[label], error)
        assert error < TOLERANCE, (computation, name)
        assert result.query_loss == pytest.approx(expected.query_loss, rel=TOLERANCE), computation
        assert result.support_losses == pytest.approx(expected.support_losses, rel=TOLERANCE), computation
        assert result.query_accuracy == pytest.approx(
            float((expected.scores.argmax(1) == task.query_labels).double().mean())
        )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    "case",
    [
        case("maml"),
        case("fomaml", "lora"),
        case("fomaml", "bias"),
        case("fomaml", inner_optimizer="momentum", inner_lr=0.2),
        case("anil"),
        case("metasgd"),
        case("protomaml"),
        case("leopard", "last_k", inner_rates="layer_step"),
        case("protonet"),
        case("protonet", distance="cosine", learn_temperature=True),
        case("metaicl"),
    ],
    ids=str,
)
def test_a_fitted_classifier_scores_as_the_reference(case: Case, model_type: str) -> None:
    """What a user of the network gets is what the outer loop trained; it keeps no graph and changes no parameter."""
    if case.algorithm == "metaicl" and model_type == "bert":
        pytest.skip("metaicl is for decoders")
    task = make_task(case)
    prompt_order = ()
    if case.algorithm == "metaicl":  # the seed of its `fit`
        generator = torch.Generator().manual_seed(0)
        prompt_order = tuple(torch.randperm(len(task.support_labels), generator=generator).tolist())
    expected = reference(case, model_type, prompt_order)
    network = make_network(case, model_type)
    algorithm = algorithm_class(case.algorithm)(network, case.config)
    parameters = dict(network.named_parameters())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    for network.computation in COMPUTATIONS:
        classify = algorithm.fit(parameters, task.support, task.support_labels, task.n_way, STEPS)
        scores = classify(task.query)
        assert not scores.requires_grad
        torch.testing.assert_close(scores, expected.scores, rtol=1e-8, atol=1e-9)
    assert all(torch.equal(parameters[name], value) for name, value in before.items())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_on_classes_without_a_vector_a_multi_task_network_goes_by_their_means(model_type: str) -> None:
    setting = case("multitask")
    network, task = make_network(setting, model_type), make_task(setting)
    parameters = dict(network.named_parameters())
    algorithm = algorithm_class("multitask")(network, setting.config)
    for network.computation in COMPUTATIONS:
        scores = algorithm.fit(parameters, task.support, task.support_labels, 3, 0)(task.query)
        torch.testing.assert_close(scores, references.nearest_mean(network, task), rtol=1e-8, atol=1e-9)


def test_no_label_of_a_prompt_is_a_special_token(tmp_path: Path) -> None:
    """GPT-2's tokenizer ends in its end of text, behind which come the padding and the mask that it lacked."""
    backend = Tokenizer(models.WordLevel({f"w{number}": number for number in range(50)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<|role|>"])  # which is special, and has no role for the tokenizer
    backend.add_tokens(["word"])
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **end), 8, tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.convert_tokens_to_ids(["<|role|>", "word", "<|endoftext|>", "[PAD]", "[MASK]"]) == [*range(50, 55)]
    shape = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    options = {"pooling": "mean", "attention": "sdpa", "lora": False, "language_model": True, "seed": 0}
    for empty in (False, True):
        network = load_network(ModelConfig(config=shape), tokenizer, empty=empty, **options)
        assert network.skeleton().special_tokens == {50, 52, 53, 54}
    network = load_network(ModelConfig(config=shape), tokenizer, **options).double().eval()
    support, query = collate_tokens([[3, 54, 4], [54, 5]], 53, CPU), collate_tokens([[54, 7]], 53, CPU)
    task = TaskBatch(support, torch.tensor([1, 0]), query, torch.tensor([1]), 2)
    algorithm = algorithm_class("metaicl")(network, case("metaicl").config)
    order = torch.randperm(2, generator=torch.Generator().manual_seed(0)).tolist()
    expected = references.metaicl(network, task, order, special=[50, 52, 53, 54])
    scores = algorithm.fit(dict(network.named_parameters()), support, task.support_labels, 2, 0)(query)
    torch.testing.assert_close(scores, expected.scores, rtol=1e-8, atol=1e-9)


def test_reptile_is_used_as_first_order_maml() -> None:
    """At evaluation the query set is not seen."""
    task = make_task(case("fomaml"))
    expected = reference(case("fomaml"), "bert")
    network = make_network(case("reptile"), "bert")
    for network.computation in COMPUTATIONS:
        algorithm = algorithm_class("reptile")(network, case("reptile").config)
        classify = algorithm.fit(dict(network.named_parameters()), task.support, task.support_labels, 3, STEPS)
        torch.testing.assert_close(classify(task.query), expected.scores, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("rates", ["fixed", "layer_step"])
def test_evaluation_may_take_more_steps_than_training(rates: str) -> None:
    """Steps behind the last trained one go on at its rate."""
    trained = case("fomaml", "last_k", inner_steps=2, inner_rates=rates)
    network, task = make_network(trained, "bert"), make_task(trained)
    names = fast_names(network, "last_k")
    theta = references.double_parameters(network)
    rate = None
    if rates == "layer_step":
        order = [*names, "head.weight", "head.bias"]
        table = theta["learned.inner_lr"].view(-1, 2)

        def rate(name: str, step: int) -> Tensor:
            return table[order.index(name), min(step, 1)]

    expected = references.adapted_answer(network, theta, task, Setting(names, 4, RATE), rate=rate)
    algorithm = algorithm_class("fomaml")(network, trained.config)
    for network.computation in COMPUTATIONS:
        classify = algorithm.fit(dict(network.named_parameters()), task.support, task.support_labels, 3, 4)
        torch.testing.assert_close(classify(task.query), expected.scores, rtol=1e-8, atol=1e-9)


def test_prototypes_as_a_head_and_no_inner_rate_are_a_prototypical_network() -> None:
    """2 c f - |c|^2 is -|f - c|^2 up to |f|^2, which is the same for every class: the meta-gradients are equal."""
    still = case("protomaml", second_order=True, inner_lr=0.0)
    network, task = make_network(still, "bert"), make_task(still)
    parameters = dict(network.named_parameters())
    for network.computation in COMPUTATIONS:
        one, other = (
            whole(algorithm_class(each.algorithm)(network, each.config).task_gradient(parameters, task), parameters)
            for each in (still, case("protonet"))
        )
        assert relative_error(one, other)[0] < TOLERANCE


class Toy(Algorithm):
    """Scores are dot products with the class means: an algorithm that the package does not know."""

    def task_gradient(self, parameters: Parameters, task: TaskBatch, progress: float = 1.0) -> TaskResult:
        """See `Algorithm`."""
        theta = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        support, query = (self.network.features(theta, batch) for batch in (task.support, task.query))
        scores = query @ references.by_class(support, task.support_labels, task.n_way).t()
        loss = self.criterion(scores, task.query_labels)
        return TaskResult(references.gradients_of(loss, theta), float(loss.detach()), None, None)

    def fit(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int, inner_steps: int) -> Classifier:
        """See `Algorithm`."""
        centers = references.by_class(self.network.features(parameters, support), labels, n_way)
        return lambda query: self.network.features(parameters, query) @ centers.t()


def test_an_algorithm_from_outside_the_package_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """One class and one line."""
    monkeypatch.setattr("distmeta.meta.registry._ALGORITHMS", dict(registry._ALGORITHMS))
    register("toy", "tests.test_meta_algorithms:Toy")
    network = tiny_network("bert")
    network.computation = "packed"
    parameters = dict(network.named_parameters())
    learner = Learner(network.skeleton().train(), meta_config(algorithm="toy", lm_weight=0.0), "fp32", seed=0)
    work = [Work(index, task_batch(random_task(index)), None) for index in range(2)]
    losses = []
    for _ in range(12):
        gradients, metrics = learner.gradient(parameters, work, meta_batch_size=2)
        losses.append(metrics["query_loss"])
        parameters = {name: value - 0.005 * gradients.get(name, 0.0) for name, value in parameters.items()}
    assert losses[-1] < losses[0] - 0.1, losses


def test_names_of_algorithms_that_stay() -> None:
    assert registry.algorithm_names() == [
        "maml",
        "fomaml",
        "reptile",
        "anil",
        "metasgd",
        "protomaml",
        "protonet",
        "leopard",
        "metaicl",
        "multitask",
    ]


def test_rates_of_rows_that_a_task_does_not_use_stay_out() -> None:
    """Of Meta-SGD, which has a rate for every weight of the embedding; a learner puts them back where they belong."""
    setting = case("metasgd")
    network = make_network(setting, "bert")
    network.computation = "packed"
    task = make_task(setting)
    parameters = dict(network.named_parameters())
    result = algorithm_class("metasgd")(network, setting.config).task_gradient(parameters, task)
    used = torch.cat([task.support.input_ids.flatten(), task.query.input_ids.flatten()]).unique()
    width = parameters[network.embedding].shape[1]
    weights, rates = (result.gradients[name] for name in result.of_rows)
    assert weights.shape == (len(result.rows), width)
    assert rates.shape == (len(result.rows) * width,)
    assert len(used) <= len(result.rows) <= len(used) + 1  # and the padding's
    work = [Work(index, make_task(setting, index), None) for index in (4, 5)]
    found, _ = Learner(network, setting.config, "fp32", 0).gradient(parameters, work, 2)
    network.computation = "plain"
    expected, _ = Learner(network, setting.config, "fp32", 0).gradient(parameters, work, 2)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape == parameters[name].shape
    assert relative_error(found, expected)[0] < 1e-6
