"""Settings of meta-learning: the inner loop, the outer loop, and the language-modelling loss beside them."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from distmeta.meta.registry import algorithm_names
from distmeta.section import UNSET, ByRecipe, Section, check_pattern


class MetaConfig(Section):
    """How the network learns to learn."""

    algorithm: str = "fomaml"
    """maml (second order), fomaml, reptile, anil, metasgd, protomaml, protonet, leopard, metaicl (decoders), or, for
    comparison, multitask (no meta-learning: a head a labelled data set over all its training classes)."""
    adapt: str = "all"
    """Fast weights beside the head: all, lora, bias (and norms), last_k (layers), head (no other), or regex:PATTERN."""
    last_k: int = Field(default=1, ge=1)
    """Layers, from the top, that `adapt: last_k` adapts."""
    freeze_lowest: int | None = Field(default=None, ge=0)
    """Keep the embeddings and so many of the lowest layers as they are in the outer loop; unset: train everything."""
    second_order: bool | None = None
    """Differentiate through the inner loop; unset: as the algorithm's paper does."""
    recompute: bool = False
    """Second order: compute each inner step again instead of keeping its graph; less memory, a third more work."""
    inner_lr: ByRecipe[NonNegativeFloat] = UNSET
    """Learning rate of the inner loop; unset: by recipe, see the end."""
    inner_steps: ByRecipe[PositiveInt] = UNSET
    """Steps of the inner loop in training; unset: by recipe, see the end."""
    inner_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """Optimizer of the inner loop."""
    inner_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of `inner_optimizer: momentum`."""
    inner_clipping: float = Field(default=0.0, ge=0)
    """Largest norm of an inner gradient; 0: none."""
    inner_rates: Literal["fixed", "layer_step"] = "fixed"
    """layer_step: learn a rate for each parameter tensor and inner step, from `inner_lr` on (MAML++)."""
    multi_step_loss: float = Field(default=0.0, ge=0, le=1)
    """Share of the outer steps in which the query loss after every inner step counts, ever less (MAML++); 0: none."""
    distance: ByRecipe[Literal["euclidean", "cosine", "centred-cosine"]] = UNSET
    """protonet: how far a text is from a prototype; euclidean is squared; centred-cosine takes away first what the
    classes of a task have in common; unset: by recipe, see the end."""
    temperature: float | None = Field(default=None, gt=0)
    """protonet: what distances are divided by; unset: 1 for euclidean, 0.1 for the cosines."""
    learn_temperature: bool = False
    """protonet: learn it, from there on."""
    keep_similarity: ByRecipe[NonNegativeFloat] = UNSET
    """protonet and multitask: weight of a term that keeps how alike the starting network finds the texts of a task, for
    a third more operations; 0: none; unset: by recipe, see the end."""
    outer_lr: ByRecipe[PositiveFloat] = UNSET
    """Peak learning rate of the outer loop (AdamW); unset: by recipe, see the end."""
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

    @field_validator("algorithm")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in algorithm_names():
            raise ValueError(f"{name} is none of {', '.join(algorithm_names())}")
        return name

    @field_validator("adapt")
    @classmethod
    def _adaptable(cls, name: str) -> str:
        if name.startswith("regex:"):
            check_pattern(name.removeprefix("regex:"))
        elif name not in ("all", "lora", "bias", "last_k", "head"):
            raise ValueError(f"{name} is none of all, lora, bias, last_k, head and regex:PATTERN")
        return name
