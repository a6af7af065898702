"""Meta-learning: inner loop, outer objective, and the language-modelling loss beside it. No Ray, no DeepSpeed."""

from distmeta.meta.inner_loop import Adapted, adapt, logits
from distmeta.meta.learner import Learner, Work
from distmeta.meta.maml import TaskResult, task_gradient

__all__ = ["Adapted", "Learner", "TaskResult", "Work", "adapt", "logits", "task_gradient"]
