"""Settings of the engine that shards and steps the meta-parameters."""

from typing import Literal

from pydantic import Field

from distmeta.section import Section


class EngineConfig(Section):
    """DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage, what workers share out: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Arithmetic of the forward and backward passes; auto: the faster one here. Weights and their states are fp32."""
    computation: Literal["auto", "packed", "bucketed", "plain"] = "auto"
    """Texts of different lengths: packed without padding, in buckets, or all padded; auto: the first that works."""
    tasks_at_a_time: int | None = Field(default=None, ge=1)
    """Tasks computed at a time, side by side in a row and in threads of a CPU; unset: as many as suit the device."""
    cuda_graphs: bool = True
    """On a GPU, record the work of a group of tasks and replay it as one launch: small models are bound by launches."""
    weights: Literal["auto", "whole", "partitioned"] = "auto"
    """whole: each worker holds all for a step; partitioned (stage 3, fomaml, maml): by layer; auto: as fits."""
    offload_optimizer: bool = False
    """Keep the optimizer's states in the host's memory and update there (ZeRO 1 to 3): room on a GPU, at some speed."""
    activation_checkpointing: bool = False
    """Compute the activations within a layer again on the way back instead of keeping them: less memory, more work."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest norm of the meta-gradient; 0: none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
