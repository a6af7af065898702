"""Meta-learning on weights that stay partitioned, with real DeepSpeed and gloo, on 1, 2 and 3 workers.

All of it is held against MAML's update as the paper has it, written out here in autograd, in float64 and one process.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.sharded import ShardedEngine
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from distmeta.meta.language_model import LanguageModelBatch
from distmeta.models import Network, TaskBatch, TokenBatch
from distmeta.plan.states import PartitionedStates
from tests.helpers import random_task, state_on_first_worker, task_batch, tiny_network
from tests.test_plan import HeldBytes
from tests.workers import World

CPU = torch.device("cpu")
INNER_LR, INNER_STEPS = 0.05, 3
LEARNING_RATE, WEIGHT_DECAY, CLIPPING = 1e-3, 0.1, 0.1

Tensors = dict[str, torch.Tensor]


def make(model_type: str, adapt: str, dropout: float = 0.0) -> tuple[Network, list[str]]:
    """A network, and the names of what is adapted beside the head."""
    network = tiny_network(model_type, lora_rank=4 if adapt == "lora" else 0, dropout=dropout)
    names = [name for name, _ in network.named_parameters()]
    if adapt == "lora":
        return network, [name for name in names if name.startswith("lora.")]
    if adapt == "bias":
        # In groups of like length a task of one text takes fewer passes than others: the engine must not do that.
        network.computation = "bucketed"
        return network, [n for n in names if n.endswith(".bias") or "LayerNorm" in n or ".ln_" in n]
    network.computation = "packed"
    # The word embedding is tied to the language model's head, so two modules own it.
    chosen = ("word_embeddings.weight", "wte.weight", "intermediate.dense.weight", "mlp.c_fc.weight")
    return network, [n for n in names if n.endswith(chosen)]


def tasks(count: int, first: int = 0) -> list[TaskBatch]:
    return [task_batch(random_task(first + index)) for index in range(count)]


def share(everything: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    """What this worker gets where they get `counts`."""
    rank = torch.distributed.get_rank()
    start = sum(counts[:rank])
    return list(everything[start : start + counts[rank]])


# The reference


def features(network: Network, parameters: Tensors, batch: TokenBatch) -> torch.Tensor:
    """Mean of the last hidden states, with W + alpha / r * B A for an adapted W."""
    weights = {name.removeprefix("model."): p for name, p in parameters.items() if name.startswith("model.")}
    for name, a in parameters.items():
        if name.startswith("lora.") and name.endswith("/a"):
            target, start, _ = name.removeprefix("lora.model/").rsplit("/", 2)
            target, update = target.replace("/", "."), 2.0 * parameters[f"{name[:-1]}b"] @ a  # alpha 8, rank 4
            if "c_attn" in target:
                update = nn.functional.pad(update.t(), (int(start), 64 - int(start)))
            weights[target] = weights[target] + update
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "output_hidden_states": True}
    hidden = functional_call(network.model, weights, kwargs=arguments).hidden_states[-1]
    return torch.stack([row[: int(n)].mean(0) for row, n in zip(hidden, batch.attention_mask.sum(1), strict=True)])


def reference(
    network: Network, theta: Tensors, adapted: list[str], task: TaskBatch, second_order: bool, seed: int | None = None
) -> tuple[Tensors, float]:
    """A task's meta-gradient, by a backward pass through the inner steps, and its query loss."""
    theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
    dtype = next(iter(theta.values())).dtype

    def loss(phi: Tensors, batch: TokenBatch, labels: torch.Tensor, number: int) -> torch.Tensor:
        if seed is not None:
            torch.manual_seed(seed + number)
        scores = features(network, phi, batch) @ phi["head.weight"].t() + phi["head.bias"]
        return -scores.log_softmax(1)[torch.arange(len(labels)), labels].mean()

    head = {
        "head.weight": torch.zeros(task.n_way, network.hidden_size, dtype=dtype, requires_grad=True),
        "head.bias": torch.zeros(task.n_way, dtype=dtype, requires_grad=True),
    }
    phi = {**theta, **head}
    fast = [*adapted, *head]
    for step in range(INNER_STEPS):
        support = loss(phi, task.support, task.support_labels, step)
        gradients = torch.autograd.grad(
            support, [phi[n] for n in fast], create_graph=True, allow_unused=True, materialize_grads=True
        )
        if not second_order:
            gradients = tuple(gradient.detach() for gradient in gradients)
        phi = phi | {n: phi[n] - INNER_LR * gradient for n, gradient in zip(fast, gradients, strict=True)}
    query = loss(phi, task.query, task.query_labels, INNER_STEPS)
    found = torch.autograd.grad(query, list(theta.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(theta, found, strict=True)), float(query.detach())


def reference_mean(
    network: Network, theta: Tensors, adapted: list[str], batch: list[TaskBatch], second_order: bool
) -> tuple[Tensors, float]:
    results = [reference(network, theta, adapted, task, second_order) for task in batch]
    mean = {name: sum(gradients[name] for gradients, _ in results) / len(batch) for name in theta}
    return mean, sum(loss for _, loss in results) / len(batch)


def in_float64(network: Network) -> tuple[Network, Tensors]:
    network.model.double()
    return network, {name: parameter.detach().double() for name, parameter in network.named_parameters()}


def norm(values: Tensors) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values.values()))


