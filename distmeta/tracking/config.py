"""Settings of what a run records."""

from typing import Literal

from pydantic import Field

from distmeta.section import Section


class TrackingConfig(Section):
    """Weights & Biases, and what a run costs."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; auto: online where a key is set (WANDB_API_KEY or `wandb login`), else offline."""
    project: str = "distmeta"
    """W&B project."""
    group: str | None = None
    """W&B group."""
    name: str | None = None
    """W&B name of the run; unset: the name of the run directory."""
    log_model: bool = True
    """Keep the exported model in W&B as an artifact, where online; checkpoints never go there."""
    price_per_worker_hour: float = Field(default=0.0, ge=0)
    """Price of one worker for an hour, in `currency`."""
    currency: str = "USD"
    """Currency of the price."""
