"""Settings of meta-learning: the inner loop, the outer loop, and the language-modelling loss beside them."""

from typing import Literal

from pydantic import Field

from distmeta.section import Section


class MetaConfig(Section):
    """How the network learns to learn."""

    algorithm: Literal["maml", "fomaml"] = "fomaml"
    """maml: second order, exact; fomaml: first order, about half the work."""
    adapt: Literal["all", "lora", "head"] = "all"
    """Fast weights: all parameters and the head, LoRA adapters (query and value) and the head, or the head alone."""
    inner_lr: float = Field(default=0.01, ge=0)
    """Learning rate of the inner loop (SGD)."""
    inner_steps: int = Field(default=5, ge=1)
    """Steps of the inner loop in training."""
    outer_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the outer loop (AdamW)."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW weight decay of the outer loop; not for biases and layer norms."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the outer steps over which the outer learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the outer learning rate falls to 0 after its warm-up."""
    meta_batch_size: int = Field(default=4, ge=1)
    """Tasks an outer step, over all workers."""
    lm_weight: float | None = Field(default=None, ge=0)
    """Weight of the language-modelling loss beside the query loss; unset: 1 for a new model, 0 for a loaded one."""
    lm_warmup_steps: int = Field(default=0, ge=0)
    """First outer steps that train the language model alone: tasks from a cold start teach nothing for a long time."""
    lm_batch_size: int = Field(default=4, ge=1)
    """Language-modelling sequences beside each task of the meta-batch."""
    lm_mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that a masked language model has to fill in."""