def difference(one: Tensors, other: Tensors) -> float:
    """L2 norm of the difference, as a share of the other's."""
    assert one.keys() == other.keys()
    return norm({name: one[name].double() - other[name] for name in one}) / norm(other)


# The workers


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    folder = tmp_path_factory.mktemp("worlds")
    made = {}
    for size in (1, 2, 3):
        (folder / str(size)).mkdir()
        made[size] = World(size, folder / str(size))
    yield made
    for world in made.values():
        world.close()


def engine_of(
    network: Network, adapted: Sequence[str], clipping: float = 0.0, state: EngineState | None = None, **config: Any
) -> ShardedEngine:
    settings = EngineConfig(**{"zero_stage": 3, "gradient_clipping": clipping, **config})
    return ShardedEngine(network, settings, adapted_names=adapted, weight_decay=WEIGHT_DECAY, device=CPU, state=state)


def outer_step(
    engine: ShardedEngine, batch: list[TaskBatch], counts: Sequence[int], second_order: bool, **more: Any
) -> tuple[float, float]:
    """Norm of the gradient, and the mean query loss over all workers."""
    gradient_norm, metrics = engine.meta_gradient_step(
        share(batch, counts),
        len(batch),
        LEARNING_RATE,
        inner_lr=INNER_LR,
        inner_steps=INNER_STEPS,
        second_order=second_order,
        **more,
    )
    loss = torch.tensor(metrics.get("query_loss", 0.0), dtype=torch.float64)
    torch.distributed.all_reduce(loss)
    return gradient_norm, float(loss)


def gradient_of_first_step(engine: ShardedEngine) -> Tensors:
    """What AdamW got: its mean is a tenth of it after one step."""
    state = state_on_first_worker(engine)
    return {} if state is None else {name: 10 * value.double() for name, value in state.exp_avg.items()}


def _one_step(model_type: str, adapt: str, second_order: bool, counts: Sequence[int]) -> tuple[Tensors, float, float]:
    engine = engine_of(*make(model_type, adapt))
    gradient_norm, loss = outer_step(engine, tasks(sum(counts)), counts, second_order)
    gradient = gradient_of_first_step(engine)
    engine.close()
    return gradient, gradient_norm, loss


ONE, TWO, THREE = (2,), (2, 1), (1, 0, 1)  # tasks of each worker


@pytest.mark.parametrize(
    ("model_type", "adapt", "counts"),
    [
        *(
            pytest.param(model_type, adapt, ONE, marks=pytest.mark.slow)
            for model_type, adapt in product(("bert", "gpt2"), ("lora", "bias", "chosen"))
            if (model_type, adapt) != ("bert", "lora")
        ),
        ("bert", "lora", ONE),
        ("bert", "chosen", TWO),
        ("gpt2", "bias", THREE),
    ],
)
def test_meta_gradient_equals_the_reference(
    worlds: dict[int, World], model_type: str, adapt: str, counts: tuple[int, ...]
) -> None:
    network, adapted = make(model_type, adapt)
    exact = in_float64(network)
    batch = tasks(sum(counts))
    first, first_loss = reference_mean(*exact, adapted, batch, second_order=False)
    second, _ = reference_mean(*exact, adapted, batch, second_order=True)
    assert difference(first, second) > 0.1

    gradient, gradient_norm, loss = worlds[len(counts)].run(_one_step, model_type, adapt, False, counts)
    found = difference(gradient, first)
    assert found < 3e-6
    assert loss == pytest.approx(first_loss, abs=1e-6)
    assert gradient_norm == pytest.approx(norm(first), rel=1e-5)

    gradient, _, _ = worlds[len(counts)].run(_one_step, model_type, adapt, True, counts)
    print(f"{model_type} {adapt} {counts}: first order {found:.1e}, second order {difference(gradient, second):.1e}")
    assert difference(gradient, second) < 1e-4


