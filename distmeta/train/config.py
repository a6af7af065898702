"""Settings of a training run."""

from typing import Annotated, Literal

from pydantic import Field

from distmeta.section import Section


class TrainConfig(Section):
    """Workers, steps and checkpoints."""

    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers; each computes its share of the tasks of an outer step."""
    cpus_per_worker: float = Field(default=1.0, ge=0.01)
    """CPUs that a worker takes from the cluster; below 1 several workers share one."""
    outer_steps: int = Field(default=400, ge=1)
    """Outer steps of the whole run, those before a resume included."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Outer steps between checkpoints; the last step is always one."""
    checkpoints_to_keep: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    validate_every: int = Field(default=100, ge=0)
    """Outer steps between validations on the meta-valid classes; 0: never, and the last network is kept."""
    validate_episodes: int = Field(default=20, ge=1)
    """Episodes of a validation, the same ones each time."""
    select_by: Literal["inner-loop", "prototype", "prototype-all-way"] = "inner-loop"
    """Meta-valid accuracy that chooses the best network: after the inner loop, by prototype, or by that all-way."""
    average_with_start: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[])
    """Shares of the last network, such as [0.25, 0.5], in averages with the starting weights: more candidates."""
    max_loss: float = Field(default=50.0, gt=0)
    """Query or language-model loss above which a run has diverged and ends, as where one is not finite (nats)."""
    seed: int = Field(default=0, ge=0)
    """Fixes the new weights, the tasks, the text and the dropout."""
    storage: str | None = None
    """Where checkpoints go: a shared path or an s3:// address; unset: the run directory."""
    max_failures: int = Field(default=3, ge=-1)
    """Lost workers that are made good before a run gives up, -1: any number; a fault of the code ends it at once."""
