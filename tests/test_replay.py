"""What a recording is made of and when; a recording itself needs a GPU, and computes anew here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from distmeta.compute import parts
from distmeta.compute.batch import join
from distmeta.meta import Learner, Work, replay
from tests.helpers import meta_config, random_task, task_batch, tiny_network


class PlayedAnew(replay._Recording):
    """Computes the outcome of its own tensors again, where a GPU would play what it has recorded."""

    def __init__(self, algorithm: Any, *arguments: Any) -> None:
        class Graph:
            def replay(graph) -> None:
                prepared, weights = self.given
                batches = (prepared.task.support, prepared.task.query, *filter(None, [prepared.both]))
                for layout in [batch.layout for batch in batches]:  # what they keep is made in a recording
                    layout.grids.places_of_heads.clear()
                    for grid in layout.grids.each:
                        grid.masks.clear()
                self._outcome = algorithm.outcome(prepared, weights)

        @contextmanager
        def graph(made: Any, **_: Any) -> Iterator[None]:
            yield

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "CUDAGraph", Graph)
            patch.setattr(torch.cuda, "graph", graph)
            outcome = algorithm.outcome

            def spy(*given: Any) -> Any:
                self.given = given
                return outcome(*given)

            patch.setattr(algorithm, "outcome", spy)
            super().__init__(algorithm, *arguments)


@pytest.fixture(params=["fomaml", "maml", "anil"])
def learner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Learner:
    monkeypatch.setattr(parts, "BATCHED_ON", {"cpu"})
    monkeypatch.setattr(replay, "_Recording", PlayedAnew)
    network = tiny_network("bert", attention="eager" if request.param == "maml" else "sdpa").double().eval()
    network.computation = "packed"
    made = Learner(network, meta_config(algorithm=request.param, inner_lr=0.1, inner_steps=2, lm_weight=0.0), "fp32", 0)
    made._replay = replay.Replay()
    return made


def work_of(step: int) -> list[Work]:
    """Three tasks."""
    tasks = [random_task(3 * step + index) for index in range(3)]
    return [Work(index, task_batch(task), None) for index, task in enumerate(tasks)]


@pytest.mark.parametrize("at_a_time", [None, 1])
def test_replayed_gradients_are_those_computed_as_ever(learner: Learner, at_a_time: int | None) -> None:
    """Over tasks of other lengths and words each time, and weights that have moved meanwhile."""
    learner.tasks_at_a_time = at_a_time
    plain = Learner(learner.network, learner.config, "fp32", 0, 1)
    parameters = dict(learner.network.named_parameters())
    seconds = []
    for step in range(6):
        found, metrics = learner.gradient(parameters, work_of(step), 3)
        expected, expected_metrics = plain.gradient(parameters, work_of(step), 3)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
        seconds.append(metrics.pop("seconds/inner"))
        expected_metrics.pop("seconds/inner")
        assert metrics == pytest.approx(expected_metrics, rel=1e-6)
        with torch.no_grad():
            for name, gradient in expected.items():
                parameters[name] -= 0.1 * gradient
    assert all(value > 0 for value in seconds)
    assert learner._replay is not None
    # Sizes grow with the largest task so far; that of most steps is there already.
    assert 1 <= learner._replay.recordings <= 3
    assert sum(each.recording is not None for each in learner._replay._kinds.values()) == 1


def of_lengths(*lengths: int) -> list[Work]:
    """A task each, all of whose texts have one length."""
    work = []
    for index, length in enumerate(lengths):
        task = random_task(index)
        examples = [
            tuple(replace(each, input_ids=(each.input_ids * 20)[:length]) for each in half)
            for half in (task.support, task.query)
        ]
        work.append(Work(index, task_batch(replace(task, support=examples[0], query=examples[1])), None))
    return work


def test_a_recording_of_texts_without_padding_plays_texts_with_padding(learner: Learner) -> None:
    plain = Learner(learner.network, learner.config, "fp32", 0, 1)
    parameters = dict(learner.network.named_parameters())
    for lengths in ((26, 20, 22), (32, 32, 32), (32, 32, 32), (20, 9, 32)):
        found, _ = learner.gradient(parameters, of_lengths(*lengths), 3)
        for name, gradient in plain.gradient(parameters, of_lengths(*lengths), 3)[0].items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    assert learner._replay is not None
    assert learner._replay.recordings == 1


def test_kinds_of_tasks_that_take_turns(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is recorded once, as long as there is room for recordings."""
    monkeypatch.setattr(replay, "MOST_RECORDINGS", 2)
    learner.tasks_at_a_time = 1
    parameters = dict(learner.network.named_parameters())
    for _ in range(4):
        for k_shot in (1, 2, 3):
            learner.gradient(parameters, [Work(0, task_batch(random_task(0, k_shot=k_shot)), None)], 1)
    assert learner._replay is not None
    assert learner._replay.recordings == 2


def test_of_many_kinds_of_tasks_the_first_are_remembered(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others are computed as ever, so that memory does not grow with a mixture's ways and shots."""
    monkeypatch.setattr(replay, "MOST_KINDS", 2)
    learner.tasks_at_a_time = 1
    parameters = dict(learner.network.named_parameters())
    plain = Learner(learner.network, learner.config, "fp32", 0, 1)
    assert learner._replay is not None
    for k_shot in (1, 2, 3, 4, 1):
        work = [Work(0, task_batch(random_task(0, k_shot=k_shot)), None)]
        found, _ = learner.gradient(parameters, work, 1)
        for name, gradient in plain.gradient(parameters, work, 1)[0].items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    assert len(learner._replay._kinds) == 2
    assert learner._replay.recordings == 1


def test_what_cannot_be_recorded_is_computed_as_ever(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(replay, "_Recording", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    parameters = dict(learner.network.named_parameters())
    plain = Learner(learner.network, learner.config, "fp32", 0, 1)
    for _ in range(3):
        found, _ = learner.gradient(parameters, work_of(0), 3)
    for name, gradient in plain.gradient(parameters, work_of(0), 3)[0].items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    (message,) = caplog.messages
    assert message.endswith("cannot be recorded on this GPU: operation not permitted when stream is capturing")


def test_what_is_not_recorded() -> None:
    """What draws random numbers or changes from step to step, what is padded, and other algorithms."""
    tasks = [task_batch(random_task(index)) for index in range(2)]

    def takes(task: Any, **settings: Any) -> bool:
        dropout = settings.pop("dropout", 0.0)
        network = tiny_network("bert", dropout=dropout, attention="sdpa").train(dropout > 0)
        network.computation = settings.pop("computation", "packed")
        algorithm = Learner(network, meta_config(lm_weight=0.0, **settings), "fp32", 0).algorithm
        return replay.Replay().takes(algorithm, task)

    assert takes(join(tasks))
    assert takes(join(tasks), algorithm="maml")
    assert takes(tasks[0])
    assert not takes(tasks[0], computation="bucketed")
    assert not takes(tasks[0], algorithm="reptile")
    assert not takes(join(tasks), dropout=0.1)
    assert not takes(join(tasks), multi_step_loss=0.5)
    assert not takes(join(tasks), algorithm="protonet")