# Language modelling, and evaluation


def texts() -> list[LanguageModelBatch]:
    """Three, of which the second asks for nothing."""
    batches = []
    for index, count in enumerate((4, 0, 2)):
        tokens = task_batch(random_task(index)).support
        rows, columns = torch.arange(count), torch.ones(count, dtype=torch.long)
        batches.append(LanguageModelBatch(tokens, (rows, columns), 30 + torch.arange(count)))
    return batches


def _with_text(model_type: str) -> tuple[Tensors, float]:
    engine = engine_of(*make(model_type, "bias"))
    step = {"inner_lr": INNER_LR, "inner_steps": INNER_STEPS}
    mine = {"texts": share(texts(), (2, 1)), "lm_weight": 0.5}
    _, metrics = engine.meta_gradient_step(share(tasks(2), (0, 2)), 2, LEARNING_RATE, **step, **mine)
    gradient = gradient_of_first_step(engine)
    engine.close()
    return gradient, metrics["lm_loss"]


@pytest.mark.parametrize("model_type", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_language_modelling_is_added(worlds: dict[int, World], model_type: str) -> None:
    network, adapted = make(model_type, "bias")
    network, theta = in_float64(network)
    expected, _ = reference_mean(network, theta, adapted, tasks(2), second_order=False)
    losses = []
    for text in texts():
        if len(text.targets):
            weights = {n.removeprefix("model."): value.requires_grad_() for n, value in theta.items()}
            ids, mask = text.tokens.input_ids, text.tokens.attention_mask
            logits = functional_call(network.model, weights, kwargs={"input_ids": ids, "attention_mask": mask}).logits
            losses.append(nn.functional.cross_entropy(logits[text.positions], text.targets))
            found = torch.autograd.grad(losses[-1], list(theta.values()))
            for name, gradient in zip(theta, found, strict=True):
                expected[name] += 0.5 * gradient / 2
    gradient, loss = worlds[2].run(_with_text, model_type)
    assert difference(gradient, expected) < 3e-6
    assert loss == pytest.approx(float(losses[0].detach()) / 2, abs=1e-6)  # the first worker's share


def _offloaded(offload: bool) -> EngineState | None:
    """After a step with text, and one without, in which the language model's head has no gradient."""
    engine = engine_of(*make("bert", "bias"), offload_optimizer=offload)
    outer_step(engine, tasks(2), (1, 1), second_order=False, texts=share(texts(), (2, 1)))
    outer_step(engine, tasks(2), (1, 1), second_order=False)
    state = state_on_first_worker(engine)
    engine.close()
    return state


def test_offloading_trains_the_same(worlds: dict[int, World]) -> None:
    offloaded, plain = (worlds[2].run(_offloaded, offload) for offload in (True, False))
    for key in ("weights", "exp_avg", "exp_avg_sq"):
        found, expected = getattr(offloaded, key), getattr(plain, key)
        assert difference(dict(found), dict(expected)) < 1e-6


def _scores() -> torch.Tensor:
    engine = engine_of(*make("bert", "lora"))
    mine = share(tasks(3), (1, 2))
    scores = engine.query_scores(mine, inner_lr=INNER_LR, inner_steps=INNER_STEPS)
    assert len(scores) == len(mine)
    losses = [nn.functional.cross_entropy(s, task.query_labels) for s, task in zip(scores, mine, strict=True)]
    loss = sum(losses).detach()
    torch.distributed.all_reduce(loss)
    engine.close()
    return loss


def test_query_scores_are_those_after_adaptation(worlds: dict[int, World]) -> None:
    network, adapted = make("bert", "lora")
    _, expected = reference_mean(*in_float64(network), adapted, tasks(3), second_order=False)
    assert float(worlds[2].run(_scores)) == pytest.approx(3 * expected, abs=1e-5)


# Several steps


STEPS, HALFWAY = 3, 1


def _train(first: int, last: int, saved: EngineState | None) -> tuple[EngineState | None, list[tuple[float, float]]]:
    counts = {1: (3,), 2: (1, 2)}[torch.distributed.get_world_size()] if torch.distributed.is_initialized() else (3,)
    engine = engine_of(*make("bert", "lora"), clipping=CLIPPING, state=saved)
    results = [outer_step(engine, tasks(3, 3 * step), counts, second_order=False) for step in range(first, last)]
    state = state_on_first_worker(engine)
    engine.close()
    return state, results


def plain_training() -> tuple[Tensors, list[tuple[float, float]]]:
    """Mean of the gradients at the end, and norms and losses, by torch's AdamW in float64."""
    network, adapted = make("bert", "lora")
    network, theta = in_float64(network)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in theta.values() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in theta.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    results = []
    for step in range(STEPS):
        gradients, loss = reference_mean(network, theta, adapted, tasks(3, 3 * step), second_order=False)
        for name, value in theta.items():
            value.grad = gradients[name]
        results.append((float(nn.utils.clip_grad_norm_(theta.values(), CLIPPING)), loss))
        optimizer.step()
    return {name: optimizer.state[value]["exp_avg"] for name, value in theta.items()}, results


def test_training_equals_plain_adamw_and_resumes_on_another_number_of_workers(worlds: dict[int, World]) -> None:
    means, expected = plain_training()
    state, results = worlds[2].run(_train, 0, STEPS, None)
    assert state.step == STEPS
    assert difference(dict(state.exp_avg), means) < 1e-4
    halfway, before = worlds[1].run(_train, 0, HALFWAY, None)
    resumed, after = worlds[2].run(_train, HALFWAY, STEPS, halfway)
    assert difference(dict(resumed.exp_avg), means) < 1e-4
    for found in (results, before + after):
        assert [n for n, _ in found] == pytest.approx([n for n, _ in expected], rel=1e-4)
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], abs=1e-5)


