"""An outer step and a validation, by where the weights are: whole on each worker for its time, or never."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from distmeta.engine.deepspeed_engine import Engine
from distmeta.engine.sharded import ShardedEngine
from distmeta.engine.state import EngineState
from distmeta.meta import Learner, Work
from distmeta.meta.learner import counts, dropout_seed
from distmeta.models import Network, Parameters
from distmeta.setup import Setup
from distmeta.train.phases import PhaseClock
from distmeta.train.validate import Validation, Validator

Stepped = tuple[float, dict[str, float]]
"""The norm of the gradient, and this worker's share of the metrics."""


class Whole:
    """The learner computes on a full copy of the weights and hands the ready gradient to the engine."""

    def __init__(self, setup: Setup, network: Network, learner: Learner, device: torch.device, state: Any) -> None:
        config = setup.config
        self.engine = Engine(network, config.engine, weight_decay=config.meta.weight_decay, device=device, state=state)
        self._learner, self._tasks, self._device = learner, config.meta.meta_batch_size, device

    def step(self, work: Sequence[Work], learning_rate: float, progress: float, clock: PhaseClock) -> Stepped:
        """Takes an outer step; every worker has to call it."""
        with self.engine.full_parameters() as parameters:
            clock.mark("communication")
            gradients, metrics = self._learner.gradient(parameters, work, self._tasks, progress)
        clock.mark("outer", inner=metrics.pop("seconds/inner", 0.0))
        # The shares add up to the whole, and the engine takes the mean over the workers.
        for gradient in gradients.values():
            gradient.mul_(torch.distributed.get_world_size())
        norm = self.engine.step(gradients, learning_rate)
        clock.mark("optimizer", communication=self.engine.communication_seconds)
        return norm, metrics

    @contextmanager
    def weights(self) -> Iterator[Parameters]:
        """The weights, on every worker."""
        with self.engine.full_parameters() as parameters:
            yield parameters

    def score(
        self,
        weights: Mapping[str, torch.Tensor],
        validator: Validator,
        is_stopping: Callable[[], bool],
        *,
        are_own: bool,
        inner_loops: bool,
    ) -> Validation | None:
        """See `Validator.score`. The weights are those of `weights`, or others."""
        parameters = dict(weights) if are_own else {name: weights[name].to(self._device) for name in weights}
        return validator.score(parameters, is_stopping, inner_loops=inner_loops)


class Partitioned:
    """The engine runs the network itself, whose weights stay partitioned by ZeRO 3; see `ShardedEngine`."""

    def __init__(
        self, setup: Setup, network: Network, learner: Learner, device: torch.device, state: EngineState | None
    ) -> None:
        config = setup.config
        self._meta, self._seed = config.meta, config.train.seed
        self._second_order = learner.algorithm.is_second_order
        self.engine = ShardedEngine(
            network,
            config.engine,
            adapted_names=network.adapted_names(config.meta.adapt, config.meta.last_k),
            weight_decay=config.meta.weight_decay,
            device=device,
            state=state,
        )
        network.train()

    def step(self, work: Sequence[Work], learning_rate: float, progress: float, clock: PhaseClock) -> Stepped:
        """Takes an outer step; every worker has to call it. All of its time counts as outer."""
        tasks = [item.task for item in work if item.task is not None]
        norm, metrics = self.engine.meta_gradient_step(
            tasks,
            self._meta.meta_batch_size,
            learning_rate,
            inner_lr=self._meta.inner_lr,
            inner_steps=self._meta.inner_steps,
            second_order=self._second_order,
            texts=[item.text for item in work if item.text is not None],
            lm_weight=(self._meta.lm_weight or 0.0) if tasks else 1.0,
            seeds=[dropout_seed(self._seed, item.index) for item in work],
        )
        totals: dict[str, float] = defaultdict(float, metrics)
        for name in ("support_tokens", "query_tokens"):
            totals.pop(name, None)
        for item in work:
            for name, value in counts(item).items():
                totals[name] += value
        clock.mark("outer", communication=0.0, optimizer=0.0, inner=0.0)
        return norm, dict(totals)

    @contextmanager
    def weights(self) -> Iterator[Mapping[str, torch.Tensor]]:
        """The weights, each of which is gathered, by all workers, when it is asked for."""
        yield self.engine.state().weights

    def score(
        self,
        weights: Mapping[str, torch.Tensor],
        validator: Validator,
        is_stopping: Callable[[], bool],
        *,
        are_own: bool,
        inner_loops: bool,  # of which all of it is
    ) -> Validation | None:
        """See `Validator.score_by`. The weights are those of `weights`, or others."""
        self.engine.network.eval()
        try:
            with nullcontext() if are_own else self.engine.holding(weights):
                return validator.score_by(
                    lambda tasks: self.engine.query_scores(
                        tasks, inner_lr=self._meta.inner_lr, inner_steps=validator.inner_steps
                    ),
                    is_stopping,
                )
        finally:
            self.engine.network.train()
