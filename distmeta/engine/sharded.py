"""Meta-learning where no worker can hold a full copy of the network: its weights stay partitioned by ZeRO 3 throughout.

Forward and backward passes run through DeepSpeed's own hooks, which gather the weights of one module at a time. A fast
weight is the weight that it adapts plus a delta, a zero-initialised tensor of the task's own, added where the module
that owns the weight reads it. So a worker holds its partition, the deltas, the activations, and one module's weights.
That is so from the start: the first worker makes the network, on disk, and the others get their parts from there.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.batch import TaskBatch, TokenBatch
from distmeta.compute.precision import passes_in
from distmeta.engine.config import EngineConfig
from distmeta.engine.deepspeed_engine import LARGEST_BUCKET, Engine, environment
from distmeta.engine.deltas import Deltas, apply_adapters_in_modules
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from distmeta.models import Network

if TYPE_CHECKING:
    from distmeta.meta.language_model import LanguageModelBatch

DIFFERENCE_NORM = 1e-3
"""How far, as the L2 norm over all fast weights, the points of a central difference lie from their centre.

In fp32 the error of rounding falls with it, and that of the difference rises with its square; they meet about here.
"""

Fast = dict[str, Tensor]
T = TypeVar("T")


class ShardedEngine(Engine):
    """An engine at ZeRO stage 3 that runs the network itself, and never holds all of it.

    Beside what `Engine` says of its arguments: `network` is taken over, and serves for nothing else afterwards. On all
    workers but the first it may be empty (see `load_network`): they get their parts of the parameters, the buffers and
    the computation from there. `adapted_names` are the parameters that get a delta in the inner loop, beside the head,
    which always is adapted.

    Raises UserError where the ZeRO stage is not 3, or a name is no parameter of the network.
    """

    def __init__(
        self,
        network: Network,
        config: EngineConfig,
        *,
        adapted_names: Sequence[str],
        weight_decay: float,
        device: torch.device,
        state: EngineState | None = None,
    ) -> None:
        if config.zero_stage != 3:
            raise UserError(f"weights that stay partitioned need engine.zero_stage 3, not {config.zero_stage}")
        self._hold(network, config, weight_decay, device, state)
        # How many passes groups of like length take depends on the texts, and every worker must run as many.
        told = ["plain" if network.computation == "bucketed" else network.computation]
        torch.distributed.broadcast_object_list(told)
        network.computation = told[0]
        self.network = network
        self._precision = config.precision
        self._adapted_shapes = {name: self._outlines[name].shape for name in adapted_names if name in self._outlines}
        self._share_out(network, state)
        apply_adapters_in_modules(network)
        self._begin(network, device)
        # It records the order of the modules, to gather some ahead and to keep others for their next use. That order is
        # not the same in inner and outer passes; without a record each module is gathered for itself and let go of.
        self._engine.optimizer.parameter_offload.fwd_pre_hook.remove()
        self._deltas = Deltas(network, self._parameters, adapted_names)
        self._restore(state)

    def _share_out(self, network: Network, state: EngineState | None) -> None:
        """Give each worker its part of the parameters and all of the buffers, one tensor at a time.

        What the first worker has, or the state, is sent to all, which is what DeepSpeed does for a whole network too.
        """
        partitioned: Any = None
        for name, parameter in self._parameters.items():
            value = parameter if state is None or self._rank > 0 else state.weights[name]
            here = self._on_device(value)
            # The parameter stays the same object, which others know already.
            torch.utils.swap_tensors(parameter, torch.nn.Parameter(here, parameter.requires_grad))
            del value, here
            if partitioned is None:
                with environment(LOCAL_RANK="0"):
                    self._deepspeed.zero.Init(
                        torch.nn.ParameterList([parameter]),
                        config_dict_or_path=self._deepspeed_config(),
                        dtype=torch.float32,
                    )
                partitioned = parameter
            else:
                partitioned.convert_to_zero_parameters([parameter])
        for module in network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                here = self._on_device(buffer).contiguous()
                torch.distributed.broadcast(here.reshape(-1).view(torch.uint8), 0)
                setattr(module, name, here)

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the engine's device; of one that is on the meta device only the memory that it takes."""
        if tensor.is_meta:
            return torch.empty_like(tensor, device=self._device, requires_grad=False)
        return tensor.detach().to(self._device)

    def _deepspeed_config(self) -> dict[str, Any]:
        config = super()._deepspeed_config()
        largest = max(outline.numel() for outline in self._outlines.values())
        # Gradients wait here, full-size, until there are enough of them to be averaged.
        config["zero_optimization"]["reduce_bucket_size"] = min(largest, LARGEST_BUCKET)
        return config

    def meta_gradient_step(
        self,
        tasks: Sequence[TaskBatch],
        meta_batch_size: int,
        learning_rate: float,
        *,
        inner_lr: float,
        inner_steps: int,
        second_order: bool = False,
        texts: Sequence["LanguageModelBatch"] = (),
        lm_weight: float = 1.0,
        seeds: Sequence[int] | None = None,
    ) -> tuple[float, dict[str, float]]:
        """One outer step of MAML (Finn et al. 2017, https://arxiv.org/abs/1703.03400) on the tasks of all workers.

        With theta the parameters, L_S and L_Q the losses on a task's support and query set, and delta_0 = 0 (the
        head, which starts at zero, is one of the deltas):

            delta_k+1 = delta_k - inner_lr * dL_S(theta, delta_k)/d delta        inner_steps times
            first order: the gradient is dL_Q(theta, delta_K)/d theta

        To it the second order adds what theta does through the deltas. Backward through the inner steps, beginning
        with v = dL_Q/d delta_K, with all derivatives of L_S at (theta, delta_k):

            gradient += -inner_lr * d/d theta (dL_S/d delta . v)
            v        += -inner_lr * d/d delta (dL_S/d delta . v)

        ZeRO 3 has no backward pass of a backward pass, so both are central differences, as in DARTS (Liu et al. 2019,
        https://arxiv.org/abs/1806.09055, equation 8): the ordinary gradient of

            -inner_lr / (2 eps) * [L_S(theta, delta_k + eps v) - L_S(theta, delta_k - eps v)],   eps = 0.001 / |v|

        with respect to theta and delta.

        Args:
            tasks: this worker's, of which workers may have different numbers, also none.
            meta_batch_size: tasks of all workers together.
            learning_rate: of AdamW.
            inner_lr: step size of the inner loop.
            inner_steps: its number of steps.
            second_order: MAML instead of FOMAML.
            texts: this worker's for the language-modelling loss, which is added over all workers with the weight
                lm_weight / meta_batch_size a text.
            lm_weight: see there.
            seeds: one for each task and the text beside it, that fixes their dropout; 0 where there are none.

        Returns:
            As `Engine.step`, the L2 norm of the gradient before clipping, or inf where nothing was applied; and this
            worker's share of the means over the meta-batch: losses (nats), accuracies, and tokens.

        Raises:
            UserError: second order in bf16, where a difference this small is all rounding.
        """
        if second_order and self._precision == "bf16":
            raise UserError(
                "meta.algorithm maml with partitioned weights takes differences of gradients, which bf16 rounds "
                "away: set engine.precision to fp32, or meta.algorithm to fomaml"
            )
        self._forget_gradients()
        # A mean over workers is what DeepSpeed makes, and a sum over them is what is wanted.
        weight = torch.distributed.get_world_size() / meta_batch_size
        metrics: dict[str, float] = defaultdict(float)
        seeds = seeds or [0] * max(len(tasks), len(texts))
        for task, seed, share in self._padded(tasks, seeds, self._no_task()):
            found = self._task(task, seed, share * weight, inner_lr, inner_steps, second_order)
            for name, value in found.items():
                metrics[name] += share * value / meta_batch_size
        for text, seed, share in self._padded(texts, seeds, self._no_text()):
            loss = self._text(text, seed + inner_steps + 1, share * weight * lm_weight)
            metrics["lm_loss"] += share * loss / meta_batch_size
        self._deltas.values = {}  # the last task's are not held until the next one
        return self._apply(learning_rate), dict(metrics)

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The network has other weights, of which each worker takes its parts, one tensor at a time; its own parts, of
        which it holds a copy meanwhile, are put back to the bit. Collective where the making of the tensors is."""
        parameters: dict[str, Any] = self._parameters
        own: dict[str, Tensor] = {}
        try:
            for name, parameter in parameters.items():
                value = weights[name]
                own[name] = parameter.ds_tensor.clone()
                parameter.ds_tensor.copy_(self._shard(parameter, value))
            yield
        finally:
            for name, kept in own.items():
                parameters[name].ds_tensor.copy_(kept)

    def query_scores(
        self, tasks: Sequence[TaskBatch], *, inner_lr: float, inner_steps: int, seeds: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Scores (query texts, classes) after adaptation to each of this worker's tasks, of which there may be none.

        Collective, as a step is; the parameters stay as they are. Without dropout if the network is in evaluation mode.
        """
        scores = []
        for task, seed, share in self._padded(tasks, seeds or [0] * len(tasks), self._no_task()):
            fast = self._zero(task.n_way)
            for step in range(inner_steps):
                _, fast = self._inner_step(fast, task, seed + step, inner_lr)
            with torch.no_grad():
                _, found = self._loss(fast, task.query, task.query_labels, seed + inner_steps)
            if share:
                scores.append(found)
        self._deltas.values = {}
        return scores

    def _task(
        self, task: TaskBatch, seed: int, weight: float, inner_lr: float, inner_steps: int, second_order: bool
    ) -> dict[str, float]:
        """Add `weight` times a task's meta-gradient to the partitioned gradients; returns the task's metrics."""
        metrics = {}
        fast, starts = self._zero(task.n_way), []
        for step in range(inner_steps):
            if second_order:
                starts.append(fast)
            loss, fast = self._inner_step(fast, task, seed + step, inner_lr)
            metrics[f"support_loss/{step}"] = loss
        loss, scores, adjoint = self._outer_pass(fast, task.query, task.query_labels, seed + inner_steps, weight)
        if second_order:
            for step in reversed(range(inner_steps)):
                self._add_differences(adjoint, starts[step], task, seed + step, inner_lr)
        return metrics | {
            "query_loss": loss,
            "query_accuracy": float((scores.argmax(1) == task.query_labels).float().mean()),
            "query_accuracy_before": float((task.query_labels == 0).float().mean()),
            "support_tokens": task.support.num_tokens,
            "query_tokens": task.query.num_tokens,
        }

    def _text(self, text: "LanguageModelBatch", seed: int, weight: float) -> float:
        """Add `weight` times the gradient of the language-modelling loss; returns that loss (nats a token)."""
        if not len(text.targets):  # a text of one token, of which a decoder predicts nothing
            text, weight = self._no_text(), 0.0
        torch.manual_seed(seed)
        self._deltas.values = {}
        with passes_in(self._precision):
            logits = self.network.language_model_logits({}, text.tokens, text.positions)
        loss = functional.cross_entropy(logits.float(), text.targets)
        self._engine.backward(weight * loss)
        return float(loss.detach()) if weight else 0.0

    def _inner_step(self, fast: Fast, task: TaskBatch, seed: int, inner_lr: float) -> tuple[float, Fast]:
        """The support loss, and the fast weights after a step of gradient descent on it."""
        fast = {name: value.requires_grad_() for name, value in fast.items()}
        with self._frozen():
            loss, _ = self._loss(fast, task.support, task.support_labels, seed)
            gradients = torch.autograd.grad(loss, list(fast.values()), allow_unused=True, materialize_grads=True)
        # Where a module's input needs no gradient, DeepSpeed is not told that its backward pass is over.
        self._engine.optimizer.parameter_offload.release_backward_leftovers()
        moved = (value.detach() - inner_lr * gradient for value, gradient in zip(fast.values(), gradients, strict=True))
        return float(loss.detach()), dict(zip(fast, moved, strict=True))

    def _outer_pass(
        self, fast: Fast, batch: TokenBatch, labels: Tensor, seed: int, weight: float
    ) -> tuple[float, Tensor, Fast]:
        """Add the gradient of `weight` times the loss to the partitioned gradients.

        Returns the loss, the scores (texts, classes), and the same gradient with respect to the fast weights.
        """
        fast = {name: value.detach().requires_grad_() for name, value in fast.items()}
        loss, scores = self._loss(fast, batch, labels, seed)
        self._engine.backward(weight * loss)
        gradients = {n: value.grad if value.grad is not None else torch.zeros_like(value) for n, value in fast.items()}
        return float(loss.detach()), scores.detach(), gradients

    def _add_differences(self, adjoint: Fast, start: Fast, task: TaskBatch, seed: int, inner_lr: float) -> None:
        """Go back through one inner step: add to the partitioned gradients, and to the adjoint `v` in place."""
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in adjoint.values()))
        eps = DIFFERENCE_NORM / norm if norm > 0 else 0.0
        change: dict[str, Tensor] = {}
        for sign in (1, -1):
            moved = {name: value.detach() + sign * eps * adjoint[name] for name, value in start.items()}
            # With an adjoint of zero there is nothing to add, but other workers run these passes with theirs.
            weight = -sign * inner_lr / (2 * eps) if eps > 0 else 0.0
            _, _, part = self._outer_pass(moved, task.support, task.support_labels, seed, weight)
            change = {name: value + change[name] if change else value for name, value in part.items()}
        for name, value in adjoint.items():
            value.add_(change[name])

    def _loss(self, fast: Fast, batch: TokenBatch, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (nats), and the scores (texts, classes)."""
        torch.manual_seed(seed)
        self._deltas.values = fast
        with passes_in(self._precision):
            features = self.network.features({}, batch)
        scores = functional.linear(features, fast["head.weight"], fast["head.bias"])
        return functional.cross_entropy(scores, labels), scores

    def _zero(self, n_way: int) -> Fast:
        shapes: Mapping[str, Sequence[int]] = {
            **self._adapted_shapes,
            "head.weight": (n_way, self.network.hidden_size),
            "head.bias": (n_way,),
        }
        return {name: torch.zeros(*shape, device=self._device) for name, shape in shapes.items()}

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Nothing is computed for the gradients of the parameters themselves, nor below the lowest delta."""
        for parameter in self._trained.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._trained.values():
                parameter.requires_grad_(True)

    def _padded(self, own: Sequence[T], seeds: Sequence[int], nothing: T) -> Iterator[tuple[T, int, float]]:
        """This worker's, each with its seed and 1, and then `nothing` with 0, on every worker as many.

        Each pass through the network is collective, so all workers have to run as many.
        """
        most = torch.tensor(len(own), device=self._device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        for position in range(int(most)):
            yield (own[position], seeds[position], 1.0) if position < len(own) else (nothing, 0, 0.0)

    def _no_tokens(self) -> tuple[TokenBatch, Tensor]:
        """One text of one token, and the number 0: the passes of a batch at the least cost."""
        one = torch.ones(1, 1, dtype=torch.long, device=self._device)
        return TokenBatch(one * 0, one, one[0] * 0, (1,)), one[0] * 0

    def _no_task(self) -> TaskBatch:
        batch, zero = self._no_tokens()
        return TaskBatch(batch, zero, batch, zero, 1)

    def _no_text(self) -> Any:
        batch, zero = self._no_tokens()
        return SimpleNamespace(tokens=batch, positions=(zero, zero), targets=zero)

    def _forget_gradients(self) -> None:
        """Make the partitioned gradients zero, and what is averaged into them add up.

        DeepSpeed counts the passes between two steps in its engine's own forward pass, which is not used here; and the
        gradient of a parameter that the first of them does not reach would begin with that of the step before.
        """
        self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        if self._offloads:
            # The host's copy is written for those parameters alone that a pass has reached.
            for gradient in self._averaged_gradients():
                gradient.zero_()
        self._engine.optimizer.micro_step_id = 1
