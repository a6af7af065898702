"""An outer step on many workers by formula: computing, waiting for the slowest worker, and the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distmeta.plan.states import ALLREDUCE_BUFFER, FLOAT, LARGEST_BUCKET

DRAWS = 100
"""Outer steps of drawn tasks over which the slowest worker's load is averaged."""


@dataclass(frozen=True, slots=True)
class Collective:
    """What all workers do together, `calls` times one after the other."""

    kind: Literal["all-reduce", "reduce-scatter", "all-gather"]
    size: float
    """Bytes of the whole tensors, of all calls together."""
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Network:
    """The slowest link between neighbouring workers."""

    bandwidth: float
    """Bytes a second that a worker sends, while it receives as many."""
    latency: float
    """Seconds that one message takes however short it is, with what the software needs for it."""
    is_nccl: bool = False
    """Else gloo, on a CPU."""

    def sent(self, collective: Collective, workers: int) -> float:
        """Bytes that each worker sends, S bytes in all on W workers going round in a ring.

        (W - 1) / W * S for an all-gather and a reduce-scatter, twice that for an all-reduce, which is one after the
        other (Thakur et al. 2005, "Optimization of Collective Communication Operations in MPICH", sections 4.1 and
        4.4.3). gloo makes a reduce-scatter of an all-reduce.
        """
        return self._rounds(collective) * (workers - 1) / workers * collective.size

    def seconds(self, collective: Collective, workers: int) -> float:
        """Time of a ring: what is sent over the bandwidth, and W - 1 messages one after the other in each call, for an
        all-reduce 2 (W - 1).

        NCCL takes a tree for an all-reduce where that is faster: 2 log2 W messages, and twice the size is sent on by
        those in the middle (Sanders et al. 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and
        scan").
        """
        if workers == 1:
            return 0.0
        hops = self._rounds(collective) * (workers - 1)
        ring = collective.calls * hops * self.latency + self.sent(collective, workers) / self.bandwidth
        if not self.is_nccl or collective.kind != "all-reduce":
            return ring
        tree = 2 * (collective.calls * math.ceil(math.log2(workers)) * self.latency + collective.size / self.bandwidth)
        return min(ring, tree)

    def _rounds(self, collective: Collective) -> int:
        return 2 if collective.kind == "all-reduce" or (collective.kind != "all-gather" and not self.is_nccl) else 1


@dataclass(frozen=True, slots=True)
class Shape:
    """Numbers in a network, and in how many pieces they lie."""

    parameters: int
    trained: int
    largest: int
    """Numbers of the largest tensor."""
    tensors: int
    trained_tensors: int
    modules: int
    """Modules that own a tensor."""


def collectives_of_whole(shape: Shape, stage: int) -> list[Collective]:
    """Those of an outer step where each worker has the weights whole while it computes, T trained of P numbers.

        stage 0     all-reduce of T gradients
        stage 1, 2  all-reduce of T gradients, a bucket at a time, and all-gather of T weights: at stage 2 too, where a
                    reduce-scatter would do and the ZeRO paper has one (Rajbhandari et al. 2020, section 7), DeepSpeed
                    0.19 keeps its part of an all-reduce
        stage 3     all-gather of P weights for the learner and of T to take the gradients, a tensor at a time;
                    reduce-scatter of T gradients

    and of some single numbers: whether all are finite, the norm, and the metrics. A test holds them against what is
    sent.
    """
    gradients, weights = FLOAT * shape.trained, FLOAT * shape.parameters
    if stage == 0:
        return [Collective("all-reduce", gradients, math.ceil(shape.trained / ALLREDUCE_BUFFER)), _numbers(1)]
    buckets = math.ceil(shape.trained / min(shape.trained, LARGEST_BUCKET))
    if stage < 3:
        return [Collective("all-reduce", gradients, buckets), _numbers(4), Collective("all-gather", gradients, 2)]
    return [
        Collective("all-gather", weights, shape.tensors),
        Collective("all-gather", gradients, shape.trained_tensors),
        Collective("reduce-scatter", gradients, buckets),
        _numbers(4),
    ]


