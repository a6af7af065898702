"""Settings of what a run records."""

from typing import Literal

from pydantic import Field

from distmeta.section import Section


class TrackingConfig(Section):
    """Weights & Biases, and what a run costs."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """W&B; auto: as WANDB_MODE says, else online where a key is set (WANDB_API_KEY or `wandb login`), else offline."""
    project: str | None = None
    """W&B project; unset: WANDB_PROJECT, or distmeta."""
    entity: str | None = None
    """W&B user or team; unset: WANDB_ENTITY, or the key's own."""
    group: str | None = None
    """W&B group; unset: WANDB_RUN_GROUP, or in a sweep the name of its directory."""
    name: str | None = None
    """W&B name of the run; unset: WANDB_NAME, or the name of the run directory. WANDB_NOTES and such hold as well."""
    tags: list[str] = Field(default_factory=list)
    """W&B tags; unset: WANDB_TAGS. The algorithm, the ZeRO stage and the kind of network are added."""
    log_model: bool = True
    """Keep the exported model in W&B as an artifact, where online; checkpoints never go there."""
    price_per_worker_hour: float = Field(default=0.0, ge=0)
    """Price of one worker for an hour, in `currency`."""
    currency: str = "USD"
    """Currency of the price."""