def _handed_over() -> tuple[EngineState | None, EngineState | None]:
    """A state, and what an engine with whole weights makes of it, which a run may go on with."""
    partitioned, _ = _train(0, 1, None)
    network, _ = make("bert", "lora")
    engine = Engine(network, EngineConfig(), weight_decay=WEIGHT_DECAY, device=CPU, state=partitioned)
    whole = state_on_first_worker(engine)
    engine.close()
    return partitioned, whole


def test_a_run_may_go_on_with_whole_weights(worlds: dict[int, World]) -> None:
    partitioned, whole = worlds[1].run(_handed_over)
    for key in ("weights", "exp_avg", "exp_avg_sq"):
        found, expected = getattr(whole, key), getattr(partitioned, key)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def _bad_step() -> tuple[float, bool, float]:
    network, adapted = make("bert", "lora")
    engine = engine_of(network, adapted, clipping=CLIPPING)
    before = state_on_first_worker(engine)
    bad = tasks(2)
    if torch.distributed.get_rank() == 0:
        adapter = network.lora_scale
        network.lora[0].scale = math.nan
    skipped, _ = outer_step(engine, bad, (1, 1), second_order=True)
    if torch.distributed.get_rank() == 0:
        network.lora[0].scale = adapter
    after = state_on_first_worker(engine)
    same = after is None or all(torch.equal(after.weights[name], before.weights[name]) for name in after.weights)
    good, _ = outer_step(engine, bad, (1, 1), second_order=True)
    engine.close()
    return skipped, same, good


def test_a_gradient_that_is_not_finite_changes_nothing_and_leaves_nothing_behind(worlds: dict[int, World]) -> None:
    skipped, same, good = worlds[2].run(_bad_step)
    assert (skipped, same) == (math.inf, True)
    network, adapted = make("bert", "lora")
    expected, _ = reference_mean(*in_float64(network), adapted, tasks(2), second_order=True)
    assert good == pytest.approx(norm(expected), rel=1e-4)


# Dropout


def _with_dropout() -> Tensors:
    network, adapted = make("bert", "bias", dropout=0.3)
    engine = engine_of(network.train(), adapted)
    outer_step(engine, tasks(1), (1,), second_order=True, seeds=[7])
    gradient = gradient_of_first_step(engine)
    engine.close()
    return gradient