def collectives_of_partitioned(shape: Shape, inner: int, outer: int, gathers: int = 2) -> list[Collective]:
    """Those of an outer step where the weights stay partitioned, with so many passes through the network a worker.

    Each pass gathers P weights, a module at a time, on its way forth and again on its way back (`gathers` 3: and to
    compute the activations again), of an inner pass at most, since its way back ends at the lowest thing adapted; an
    `outer` one reduce-scatters T gradients too.
    """
    buckets = math.ceil(shape.trained / min(shape.largest, LARGEST_BUCKET))
    passes = gathers * (inner + outer)
    return [
        Collective("all-gather", FLOAT * shape.parameters * passes, shape.modules * passes),
        Collective("reduce-scatter", FLOAT * shape.trained * outer, buckets * outer),
        _numbers(6),
    ]


def _numbers(calls: int) -> Collective:
    return Collective("all-reduce", 8 * calls, calls)


@dataclass(frozen=True, slots=True)
class Profile:
    """What an outer step takes of a worker with the processors that it will have (seconds)."""

    per_task: float
    fixed: float = 0.0
    """Whatever the number of tasks; the work of handing gradients over is in it."""
    update: float = 0.0
    """Clipping and AdamW on one worker, which those of ZeRO 1 to 3 share out."""
    contention: float = 1.0
    """How many times as long all of it takes where another worker of the machine is at work."""
    variation: tuple[float, ...] = (1.0,)
    """How long like steps took, over their median: what a step of one worker may take more than that of another."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Where the seconds of an outer step go."""

    computing: float
    """Of a worker with an average share of the tasks."""
    waiting: float
    """For the slowest worker."""
    exchanging: float
    """On the network."""

    @property
    def whole(self) -> float:
        """All of them."""
        return self.computing + self.waiting + self.exchanging


def step_time(
    profile: Profile,
    network: Network,
    collectives: Sequence[Collective],
    *,
    workers: int,
    tasks: int,
    stage: int,
    sizes: Sequence[float] = (1.0,),
) -> StepTime:
    """The seconds of an outer step of `tasks` in all, whose relative sizes are like `sizes`.

        fixed + update (from stage 1 on: / W) + per task * tasks / W       computing
        per task * (the slowest worker's share - tasks / W)                waiting
        the sum of the collectives                                         exchanging

    the first two times the contention where there are several workers, and the share with what like steps vary by.

    Nothing overlaps: the gradients come all at once when a worker's tasks are done.
    """
    update = profile.update / (workers if stage > 0 else 1)
    mean = profile.fixed + update + profile.per_task * tasks / workers
    slowest = _slowest(profile, update, workers, tasks, sizes) if workers > 1 else mean
    contention = profile.contention if workers > 1 else 1.0
    return StepTime(
        computing=contention * mean,
        waiting=contention * (slowest - mean),
        exchanging=sum(network.seconds(each, workers) for each in collectives),
    )


def _slowest(profile: Profile, update: float, workers: int, tasks: int, sizes: Sequence[float]) -> float:
    """Expected seconds of the slowest worker, a mean over drawn steps: task i is done by worker i modulo W, so those of
    a share that does not come out even have one more."""
    generator = np.random.default_rng(0)
    spread = np.asarray(sizes) / np.mean(sizes)
    variation = np.asarray(profile.variation)
    rows = math.ceil(tasks / workers)
    found = []
    for _ in range(DRAWS):
        drawn = np.zeros(rows * workers)
        drawn[:tasks] = generator.choice(spread, tasks)
        loads = profile.fixed + update + profile.per_task * drawn.reshape(rows, workers).sum(0)
        found.append((loads * generator.choice(variation, workers)).max())
    return float(np.mean(found))
