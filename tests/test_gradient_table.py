"""The table: algorithm x adapted set x ZeRO stage x workers, as a run trains, against `tests.references` in float64.

    pytest -m "slow or not slow" -s tests/test_gradient_table.py

prints it. An error is that of the gradient which AdamW gets, averaged over the workers and in fp32 throughout: the L2
norm, over all weights, of the difference to the mean over the tasks of what the paper says, as a share of the latter's.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from distmeta.config import Config
from distmeta.engine.config import EngineConfig
from distmeta.meta import Learner, Work, algorithm_class
from distmeta.meta.algorithm import Parameters
from distmeta.meta.learner import dropout_seed
from distmeta.recipes import filled
from distmeta.train.phases import PhaseClock
from distmeta.train.stepper import Partitioned, Whole
from tests.meta_cases import ADAPTED, Case, case, make_network, make_task, paper_answer
from tests.workers import World

CPU = torch.device("cpu")
TASKS = (4, 5, 6)  # on two workers the first has two of them
SEED = 3
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 0.1


def bound(row: Case, stage: Any) -> float:
    """The largest error of a cell."""
    if stage == PARTITIONED and row.algorithm == "maml":
        return 5e-5  # second order by central differences
    return 1e-5 if row.algorithm in ("protomaml", "leopard") else 2e-6  # their head makes more of rounding


PARTITIONED = "3 partitioned"
STAGES = (0, 1, 2, 3, PARTITIONED)
WORKERS = (1, 2)
PROTOMAML = {"inner_lr": 0.01}
"""Its scores are differences of large numbers, whose rounding grows with each step of the usual rate to 1e-3."""
ROWS = [
    *(case(name, adapt) for name in ("maml", "fomaml", "metasgd", "leopard") for adapt in ADAPTED),
    *(case("reptile", adapt) for adapt in ADAPTED if adapt != "head"),  # which would train nothing
    *(case("protomaml", adapt, **PROTOMAML) for adapt in ADAPTED),
    *(case("protomaml", adapt, **PROTOMAML, second_order=True) for adapt in ADAPTED),
    *(case("leopard", adapt, second_order=True) for adapt in ADAPTED),
    # These adapt the head alone, or nothing.
    case("anil", "head"),
    case("protonet", "head"),
    case("protonet", "head", distance="cosine", learn_temperature=True),
    case("metaicl", "head"),
    case("multitask", "head"),
]
FAST = {
    (case("maml", "all"), 0, 2),
    (case("maml", "lora"), 3, 2),
    (case("fomaml", "all"), 1, 2),
    (case("fomaml", "all"), 2, 2),
    (case("fomaml", "bias"), 3, 2),
    (case("fomaml", "regex:attention|attn"), PARTITIONED, 2),
    (case("reptile", "all"), 2, 2),
    (case("anil", "head"), 3, 2),
    (case("metasgd", "last_k"), 1, 2),
    (case("protomaml", "bias", **PROTOMAML), 0, 2),
    (case("protonet", "head"), 2, 2),
    (case("leopard", "last_k"), 3, 2),
    (case("metaicl", "head"), 1, 2),
    (case("multitask", "head"), 2, 2),
}
"""The cells that do not take minutes together."""


def cells() -> Iterator[Any]:
    for row in ROWS:
        for workers in WORKERS:
            for stage in STAGES:
                if stage != PARTITIONED or row.algorithm in ("maml", "fomaml"):
                    marks = () if (row, stage, workers) in FAST else pytest.mark.slow
                    yield pytest.param(row, stage, workers, marks=marks, id=f"{row}-{stage}-{workers}")


def model_type(row: Case) -> str:
    return "gpt2" if row.algorithm == "metaicl" else "bert"


# The reference


@lru_cache(maxsize=1)
def expected(row: Case) -> tuple[Parameters, float]:
    """The mean over all tasks of the meta-gradient, zeros where nothing depends on a weight, and of the query loss."""
    network = make_network(row, model_type(row)).float().double()  # from the weights that the workers have
    total = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    loss = 0.0
    for index in TASKS:
        task = make_task(row, index)
        torch.manual_seed(dropout_seed(SEED, index))
        answer = paper_answer(row, network, task, torch.randperm(len(task.support_labels)).tolist())
        loss += answer.query_loss / len(TASKS)
        for name, gradient in answer.gradients.items():
            total[name] += gradient / len(TASKS)
    return total, loss


def norm(values: Parameters) -> float:
    return float(torch.cat([value.double().flatten() for value in values.values()]).norm())


def after_adamw(weights: Parameters, gradient: Parameters) -> Parameters:
    """After the first step (Loshchilov and Hutter 2019): the mean of the gradients is g, that of their squares g^2."""

    def moved(weight: Tensor, gradient: Tensor) -> Tensor:
        decay = WEIGHT_DECAY if weight.ndim > 1 else 0.0
        return weight - LEARNING_RATE * (decay * weight + gradient / (gradient.abs() + 1e-8))

    return {name: moved(weight.double(), gradient[name].double()) for name, weight in weights.items()}


# The workers


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], World]]:
    """So many workers, started when they are first asked for."""

    @cache
    def start(size: int) -> World:
        made.append(World(size, tmp_path_factory.mktemp(f"world-{size}")))
        return made[-1]

    made: list[World] = []
    yield start
    for each in made:
        each.close()


def outer_step(row: Case, stage: Any) -> tuple[Parameters, Parameters, float, float]:
    """One as a run takes it, in each worker: what AdamW got, the weights after it, the norm, and the query loss."""
    is_group = torch.distributed.is_initialized()
    rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_group else (0, 1)
    config = filled(Config())
    config.meta = row.config.model_copy(update={"meta_batch_size": len(TASKS), "weight_decay": WEIGHT_DECAY})
    partitioned = stage == PARTITIONED
    config.engine = EngineConfig(
        zero_stage=3 if partitioned else stage,
        weights="partitioned" if partitioned else "whole",
        gradient_clipping=0.0,
    )
    config.train.seed = SEED
    twice = algorithm_class(row.algorithm).differentiates_twice(row.config)
    network = make_network(row, model_type(row), attention="eager" if twice else "sdpa").float()
    network.computation = "packed"
    learner = Learner(network.skeleton().train(), config.meta, "fp32", SEED)
    stepper = (Partitioned if partitioned else Whole)(SimpleNamespace(config=config), network, learner, CPU, None)
    work = [Work(index, make_task(row, index), None) for index in TASKS[rank::size]]
    gradient_norm, metrics = stepper.step(work, LEARNING_RATE, 0.0, PhaseClock())
    loss = torch.tensor(metrics["query_loss"], dtype=torch.float64)
    if is_group:
        torch.distributed.all_reduce(loss)
    state = stepper.engine.state()
    got, weights = {}, {}
    if state is not None:
        # The running mean of the gradients is a tenth of the first one after one step.
        got = {name: 10 * value.double() for name, value in state.exp_avg.items()}
        weights = {name: value.detach().clone() for name, value in state.weights.items()}
    stepper.engine.close()
    return got, weights, gradient_norm, float(loss)


ERRORS: dict[tuple[str, str], dict[tuple[int, Any], float]] = {}


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    ERRORS.clear()
    yield
    columns = [(workers, stage) for workers in WORKERS for stage in STAGES]
    print("\n\nerror of the gradient that AdamW gets; number of workers x ZeRO stage (3p: partitioned)\n")
    heads = [f"{workers}x{'3p' if stage == '3 partitioned' else stage}" for workers, stage in columns]
    print(f"{'':38}" + "".join(f"{head:>9}" for head in heads))
    for (algorithm, adapt), row in ERRORS.items():
        errors = (f"{row[column]:.1e}" if column in row else "" for column in columns)
        print(f"{algorithm:22}{adapt:16}" + "".join(f"{error:>9}" for error in errors))


@pytest.mark.parametrize(("row", "stage", "workers"), cells())
def test_the_gradient_that_adamw_gets_is_that_of_the_paper(
    row: Case, stage: Any, workers: int, world: Callable[[int], World]
) -> None:
    gradient, loss = expected(row)
    got, weights, gradient_norm, found_loss = world(workers).run(outer_step, row, stage)
    assert got.keys() == gradient.keys()
    error = norm({name: got[name] - gradient[name] for name in gradient}) / norm(gradient)
    options = {"second_order": " 2nd order", "distance": " cosine"}
    algorithm = row.algorithm + "".join(options.get(key, "") for key, _ in row.options)
    ERRORS.setdefault((algorithm, row.adapt.split("|")[0]), {})[workers, stage] = error
    assert error < bound(row, stage)
    assert gradient_norm == pytest.approx(norm(gradient), rel=bound(row, stage))
    assert found_loss == pytest.approx(loss, rel=1e-6)
    before = {name: value.detach() for name, value in make_network(row, model_type(row)).float().named_parameters()}
    for name, weight in after_adamw(before, got).items():
        torch.testing.assert_close(weights[name].double(), weight, rtol=1e-6, atol=1e-7)
