"""On a GPU: the same gradients as on the CPU, and training from start to resume. Skipped where there is none."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from distmeta.compute.batch import join
from distmeta.meta import Learner, Work, algorithm_class
from distmeta.rundir import RunDirectory
from distmeta.train.loop import Worker, train
from tests.helpers import meta_config, random_task, task_batch, tiny_network
from tests.meta_cases import Case, case, make_network, make_task, relative_error, whole
from tests.training import (
    assert_same,
    checkpoints_of,
    configure,
    newest,
    prepared_corpus,
    read_rows,
    run_steps,
    weights_of,
)
from tests.workers import World, worlds_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda", 0)


def on_gpu(value: Any) -> Any:
    """A batch with its tensors on the GPU."""
    if isinstance(value, torch.Tensor):
        return value.to(GPU)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: on_gpu(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


CASES = [
    *(case(name, adapt) for name in ("maml", "fomaml") for adapt in ("all", "head", "lora", "bias", "last_k")),
    *(
        case(name)
        for name in ("reptile", "metasgd", "anil", "protomaml", "protonet", "leopard", "metaicl", "multitask")
    ),
    case("maml", recompute=True),
    case("maml", inner_optimizer="momentum"),
    case("fomaml", inner_rates="layer_step"),
    case("fomaml", inner_clipping=0.2),
    case("maml", multi_step_loss=0.8, progress=0.2),
]


@pytest.mark.parametrize("computation", ["packed", "bucketed", "plain"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_the_cpu(case: Case, model_type: str, computation: str) -> None:
    """In double precision, of a task and of three side by side."""
    algorithm = algorithm_class(case.algorithm)
    attention = "eager" if algorithm.differentiates_twice(case.config) else "sdpa"
    network = make_network(case, model_type, attention=attention)
    network.computation = computation
    tasks = [make_task(case, index) for index in (4, 5, 6)]
    groups = [tasks[0], join(tasks)] if algorithm(network, case.config).takes_tasks else [tasks[0]]
    for group in groups:
        found = {}
        for device in ("cpu", "cuda"):
            network.to(device)
            torch.manual_seed(0)  # metaicl draws the order of its prompt
            parameters = dict(network.named_parameters())
            result = algorithm(network, case.config).task_gradient(
                parameters, on_gpu(group) if device == "cuda" else group, case.progress
            )
            found[device] = {name: value.cpu() for name, value in whole(result, parameters).items()}
        assert found["cuda"].keys() == found["cpu"].keys()
        assert relative_error(found["cuda"], found["cpu"])[0] < 1e-8


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.01)])
@pytest.mark.parametrize("algorithm", ["fomaml", "maml", "anil"])
def test_error_of_each_precision(algorithm: str, precision: str, tolerance: float) -> None:
    attention = "eager" if algorithm == "maml" else "sdpa"
    config = meta_config(
        algorithm=algorithm, adapt="head" if algorithm == "anil" else "all", inner_lr=0.1, lm_weight=0.0
    )

    def gradient(dtype: torch.dtype, precision: str, device: torch.device) -> torch.Tensor:
        network = tiny_network("bert", attention=attention).eval().to(device, dtype)
        network.computation = "packed"
        work = [Work(index, task_batch(random_task(index)), None) for index in range(4)]
        work = [dataclasses.replace(item, task=on_gpu(item.task)) for item in work] if device == GPU else work
        found, _ = Learner(network, config, precision, 0).gradient(dict(network.named_parameters()), work, 4)
        return torch.cat([value.flatten().double().cpu() for _, value in sorted(found.items())])

    exact = gradient(torch.float64, "fp32", torch.device("cpu"))
    assert (gradient(torch.float32, precision, GPU) - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize(
    "case",
    [
        *(case(name, adapt, inner_lr=0.1) for name in ("maml", "fomaml") for adapt in ("all", "lora", "head")),
        *(case(name, inner_lr=0.1) for name in ("metasgd", "anil", "leopard")),
        case("protomaml", inner_lr=0.003),  # at larger ones its loss is so steep that rounding throws it off
        case("maml", recompute=True, inner_lr=0.1),
        case("fomaml", inner_clipping=0.2, inner_lr=0.1),
        case("fomaml", inner_optimizer="adam", inner_lr=0.01),
    ],
    ids=str,
)
def test_replayed_gradients(case: Case, model_type: str, precision: str) -> None:
    """Recorded once or twice, and the same over tasks of other lengths and weights that have moved meanwhile."""
    attention = "eager" if algorithm_class(case.algorithm).differentiates_twice(case.config) else "sdpa"
    network = make_network(case, model_type, attention=attention).float().to(GPU)
    network.computation = "packed"
    parameters = dict(network.named_parameters())
    replaying, plain, exact = (
        Learner(network, case.config, precision, 0, records=records)
        for precision, records in ((precision, True), (precision, False), ("fp32", False))
    )
    for step in range(8):
        work = [Work(index, on_gpu(task_batch(random_task(3 * step + index))), None) for index in range(3)]
        found, metrics = replaying.gradient(parameters, work, 3)
        expected, expected_metrics = plain.gradient(parameters, work, 3)
        assert found.keys() == expected.keys()
        gradients = (found, expected, exact.gradient(parameters, work, 3)[0])
        replayed, usual, right = (torch.cat([each[name].flatten() for name in expected]) for each in gradients)
        assert (replayed - right).norm() < 1.5 * (usual - right).norm() + 1e-4 * right.norm(), step
        close = 1e-5 if precision == "fp32" else 1e-2
        assert metrics["query_loss"] == pytest.approx(expected_metrics["query_loss"], rel=close)
        with torch.no_grad():
            for name, gradient in expected.items():
                parameters[name] -= 1e-3 * gradient
    assert replaying._replay is not None
    assert 1 <= replaying._replay.recordings <= 3


def test_dropout_of_a_step_computed_again() -> None:
    """Recomputation and checkpointed activations draw what the first pass drew."""
    network = tiny_network("bert", dropout=0.2).double().train().to(GPU)
    network.computation = "packed"
    parameters = dict(network.named_parameters())
    task, found = on_gpu(task_batch(random_task(1))), []
    for recompute, checkpoints in ((False, False), (True, False), (False, True)):
        network.checkpoints_activations = checkpoints
        config = meta_config(algorithm="maml", inner_steps=2, lm_weight=0.0, recompute=recompute)
        torch.manual_seed(3)
        result = algorithm_class("maml")(network, config).task_gradient(parameters, task)
        found.append(whole(result, parameters))
    assert relative_error(found[1], found[0])[0] < 1e-8
    assert relative_error(found[2], found[0])[0] < 1e-8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def cpu_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with worlds_of(tmp_path_factory.mktemp("worlds"), 1) as made:
        yield made[1]


@pytest.mark.parametrize(
    "engine",
    [
        *({"zero_stage": stage} for stage in range(4)),
        {"zero_stage": 2, "offload_optimizer": True},
        {"zero_stage": 3, "weights": "partitioned"},
    ],
    ids=str,
)
def test_training_is_that_of_the_cpu(engine: dict[str, Any], corpus: Path, cpu_world: World, tmp_path: Path) -> None:
    """In fp32, with language modelling beside the tasks; stopped and resumed on the GPU."""

    def config(steps: int) -> Any:
        meta = {"adapt": "lora" if "weights" in engine else "all", "schedule": "constant", "warmup_ratio": 0.0}
        return configure(corpus, engine={"precision": "fp32", **engine}, meta=meta, train={"outer_steps": steps})

    runs = {device: tmp_path / device for device in ("cpu", "cuda")}
    rows = run_steps(cpu_world, config(10), runs["cpu"])
    runs["cuda"].mkdir()
    for steps in (5, 10):
        run = runs["cuda"]
        worker = Worker(0, 1, GPU, partial(newest, run), checkpoints_of(run))
        progress = train(config(steps), RunDirectory(run), worker)
    assert progress["peak_memory_bytes"] > 0
    assert_same(read_rows(runs["cuda"]), rows, 2e-3)
    weights = weights_of(runs["cuda"], 10)
    for name, value in weights_of(runs["cpu"], 10).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=2e-3)
