"""Meta-learning: inner loop, outer objective, and the language-modelling loss beside it. No Ray, no DeepSpeed."""

from distmeta.meta.algorithm import Algorithm, TaskResult
from distmeta.meta.learner import Learner, Work
from distmeta.meta.library import MetaLearner
from distmeta.meta.registry import algorithm_class, register

__all__ = ["Algorithm", "Learner", "MetaLearner", "TaskResult", "Work", "algorithm_class", "register"]
