"""The learning core as a whole: the learner, what algebra says of the algorithms, precision and memory."""

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, BertConfig

from distmeta.compute.batch import TaskBatch, join
from distmeta.compute.precision import passes_in
from distmeta.meta import Learner, MetaLearner, Work, algorithm_class
from distmeta.meta.inner_loop import Fast, Problem, inner_loop, zero_head
from distmeta.models import Network
from tests import references
from tests.helpers import VOCABULARY, meta_config, random_task, task_batch, tiny_network
from tests.meta_cases import fast_names, relative_error
from tests.test_meta_algorithms import COMPUTATIONS


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("adapt", ["all", "lora", "head"])
@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_a_learner_without_weights_of_its_own_gives_the_reference(model_type, adapt, algorithm):
    """As a worker computes it: in fp32, the parameters from outside, the mean over a meta-batch."""
    rank = 4 if adapt == "lora" else 0
    network = tiny_network(model_type, lora_rank=rank, attention="eager" if algorithm == "maml" else "sdpa")
    tasks = [task_batch(random_task(index)) for index in range(2)]
    double = tiny_network(model_type, lora_rank=rank).double()
    setting = references.Setting(fast_names(double, adapt), 3, 0.05, algorithm == "maml")
    answers = [references.maml(double, task, setting) for task in tasks]
    expected = {name: sum(answer.gradients[name] for answer in answers) / 2 for name in answers[0].gradients}
    config = meta_config(algorithm=algorithm, adapt=adapt, inner_lr=0.05, inner_steps=3, lm_weight=0.0)
    skeleton = network.skeleton()
    for skeleton.computation in COMPUTATIONS:
        found, metrics = Learner(skeleton, config, "fp32", seed=0).gradient(
            dict(network.named_parameters()), [Work(i, task, None) for i, task in enumerate(tasks)], meta_batch_size=2
        )
        assert found.keys() == expected.keys()
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        assert relative_error({name: value.double() for name, value in found.items()}, expected)[0] < 2e-4
        assert metrics["query_loss"] == pytest.approx(sum(answer.query_loss for answer in answers) / 2, abs=1e-6)
        for step in range(3):
            wanted = sum(answer.support_losses[step] for answer in answers) / 2
            assert metrics[f"support_loss/{step}"] == pytest.approx(wanted, abs=1e-6)
        assert metrics["tasks"] == 2


def test_second_order_is_not_first_order():
    network = tiny_network("bert")
    parameters, batch = dict(network.named_parameters()), task_batch(random_task())
    config = meta_config(inner_lr=0.05, inner_steps=3)
    first, second = (
        algorithm_class(name)(network, config).task_gradient(parameters, batch) for name in ("fomaml", "maml")
    )
    name = "model.bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(first.gradients[name], second.gradients[name], rtol=1e-3)


@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_the_meta_parameters_are_left_as_they_were(computation):
    """Also where fast weights are updated in place."""
    network = tiny_network("bert")
    network.computation = computation
    parameters = {name: value.detach().clone() for name, value in network.named_parameters()}
    before = {name: value.clone() for name, value in parameters.items()}
    batch = task_batch(random_task())
    for name in ("maml", "fomaml", "reptile", "protomaml"):
        algorithm = algorithm_class(name)(network, meta_config(inner_lr=0.05, inner_steps=3))
        algorithm.task_gradient(parameters, batch)
        algorithm.fit(parameters, batch.support, batch.support_labels, 3, 3)(batch.query)
        assert all(torch.equal(parameters[name], before[name]) for name in before), name


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("computation", ["plain", "packed"])
def test_second_order_works_with_and_without_dropout(model_type, dropout, computation):
    """Case A1: fused attention has no second derivative, which shows only while dropout is off.

    Steps that are computed again drop what they dropped before.
    """
    network = tiny_network(model_type, dropout=dropout)
    skeleton = network.skeleton().train()
    skeleton.computation = computation
    found = []
    for recompute in (False, True):
        config = meta_config(algorithm="maml", inner_steps=2, lm_weight=0.0, recompute=recompute)
        gradients, metrics = Learner(skeleton, config, "fp32", seed=0).gradient(
            dict(network.named_parameters()), [Work(0, task_batch(random_task()), None)], meta_batch_size=1
        )
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
        assert metrics["query_loss"] > 0
        found.append(gradients)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_shares_add_up_to_the_whole_whoever_computes_them(computation):
    network = tiny_network("bert", dropout=0.1)
    network.computation = computation
    parameters = dict(network.named_parameters())
    learner = Learner(network.skeleton().train(), meta_config(lm_weight=0.0), "fp32", seed=3)
    work = [Work(index, task_batch(random_task(index)), None) for index in range(4)]
    together, metrics = learner.gradient(parameters, work, meta_batch_size=4)
    shares = [learner.gradient(parameters, part, meta_batch_size=4) for part in (work[1:], work[:1])]
    for name, gradient in together.items():
        assert torch.allclose(gradient, sum(share[0][name] for share in shares), atol=1e-7), name
    assert metrics["query_loss"] == pytest.approx(sum(share[1]["query_loss"] for share in shares))


