"""Settings of the evaluation on held-out classes."""

from typing import Literal

from pydantic import Field

from distmeta.section import Section
from distmeta.tasks.config import Shots, Ways


class EvaluateConfig(Section):
    """Few-shot episodes on classes that training has not seen."""

    split: Literal["train", "valid", "test"] = "test"
    """Whose classes are scored; train only to look for over-fitting."""
    episodes: int = Field(default=200, ge=1)
    """Episodes, the same ones for every method."""
    n_way: Ways | Literal["all"] | None = None
    """Classes in an episode: a number, [low, high], or all; unset: as in training."""
    k_shot: Shots | None = None
    """Support examples a class: a number, or [low, high]; unset: as in training."""
    query_per_class: int | None = Field(default=None, ge=1)
    """Query examples a class; unset: as in training."""
    inner_steps: int | None = Field(default=None, ge=1)
    """Steps of the inner loop; unset: as in training."""
    language_model_baseline: bool = False
    """Also train and score the same architecture on plain language modelling for the same number of tokens."""
    multitask_baseline: bool = False
    """Also train and score the same network by multi-task training, without meta-learning: on the texts of the same
    tasks, for as many steps, with a head over all training classes of each labelled data set."""
    seed: int = Field(default=1, ge=0)
    """Fixes the episodes."""
