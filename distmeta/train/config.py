"""Settings of a training run."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from distmeta.section import UNSET, ByRecipe, Section
from distmeta.tasks.config import bounds, check_range


def _share(value: Any) -> Any:
    """A run that began before there was a share lists those of averages to try: none, or some."""
    if isinstance(value, list) and all(isinstance(each, float) for each in value):
        return "auto" if value else 0.0
    return value


SHARES = (0.25, 0.5, 0.75)
"""Of the starting weights, in the averages that `average_with_start: auto` tries."""

Share = Annotated[float, Field(ge=0, le=1)]
Workers = Annotated[int | list[int], AfterValidator(partial(check_range, lowest=1))]
"""A number, or [fewest, most]."""


class TrainConfig(Section):
    """Workers, steps and checkpoints."""

    num_workers: Workers = 1
    """Ray Train workers; each computes its share of the tasks of an outer step: a number, or [fewest, most] of which
    there are as many as the cluster has room for, fewer when a node is lost and more when one comes."""
    cpus_per_worker: float = Field(default=1.0, ge=0.01)
    """CPUs that a worker takes from the cluster; below 1 several workers share one."""
    outer_steps: ByRecipe[PositiveInt] = UNSET
    """Outer steps of the whole run, those before a resume included; unset: by recipe, see the end."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Outer steps between checkpoints; the last step is always one."""
    checkpoints_to_keep: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    validate_every: int | None = Field(default=None, ge=0)
    """Outer steps between validations on the meta-valid classes; 0: never, and the last network is kept; unset: a tenth
    of `outer_steps`."""
    validate_episodes: int = Field(default=200, ge=1)
    """Episodes of a validation, the same ones each time; all-way a fifth as many."""
    validate_inner_loops: int = Field(default=20, ge=1)
    """So many of them where an inner loop adapts the network to each, which takes long; where that does not select, in
    the first and the last validation alone."""
    select_by: ByRecipe[Literal["inner-loop", "prototype", "prototype-all-way"]] = UNSET
    """Meta-valid accuracy that chooses the best network: after the inner loop, by prototype, or by that all-way; unset:
    by recipe, see the end."""
    average_with_start: Annotated[Share | Literal["auto"] | None, BeforeValidator(_share)] = None
    """Share of the starting weights in the network that is kept, from 0 to 1, which forgets less; auto: of 0, 0.25,
    0.5, 0.75 and 1 the largest that the meta-valid classes find as good as the best; unset: by recipe, see the end, 0
    without validations."""
    patience: int | None = Field(default=None, ge=0)
    """Validations without a new best one after which a run ends; 0: none; unset: by recipe, see the end, 0 without
    validations."""
    max_loss: float = Field(default=50.0, gt=0)
    """Query or language-model loss above which a run has diverged and ends, as where one is not finite (nats)."""
    seed: int = Field(default=0, ge=0)
    """Fixes the new weights, the tasks, the text and the dropout."""
    storage: str | None = None
    """Where checkpoints go: a shared path or an s3:// address; unset: the run directory."""
    max_failures: int = Field(default=3, ge=-1)
    """Lost workers that are made good before a run gives up, -1: any number; a fault of the code ends it at once, and
    workers whose node was lost or taken away are not counted."""
    wait_for_nodes: float = Field(default=1800.0, ge=0)
    """Longest wait for room for the fewest workers, at the start and where a node was lost; then the run ends, and can
    be resumed (seconds)."""
    wait_for_worker: float = Field(default=60.0, ge=0)
    """Shortest wait for a worker that makes no step or does not answer; when it has lasted five times the longest step
    so far as well, the worker counts as lost; 0: wait for ever (seconds)."""
    wait_for_storage: float = Field(default=1200.0, ge=0)
    """Longest wait for a storage that fails or is full; then the run ends, and can be resumed (seconds)."""

    @property
    def fewest_workers(self) -> int:
        """Without so many the run waits."""
        return bounds(self.num_workers)[0]

    @property
    def most_workers(self) -> int:
        """There are never more."""
        return bounds(self.num_workers)[1]

    @property
    def validates(self) -> bool:
        """Whether there are validations."""
        return self.validate_every != 0

    @property
    def interval(self) -> int:
        """Outer steps between validations, `validate_every` filled in; 0: there are none."""
        return max(1, self.outer_steps // 10) if self.validate_every is None else self.validate_every