@pytest.mark.parametrize(
    ("adapt", "training", "passes"), [("head", True, 1), ("head", False, 1), ("all", True, 4), ("all", False, 3)]
)
def test_features_are_computed_no_more_often_than_they_change(adapt, training, passes):
    """In four steps: once where nothing below the head moves; the first step's again in the second, without dropout."""
    network = tiny_network("bert", dropout=0.1).train(training)
    network.computation = "packed"
    batch = task_batch(random_task())
    counted = []
    network.base.register_forward_hook(lambda *_: counted.append(1))
    algorithm = algorithm_class("fomaml")(network, meta_config(adapt=adapt, inner_steps=4))
    algorithm.fit(dict(network.named_parameters()), batch.support, batch.support_labels, 3, 4)
    assert len(counted) == passes


@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_bf16_keeps_fast_weights_and_small_updates(computation):
    """Case C2: the arithmetic is bf16, what is updated is fp32."""
    network = tiny_network("bert", attention="sdpa")
    network.computation = computation
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    batch = task_batch(random_task())
    start = Fast(
        {name: parameters[name] for name in network.adapted_names("all")},
        zero_head((3, network.hidden_size), next(iter(parameters.values()))),
    )
    problem = Problem(
        network,
        parameters,
        batch.support,
        batch.support_labels,
        functional.cross_entropy,
        meta_config(),
        lambda name, step: 0.05,
        head_is_zero=True,
    )
    with passes_in("bf16"):
        *_, fast = inner_loop(problem, start, 3)
    norms = [name for name in fast.body if "LayerNorm.weight" in name]
    assert norms
    for name in norms:
        change = (fast.body[name] - parameters[name]).abs()
        assert fast.body[name].dtype == torch.float32
        assert change.max() < 2**-8, "large enough for bf16 to hold: the test would say nothing"
        assert (change > 0).float().mean() > 0.9, name


# What algebra says.


def regression_tasks(count: int) -> list[TaskBatch]:
    """Random regression tasks: (6, 3) -> (6, 2)."""
    generator = torch.Generator().manual_seed(0)

    def half(width: int) -> torch.Tensor:
        return torch.randn(6, width, generator=generator, dtype=torch.float64)

    return [TaskBatch(half(3), half(2), half(3), half(2), 0) for _ in range(count)]


def perceptron() -> nn.Module:
    """(n, 3) -> (n, 2)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def trained(settings: dict[str, Any], tasks: list[TaskBatch], rate: float) -> list[torch.Tensor]:
    """Weights after a step of plain descent along the meta-gradient for each task."""
    learner = MetaLearner(perceptron(), loss=functional.mse_loss, **settings)
    optimizer = torch.optim.SGD(learner.parameters(), rate)
    for task in tasks:
        optimizer.zero_grad()
        learner.backward([task])
        optimizer.step()
    return list(learner.parameters())


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"algorithm": "reptile", "inner_steps": 1, "inner_lr": 0.03}, "all"),
        ({"algorithm": "maml", "inner_steps": 3, "inner_lr": 0.0}, "query"),
        ({"algorithm": "maml", "inner_steps": 3, "inner_lr": 0.0, "recompute": True}, "query"),
        ({"algorithm": "fomaml", "inner_steps": 3, "inner_lr": 0.0}, "query"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_where_there_is_nothing_to_adapt_meta_learning_is_plain_training(settings, seen):
    """Reptile with one inner step follows the loss of the whole task; MAML with no inner rate that of the query set."""
    tasks = regression_tasks(10)
    plain = perceptron()
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for task in tasks:
        inputs = torch.cat([task.support, task.query]) if seen == "all" else task.query
        labels = torch.cat([task.support_labels, task.query_labels]) if seen == "all" else task.query_labels
        optimizer.zero_grad()
        ((plain(inputs) - labels) ** 2).mean().backward()
        optimizer.step()
    for found, wanted in zip(trained(settings, tasks, 0.1), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    start = perceptron()
    assert not torch.allclose(next(start.parameters()), next(plain.parameters()), rtol=0.01)


def test_reptile_moves_to_where_plain_descent_ends():
    """With an outer rate of the inner one, one Reptile step is the inner loop itself (Nichol et al., algorithm 1)."""
    task = regression_tasks(1)[0]
    plain = perceptron()
    optimizer = torch.optim.SGD(plain.parameters(), 0.03)
    for _ in range(5):
        optimizer.zero_grad()
        inputs, labels = torch.cat([task.support, task.query]), torch.cat([task.support_labels, task.query_labels])
        ((plain(inputs) - labels) ** 2).mean().backward()
        optimizer.step()
    found = trained({"algorithm": "reptile", "inner_steps": 5, "inner_lr": 0.03}, [task], 0.03)
    for one, other in zip(found, plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


# Memory.


class LiveBytes(TorchDispatchMode):
    """While it is entered, counts the bytes of all tensors that were made and still live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_bytes(call: Any) -> int:
    """The most bytes of tensors that lived at a time while it ran, beside those that were there before."""
    with LiveBytes() as counted:
        call()
    return counted.peak


