"""One DeepSpeed engine a worker: it averages, clips and applies ready gradients and shards what AdamW needs for that.

The engine holds the parameters and never runs the module, so whoever computes the gradients needs to know nothing of
DeepSpeed, and DeepSpeed puts no hook on the module. Weights and optimizer states are fp32 throughout.
"""

import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from distmeta.engine.config import EngineConfig
from distmeta.engine.parts import Piece
from distmeta.engine.state import EngineState
from distmeta.errors import UserError
from distmeta.tensors import LazyTensors

# DeepSpeed sets a buffer of this size aside for the gradients that are on their way; its default would be 2 GB.
LARGEST_BUCKET = 50_000_000


class Engine:
    """AdamW (betas 0.9 and 0.999, epsilon 1e-8) on the parameters of a module, sharded over the workers by ZeRO.

    Everything it does is collective: every worker calls the same methods in the same order. Parameters of one dimension
    (biases, layer norms) are not decayed. Frozen ones (`requires_grad` False) are held and never changed.

    It uses the process group that is there, as under Ray Train or torchrun; in a process on its own it makes one of
    size 1. With `state`, the same on every worker, it goes on from there, whatever the number of workers and the ZeRO
    stage that wrote it; without, every worker begins with the weights of rank 0. At ZeRO stage 3 the parameters of
    `module` are empty from then on: their values are in `full_parameters()`.

    With `offload_optimizer`, the weights that AdamW updates, their gradients and its states are in the host's memory,
    and the update is made there, by torch. (DeepSpeed's own AdamW for the host would have to be compiled.) On a CPU
    that is the same work with some more memory.

    Raises UserError where `state` does not fit the module, DeepSpeed in this process works on another device, or
    optimizer states are to be offloaded that ZeRO does not share out.
    """

    def __init__(
        self,
        module: nn.Module,
        config: EngineConfig,
        *,
        weight_decay: float,
        device: torch.device,
        state: EngineState | None = None,
    ) -> None:
        self._hold(module, config, weight_decay, device, state)
        module.to(device)
        if state is not None:
            _copy_weights(state.weights, module)
        # Not the module itself: DeepSpeed puts no hook on it then.
        self._begin(nn.ParameterList(self._parameters.values()), device)
        self._restore(state)

    def _hold(
        self, module: nn.Module, config: EngineConfig, weight_decay: float, device: torch.device, state: Any
    ) -> None:
        """The parameters, which the state has to fit, a process group and AdamW."""
        if config.offload_optimizer and config.zero_stage == 0:
            raise UserError("engine.offload_optimizer: needs engine.zero_stage 1, 2 or 3, which is 0")
        self._deepspeed = _import_deepspeed(device)
        if state is not None:
            state.check_fits(module)
        self._device = device
        self._stage = config.zero_stage
        self._offloads = config.offload_optimizer
        self._clipping = config.gradient_clipping
        self._parameters = dict(module.named_parameters())
        self._outlines = {name: torch.empty_like(p, device="meta") for name, p in self._parameters.items()}
        self._trained = {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}
        self._step = state.step if state is not None else 0
        self.communication_seconds = 0.0
        """Time in which the last `step` averaged the gradients over the workers."""
        self.clip_factor: float | None = None
        """What the last `step` multiplied the gradient by to clip it; 1: it was not; None: it was not applied."""

        self._made_group = not torch.distributed.is_initialized()
        if self._made_group:
            backend = "nccl" if device.type == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        self._rank = torch.distributed.get_rank()

        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for p in self._trained.values() if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in self._trained.values() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.999),
            eps=1e-8,
        )

    def _begin(self, module: nn.Module, device: torch.device) -> None:
        """DeepSpeed's engine."""
        # LOCAL_RANK has to be there, though the device is chosen by `device_rank`.
        with environment(LOCAL_RANK="0"):
            self._engine, *_ = self._deepspeed.initialize(
                args=SimpleNamespace(device_rank=device.index or 0),
                model=module,
                optimizer=self._adamw,
                config=self._deepspeed_config(),
            )

    def _restore(self, state: EngineState | None) -> None:
        """The states of the optimizer: zeros, or those of `state`."""
        self._make_optimizer_state()
        if state is not None:
            for name, parameter in self._trained.items():
                self._set_optimizer_state(parameter, "exp_avg", state.exp_avg[name])
                self._set_optimizer_state(parameter, "exp_avg_sq", state.exp_avg_sq[name])

    @contextmanager
    def full_parameters(self) -> Iterator[dict[str, Tensor]]:
        """The full-size value of every parameter, by its name in the module, tied ones once: detached, on the device.

        To be read only, and until the next `step`, inside the context or after it. At ZeRO stages 0 to 2 they are the
        engine's own memory, without a copy; at stage 3 they are gathered here.
        """
        with self._gathered(list(self._parameters.values())):
            # DeepSpeed lets go of the gathered memory without writing to it, so these stay whole after the context.
            full = {name: parameter.detach() for name, parameter in self._parameters.items()}
        yield full

    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> float:
        """Average the gradients over the workers, clip and apply them.

        `gradients` holds this worker's own by parameter name, full-size, and is left as it is; one that is not there is
        zero. Returns the global L2 norm of the average before clipping. Where it is not finite, nothing is applied and
        inf is returned. The time that averaging took is in `communication_seconds`.
        """
        started = time.perf_counter()
        assert gradients.keys() <= self._trained.keys(), "a gradient for something that is not trained"
        parameters = list(self._trained.values())
        with self._gathered(parameters):
            ready = [gradients[name] if name in gradients else torch.zeros_like(p) for name, p in self._trained.items()]
            self._engine.backward(_ReadyGradients.apply(ready, *parameters))
        self.communication_seconds = time.perf_counter() - started
        return self._apply(learning_rate)

    def state(self) -> EngineState:
        """What `Engine(state=...)` takes, of which every tensor is gathered when it is asked for.

        That is collective, and gives each worker the tensor on its device: to be read only, and until the next `step`.
        """
        trained = {name: self._outlines[name] for name in self._trained}
        return EngineState(
            self._step,
            LazyTensors(self._outlines, self._weight),
            LazyTensors(trained, partial(self._optimizer_state, "exp_avg")),
            LazyTensors(trained, partial(self._optimizer_state, "exp_avg_sq")),
        )

    def part(self) -> list[Piece]:
        """What this worker has to write of a checkpoint: its own memory, good until the next `step`.

        All workers' parts together have every number of `state` once. Where a tensor is whole on each of them, each
        takes an equal share.
        """
        pieces = []
        for name, parameter in self._parameters.items():
            start, count = self._share(parameter, name in self._trained)
            if count > 0:
                pieces.append(Piece("weights", name, start, self._own_weights(parameter, start, count)))
                if name in self._trained:
                    moments = {key: self._own_moment(parameter, key, start, count) for key in ("exp_avg", "exp_avg_sq")}
                    pieces += [Piece(key, name, start, values) for key, values in moments.items()]
        return pieces

    def close(self) -> None:
        """Let go of DeepSpeed's engine, and of the process group if it was made here."""
        self._engine.destroy()
        if self._stage == 3:
            # DeepSpeed never takes modules out of this list, and each keeps its engine and optimizer states alive.
            self._deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK.remove(self._engine.module)
        del self._engine
        if self._made_group:
            self._deepspeed.comm.destroy_process_group()

    def _deepspeed_config(self) -> dict[str, Any]:
        trained_numel = sum(self._outlines[name].numel() for name in self._trained)
        zero_optimization: dict[str, Any] = {
            "stage": self._stage,
            "reduce_bucket_size": min(trained_numel, LARGEST_BUCKET),
            # The gradients come all at once: there is no computation to overlap with.
            "overlap_comm": False,
            # By default small parameters are kept whole everywhere, for forward passes that are never run here.
            "stage3_param_persistence_threshold": 0,
        }
        if self._offloads:
            zero_optimization["offload_optimizer"] = {"device": "cpu"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            # Its default is 1; `_clip` does it instead.
            "gradient_clipping": 0.0,
            # Else DeepSpeed takes no AdamW but its own for the host, which has to be compiled.
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero_optimization,
        }

    def _apply(self, learning_rate: float) -> float:
        """Clip and apply the averaged gradients, unless one is not finite; returns the norm as `step` does."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._clip()
        if math.isfinite(norm):
            self._engine.step()
            self._step += 1
            return norm
        self._drop_gradients()
        return math.inf

    def _clip(self) -> float:
        """Scale the averaged gradients down to the largest norm; returns the norm that they had.

        DeepSpeed rounds otherwise at each stage, and at stage 0 does not tell the norm. So it is done here, in float64
        and by the formula of `torch.nn.utils.clip_grad_norm_`: the same to the bit at every stage, and to 1e-12 with
        offloaded optimizer states.
        """
        shards = self._averaged_gradients()
        square = sum(torch.linalg.vector_norm(shard, dtype=torch.float64).square() for shard in shards)
        if self._stage > 0:
            square = square.to(self._device)
            torch.distributed.all_reduce(square)
        norm = math.sqrt(square)
        self.clip_factor = 1.0 if math.isfinite(norm) else None
        if 0 < self._clipping < norm < math.inf:
            self.clip_factor = self._clipping / (norm + 1e-6)
            for shard in shards:
                shard.mul_(self.clip_factor)
        return norm

    def _averaged_gradients(self) -> list[Tensor]:
        """What AdamW will take: this worker's shards of the gradients, at stage 0 all of them."""
        if self._stage == 0:
            return [parameter.grad for parameter in self._trained.values() if parameter.grad is not None]
        if self._offloads:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # they may be on their way to the host still
            return [partition.grad for partition in self._partitions() if partition.grad is not None]
        return [shard for group in self._engine.optimizer.averaged_gradients.values() for shard in group]

    def _drop_gradients(self) -> None:
        if self._stage == 0:
            self._engine.zero_grad()
        else:
            # DeepSpeed's optimizers leave a gradient that is not finite out by themselves, and tidy up after it.
            self._engine.step()

    def _gathered(self, parameters: list[nn.Parameter]) -> Any:
        """A context in which the parameters are whole on every worker."""
        return self._deepspeed.zero.GatheredParameters(parameters) if self._stage == 3 else nullcontext()

    def _partitions(self) -> list[Tensor]:
        """The tensors that AdamW itself updates: the parameters, or this worker's flat shards of them."""
        if self._stage == 0:
            return list(self._trained.values())
        if self._stage == 3:
            return self._engine.optimizer.fp32_partitioned_groups_flat
        return self._engine.optimizer.single_partition_of_fp32_groups

    def _make_optimizer_state(self) -> None:
        """Make what AdamW would make at its first step, so that it can be read and set at any time."""
        for partition in self._partitions():
            self._adamw.state[partition] = {
                "step": torch.tensor(float(self._step)),
                "exp_avg": torch.zeros_like(partition),
                "exp_avg_sq": torch.zeros_like(partition),
            }
        if self._stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _weight(self, name: str) -> Tensor:
        """The full-size value of a parameter, on every worker."""
        with self._gathered([self._parameters[name]]):
            return self._parameters[name].detach()

    def _optimizer_state(self, key: str, name: str) -> Tensor:
        """The full-size moment `key` of a parameter, on every worker."""
        parameter = self._trained[name]
        if self._stage == 0:
            return self._adamw.state[parameter][key]
        return self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key)

    def _share(self, parameter: Any, is_trained: bool) -> tuple[int, int]:
        """The first number of a parameter that is in this worker's part, and how many are; none where it is below 1."""
        if self._stage in (1, 2) and is_trained:
            if parameter._hp_mapping is None:
                return 0, 0
            address = parameter._hp_mapping.lp_fragment_address
            return address.start, address.numel
        numel = parameter.ds_numel if self._stage == 3 else parameter.numel()
        share = -(-numel // torch.distributed.get_world_size())
        if self._stage == 3:
            share = parameter.ds_tensor.numel()
        return self._rank * share, min(share, numel - self._rank * share)

    def _own_weights(self, parameter: Any, start: int, count: int) -> Tensor:
        if self._stage == 3:
            return parameter.ds_tensor.detach().reshape(-1)[:count]
        return parameter.detach().reshape(-1)[start : start + count]

    def _own_moment(self, parameter: Any, key: str, start: int, count: int) -> Tensor:
        if self._stage == 0:
            return self._adamw.state[parameter][key].reshape(-1)[start : start + count]
        if self._stage == 3:
            # Not by `safe_get_local_optimizer_state`, which would bring all that is offloaded to the device.
            own, _ = self._engine.optimizer._get_fp32_opt_state_partition(parameter, False, key)
            return own[:count]
        return parameter._hp_mapping.get_optim_state_fragment(key)

    def _set_optimizer_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self._stage == 0:
            self._adamw.state[parameter][key].copy_(value)
        elif self._stage == 3:
            # DeepSpeed's own way from a full tensor fails where its size is no multiple of the number of workers.
            self._deepspeed.utils.safe_set_local_optimizer_state(parameter, self._shard(parameter, value), key)
        else:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)

    def _shard(self, parameter: Any, value: Tensor) -> Tensor:
        """This worker's part of a full tensor at stage 3, padded with zeros at the end."""
        shard = torch.zeros(parameter.ds_tensor.numel())
        part = value.flatten()[self._rank * shard.numel() :][: shard.numel()]
        shard[: part.numel()] = part
        return shard


