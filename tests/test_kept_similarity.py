"""The term that keeps a starting network's similarities, against `tests.references` in double precision."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from distmeta.meta import Learner, Work
from distmeta.meta.algorithm import Parameters
from distmeta.models import Network
from tests import references
from tests.helpers import tiny_network
from tests.meta_cases import Case, case, make_network, make_task, paper_answer, relative_error

WEIGHT = 300.0
CASES = [
    case("protonet", keep_similarity=WEIGHT),
    case("protonet", distance="centred-cosine", keep_similarity=WEIGHT),
    case("multitask", keep_similarity=WEIGHT),
]


@pytest.fixture
def threads_of_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def starting_weights(network: Network) -> Parameters:
    """Others than the network has now."""
    noise = torch.Generator().manual_seed(7)
    return {
        name: value.detach() + 0.2 * (torch.rand(value.shape, generator=noise, dtype=value.dtype) - 0.5)
        for name, value in network.named_parameters()
    }


def expected(setting: Case, network: Network, start: Parameters, indices: list[int]) -> tuple[Parameters, float]:
    """The mean gradient over tasks, and the mean of their query losses, of which the term is no part."""
    gradients: dict[str, Tensor] = {}
    loss = 0.0
    for index in indices:
        task = make_task(setting, index)
        answer = paper_answer(setting, network, task)
        kept, term = references.kept_similarity(network, start, task, WEIGHT)
        assert term > 0.01  # there is something to keep
        loss += answer.query_loss / len(indices)
        for part in (answer.gradients, kept):
            for name, gradient in part.items():
                gradients[name] = gradients.get(name, 0) + gradient / len(indices)
    return gradients, loss


@pytest.mark.parametrize("setting", CASES, ids=str)
@pytest.mark.parametrize(("computation", "threads"), [("plain", 1), ("bucketed", 1), ("packed", 1), ("packed", 2)])
@pytest.mark.usefixtures("threads_of_torch")
def test_the_gradient_is_that_of_the_loss_and_the_term(setting: Case, computation: str, threads: int) -> None:
    """One task after the other, side by side, and at the same time; in fp64 but for the sum over the tasks."""
    torch.set_num_threads(threads)
    network = make_network(setting, "bert")
    network.computation = computation
    start = starting_weights(network)
    gradients, loss = expected(setting, network, start, [4, 5, 6])
    learner = Learner(network, setting.config, "fp32", 0)
    learner.keep(start)
    work = [Work(index, make_task(setting, index), None) for index in (4, 5, 6)]
    found, metrics = learner.gradient(dict(network.named_parameters()), work, 3)
    assert found.keys() == gradients.keys()
    error, name = relative_error(found, gradients)
    assert error < 1e-6, name
    assert metrics["query_loss"] == pytest.approx(loss, rel=1e-6)


@torch.no_grad()
def test_the_starting_network_has_no_dropout() -> None:
    """Else the term would keep what chance draws: of the same weights, without dropout, there is nothing to change."""
    network = tiny_network("bert", dropout=0.5).double().train()
    learner = Learner(network, CASES[0].config, "fp32", 0)
    learner.keep(dict(network.named_parameters()))
    task = make_task(CASES[0])
    network.eval()
    support, query = (network.features(dict(network.named_parameters()), half) for half in (task.support, task.query))
    assert learner.algorithm.kept is not None
    assert float(learner.algorithm.kept.loss(support, query, task)) == pytest.approx(0.0, abs=1e-12)