def test_live_bytes_are_counted():
    """Four numbers of 4 kB, one of which goes before the last one comes; a view is nothing of its own."""

    def work() -> None:
        kept = [torch.ones(1000), torch.ones(1000)]
        kept.append(kept[0].view(10, 100))
        del kept[1]
        kept.append(torch.ones(1000).add_(1))

    assert peak_bytes(work) == 8000


@pytest.mark.parametrize(
    ("computation", "algorithm"),
    [
        *((computation, name) for computation in ("packed", "plain") for name in ("fomaml", "fit", "reptile", "adam")),
        ("packed", "side by side"),
        ("packed", "metasgd"),
    ],
)
def test_first_order_memory_does_not_grow_with_inner_steps(computation, algorithm):
    """Case A4: one step's graph at a time.

    Where fast weights are updated in place, 2, 10 and 40 steps take the same. Elsewhere (the plain path, and whatever
    keeps sums of gradients) the first steps spare a few copies of the weights, as theta itself is the start.
    """
    network = tiny_network("bert", attention="sdpa").train()
    network.computation = computation
    if algorithm == "metasgd":
        network.learn(algorithm_class("metasgd").learned(network, meta_config(inner_lr=0.01)))
    parameters = dict(network.named_parameters())
    batch = task_batch(random_task(n_way=5, k_shot=5))

    def peak(inner_steps: int) -> int:
        optimizer = "adam" if algorithm == "adam" else "sgd"
        config = meta_config(inner_lr=0.01, inner_steps=inner_steps, inner_optimizer=optimizer, second_order=False)
        learner = algorithm_class(algorithm if algorithm in ("reptile", "metasgd") else "fomaml")(network, config)
        if algorithm == "fit":
            return peak_bytes(
                lambda: learner.fit(parameters, batch.support, batch.support_labels, 5, inner_steps)(batch.query)
            )
        task = join([batch, batch]) if algorithm == "side by side" else batch
        return peak_bytes(lambda: learner.task_gradient(parameters, task))

    peaks = [peak(steps) for steps in (2, 10, 40)]
    print(f"\n{algorithm} {computation}: peak at 2, 10 and 40 inner steps {peaks} bytes")
    assert peaks[2] <= 1.01 * peaks[1]
    if computation == "packed" and algorithm in ("fomaml", "fit", "side by side"):
        assert max(peaks) <= 1.05 * min(peaks)
    copies = 1 if computation == "plain" and algorithm != "adam" else 5
    adapted = sum(parameters[name].nbytes for name in network.adapted_names("all"))
    assert peaks[2] - peaks[0] <= 1.05 * copies * adapted


@pytest.mark.parametrize(
    ("computation", "layers", "width"),
    [("plain", 2, 32), ("packed", 2, 32), pytest.param("packed", 4, 256, marks=pytest.mark.slow)],
)
def test_second_order_memory_with_recomputation(computation, layers, width):
    """At 20 steps at most half as much again as at 5, where keeping the graph takes three times as much: where
    activations are what counts, and where fast weights are."""
    shape = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        intermediate_size=4 * width,
    )
    model = AutoModel.from_config(shape, attn_implementation="eager", add_pooling_layer=False)
    network = Network(model, "mean", computation=computation).eval()
    parameters = dict(network.named_parameters())
    batch = task_batch(random_task(n_way=5, k_shot=1 if width > 32 else 5))

    def peak(inner_steps: int, recompute: bool) -> int:
        config = meta_config(algorithm="maml", inner_lr=0.01, inner_steps=inner_steps, recompute=recompute)
        learner = algorithm_class("maml")(network, config)
        return peak_bytes(lambda: learner.task_gradient(parameters, batch))

    kept, recomputed = ([peak(steps, each) for steps in (5, 20)] for each in (False, True))
    print(f"\n{computation}: peak at 5 and 20 inner steps: kept {kept}, recomputed {recomputed} bytes")
    assert kept[1] > 2.5 * kept[0]
    assert recomputed[1] < 1.5 * recomputed[0]
    assert recomputed[0] < kept[0]