class _ReadyGradients(torch.autograd.Function):
    """A scalar whose derivatives by the parameters are gradients that are already known.

    It is how they reach DeepSpeed, which takes them in hooks of the backward pass. Exact and without arithmetic; a loss
    of `sum((parameter * gradient).sum())` would do the same with two products and a sum over all of them.
    """

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.gradients)


@torch.no_grad()
def _copy_weights(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(weights[name])


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, set up for a device and so that it compiles nothing."""
    with environment(DS_ACCELERATOR=device.type):
        import deepspeed
    accelerator = deepspeed.accelerator.get_accelerator()
    if accelerator.device_name() != device.type:
        raise UserError(
            f"DeepSpeed works on {accelerator.device_name()} in this process, not on {device.type}: "
            "set engine.device to that, or start a new process without DS_ACCELERATOR in its environment"
        )
    # It calls two collectives by names that torch is about to drop.
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+` is deprecated", FutureWarning)
    # Its shared-memory collectives for the CPU are compiled at first use, which needs a compiler; gloo does without.
    shared_memory = accelerator.create_op_builder("ShareMemCommBuilder")
    if shared_memory is not None:
        deepspeed.ops.__compatible_ops__[shared_memory.NAME] = False
    return deepspeed


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set the variables that are not set, and take them back afterwards."""
    added = variables.keys() - os.environ.keys()
    os.environ.update({name: variables[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