@pytest.mark.slow
def test_both_ends_of_a_difference_drop_what_the_inner_step_dropped(worlds: dict[int, World]) -> None:
    network, adapted = make("bert", "bias", dropout=0.3)
    network.train()
    theta = {name: parameter.detach() for name, parameter in network.named_parameters()}
    expected, _ = reference(network, theta, adapted, tasks(1)[0], second_order=True, seed=7)
    assert difference(worlds[1].run(_with_dropout), expected) < 1e-4


# Memory


class MostGathered(TorchDispatchMode):
    """The most numbers that the parameters of a network hold at once, looked at in every operation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.parameters = list(network.parameters())
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.most = max(self.most, sum(parameter.numel() for parameter in self.parameters))
        return function(*args, **(kwargs or {}))


class _Watched(ShardedEngine):
    """Notes what is held at most until AdamW, which works on partitions, begins its update."""

    held: HeldBytes | None = None
    most = 0

    def _apply(self, learning_rate: float) -> float:
        self.most = self.held.most if self.held else 0
        return super()._apply(learning_rate)


def _memory() -> tuple[int, int, int, int]:
    """Numbers of the network, of its largest module, gathered at most, and bytes held at most beside the rest."""
    config = BertConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=16,
    )
    network = Network(BertModel(config, add_pooling_layer=False), "mean", lora_rank=2)
    numbers = sum(parameter.numel() for parameter in network.parameters())
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in network.modules())
    settings = EngineConfig(zero_stage=3, gradient_clipping=0)
    # The lowest that is adapted is the one of which DeepSpeed does not see where its backward pass ends.
    adapted = ["model.encoder.layer.0.attention.self.query.weight"]
    engine = _Watched(network, settings, adapted_names=adapted, weight_decay=0.0, device=CPU)
    ids, labels = torch.tensor([[5, 6], [7, 8]]), torch.tensor([0, 1])
    batch = TokenBatch(ids, torch.ones_like(ids), torch.full((2,), -1), 4)
    task = TaskBatch(batch, labels, batch, labels, 2)
    # DeepSpeed may do otherwise when it has seen the order of the modules once.
    for watched in (False, True):
        gc.collect()
        with ExitStack() as stack:
            if watched:
                gathered, engine.held = (stack.enter_context(mode) for mode in (MostGathered(network), HeldBytes()))
                before = engine.held.now
            mine = share([task], (1, 0))
            engine.meta_gradient_step(mine, 1, LEARNING_RATE, inner_lr=INNER_LR, inner_steps=2, second_order=True)
    assert not engine._deltas.values, "fast weights are held between two steps"
    engine.close()
    return numbers, largest, gathered.most, engine.most - before


def test_no_worker_ever_holds_the_network(worlds: dict[int, World]) -> None:
    numbers, largest, gathered, extra = worlds[2].run(_memory)
    print(f"of {numbers} numbers at most {gathered} gathered, {extra} bytes held beside the partitions")
    # The three embeddings and their norm are held to the end of a backward pass, since nothing goes back through them.
    assert largest <= gathered < 1.1 * largest < 0.1 * numbers
    # The rest are activations, gradients on their way, and the deltas.
    states = PartitionedStates(numbers, 0, 2, adapted=64 * 64, largest=largest, fast_copies=2 + 6)
    print(f"the formula has {states.peak - states.resident:.0f} bytes")
    assert states.peak - states.resident == pytest.approx(extra, rel=0.3)


# What is refused


def test_what_cannot_work_is_refused(worlds: dict[int, World]) -> None:
    network, adapted = make("bert", "lora")
    with pytest.raises(UserError, match=r"engine\.zero_stage 3, not 2"):
        engine_of(network, adapted, zero_stage=2)
    with pytest.raises(UserError, match=r"lora\.x, which is to be adapted, is no parameter"):
        worlds[2].run(_adapt_nothing)
    with pytest.raises(UserError, match=r"bf16 rounds away: set engine\.precision to fp32"):
        worlds[2].run(_second_order_in_bf16)


def _adapt_nothing() -> None:
    engine_of(make("bert", "lora")[0], ["lora.x"])


def _second_order_in_bf16() -> None:
    engine = engine_of(*make("bert", "lora"), precision="bf16")
    try:
        outer_step(engine, tasks(2), (1, 1), second_order=True)
    finally:
        engine.close()
