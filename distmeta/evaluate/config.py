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
    class_names: bool | None = None
    """Whether the name of each class is one more support example (`tasks.class_names`, or the name alone); unset: as in
    training."""
    queries_together: bool = False
    """Also score each network with the queries of an episode seen together: a row of its own, `queries-together`."""
    inner_steps: int | None = Field(default=None, ge=1)
    """Steps of the inner loop; unset: as in training."""
    language_model_baseline: bool = False
    """Also train and score the same architecture on plain language modelling for the same number of tokens."""
    multitask_baseline: bool = False
    """Also train and score the same network by multi-task training, without meta-learning: on the texts of the same
    tasks, for as many steps, with a head over all training classes of each labelled data set."""
    fine_tuning_episodes: int = Field(default=10, ge=0)
    """On so many of the first episodes the starting network is also fine-tuned, which takes seconds each; 0: none."""
    similarity: str | None = None
    """A file of pairs of texts with scores of how alike they are (columns text_a, text_b, score, and group if there are
    groups; JSON, CSV, TSV or Parquet): measures what training took from what a network knew without any."""
    similarity_pairs: int | None = Field(default=400, ge=2)
    """Pairs of each group that are taken, the first ones; null: all."""
    seed: int = Field(default=1, ge=0)
    """Fixes the episodes."""
