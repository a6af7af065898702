"""The meta-gradient of weights that stay partitioned, with real DeepSpeed and gloo, on 1, 2 and 3 workers.

All of it is held against MAML's update as the paper has it; see `tests.sharded`.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import pytest
import torch
from torch import nn
from torch.func import functional_call

from distmeta.errors import UserError
from tests.sharded import (
    INNER_LR,
    INNER_STEPS,
    LEARNING_RATE,
    Tensors,
    difference,
    engine_of,
    gradient_of_first_step,
    in_float64,
    make,
    norm,
    outer_step,
    reference,
    reference_mean,
    share,
    tasks,
    texts,
)
from tests.workers import World, worlds_of


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, World]]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 1, 2, 3) as made:
        yield made


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
        pytest.param("bert", "chosen", TWO, marks=pytest.mark.slow),
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
