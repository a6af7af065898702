"""On a GPU: the work of a task, or of a group of tasks, as one launch.

An inner loop is thousands of small operations, each of which the CPU takes longer to launch than the GPU to do. A CUDA
graph launches all of them at once (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs), but it is a
recording: of the same operations on tensors of the same sizes at the same places. So tasks are filled up to sizes that
grow as larger ones come and soon stay, and are copied to where the recording reads.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distmeta.compute.batch import TaskBatch, TokenBatch
from distmeta.compute.precision import current
from distmeta.meta.algorithm import Outcome, Parameters, TaskResult
from distmeta.meta.gradient_based import GradientBased, Prepared

logger = logging.getLogger(__name__)

ROOM = 1.125
"""How much larger than what does not fit the next size is, at least."""
STEP = 16
"""Sizes are multiples of this."""
MOST_RECORDINGS = 8
"""Each holds the memory of its tensors."""
MOST_KINDS = 64
"""Of which sizes are remembered; a mixture with ranges of ways and shots has more than can ever be recorded."""


@dataclass
class _Size:
    """What tasks are filled up to."""

    longest: int = 0
    tokens_of_task: int = 0

    def hold(self, batch: TokenBatch) -> TokenBatch:
        """The batch, filled up, after growing where it does not fit."""
        self.longest = _grown(self.longest, batch.input_ids.shape[1])
        self.tokens_of_task = _grown(self.tokens_of_task, max(batch.tokens_of_tasks.sizes))
        return batch.widened(self.longest, self.tokens_of_task)


def _grown(size: int, needed: int) -> int:
    return size if needed <= size else STEP * math.ceil(ROOM * needed / STEP)


@dataclass
class _Kind:
    """Tasks of as many texts and classes."""

    support: _Size = field(default_factory=_Size)
    query: _Size = field(default_factory=_Size)
    rows: int = 0
    sizes: Any = None
    """Of the last ones."""
    share: float = 0.0
    """Of the inner loop in their time, when they were computed as ever."""
    recording: "_Recording | None" = None


class Replay:
    """Computes what `GradientBased.task_gradient` does, from a recording where there is one.

    The first tasks of some sizes are computed as ever, the second ones are recorded and played, later ones are played.
    What cannot be recorded (a model that waits for a number, or too little memory) is computed as ever from then on, as
    is what comes when there are `MOST_RECORDINGS` or `MOST_KINDS`.
    """

    def __init__(self) -> None:
        self.recordings = 0
        """How many have been made."""
        self._kinds: dict[Any, _Kind] = {}
        self._is_possible = True

    def takes(self, algorithm: Any, task: TaskBatch) -> bool:
        """Whether a task, or a group of tasks, may be recorded."""
        is_known = getattr(algorithm.task_gradient, "__func__", None) is GradientBased.task_gradient
        if not (self._is_possible and is_known and isinstance(task.support, TokenBatch)):
            return False
        # What dropout draws depends on the sizes of tensors. Weights of steps that change would each be recorded.
        network = algorithm.network
        return network.computation == "packed" and not network.is_random and not algorithm.config.multi_step_loss

    def task_gradient(self, algorithm: Any, parameters: Parameters, task: TaskBatch, progress: float) -> TaskResult:
        """See `GradientBased.task_gradient`; the gradients are valid until the next call."""
        halves = (task.support, task.query)
        texts = tuple(half.texts_per_task or len(half.input_ids) for half in halves)
        if (texts, task.n_way) not in self._kinds and len(self._kinds) >= MOST_KINDS:
            result: TaskResult = algorithm.task_gradient(parameters, task, progress)
            return result
        kind = self._kinds.setdefault((texts, task.n_way), _Kind())
        task = replace(task, support=kind.support.hold(task.support), query=kind.query.hold(task.query))
        prepared = algorithm.prepared(parameters, task, kind.rows)
        if prepared.rows is not None and len(prepared.rows) > kind.rows:
            kind.rows = _grown(kind.rows, len(prepared.rows))
            prepared = algorithm.prepared(parameters, task, kind.rows)
        weights = algorithm.step_weights(progress)
        inputs = list(_tensors(prepared))
        sizes = [(each.shape, each.dtype) for each in inputs], current()
        started = time.perf_counter()
        if sizes != kind.sizes:
            kind.sizes, kind.recording = sizes, None
        elif kind.recording is None:
            self._record(kind, algorithm, prepared, weights)
        if kind.recording is None:
            result = algorithm.outcome(prepared, weights).read(prepared.of_rows, prepared.rows)
            kind.share = result.inner_seconds / (time.perf_counter() - started)
            return result
        result = kind.recording.play(inputs).read(prepared.of_rows, prepared.rows)
        # Inside a recording no clock is read: the share is that of the tasks that were computed as ever.
        result.inner_seconds = kind.share * (time.perf_counter() - started)
        return result

    def _record(self, kind: _Kind, algorithm: GradientBased, prepared: Prepared, weights: Sequence[float]) -> None:
        there = sum(each.recording is not None for each in self._kinds.values())
        if there == MOST_RECORDINGS:
            return
        try:
            kind.recording = _Recording(algorithm, prepared, weights)
            self.recordings += 1
        except RuntimeError as error:
            self._is_possible = False
            self._kinds.clear()  # with the memory of what has been recorded
            torch.cuda.synchronize()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("tasks are launched piece by piece, since they cannot be recorded on this GPU: %s", reason)


class _Recording:
    """An outcome on tensors of its own."""

    def __init__(self, algorithm: GradientBased, prepared: Prepared, weights: Sequence[float]) -> None:
        prepared = copy.deepcopy(_detached(prepared))
        self._inputs = list(_tensors(prepared))
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that prepares tasks, may go on meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outcome = algorithm.outcome(prepared, weights)

    def play(self, inputs: list[Tensor]) -> Outcome:
        """The outcome for other tensors, which stays until the next one is played."""
        with torch.no_grad():
            for dtype in {each.dtype for each in inputs}:  # all of one kind are copied by one launch
                own, given = ([each for each in group if each.dtype == dtype] for group in (self._inputs, inputs))
                torch._foreach_copy_(own, given)
        self._graph.replay()
        return self._outcome


def _detached(prepared: Prepared) -> Prepared:
    return replace(prepared, parameters={name: value.detach() for name, value in prepared.parameters.items()})


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors that an outcome is computed from, in an order that depends on the structure alone."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from _tensors(value[name])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        if isinstance(value, TokenBatch):  # which keeps what it has been asked for
            yield from (value.task_numbers, *_tensors(value.layout), *_tensors(value.layout.grids))
        for each in fields(value):
            # These are made of the tensors beside them, when they are asked for.
            if each.name not in ("masks", "places_of_heads"):
                yield from _tensors(getattr(value, each.name))
