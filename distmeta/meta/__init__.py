"""Meta-learning: inner loop, outer objective, and the language-modelling loss beside it. No Ray, no DeepSpeed.

The names below are loaded when they are first asked for: a configuration is checked without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.meta.algorithm import Algorithm, TaskResult
    from distmeta.meta.learner import Learner, Work
    from distmeta.meta.library import MetaLearner
    from distmeta.meta.registry import algorithm_class, register

__all__ = ["Algorithm", "Learner", "MetaLearner", "TaskResult", "Work", "algorithm_class", "register"]

_MODULES = {
    **dict.fromkeys(("Algorithm", "TaskResult"), "algorithm"),
    **dict.fromkeys(("Learner", "Work"), "learner"),
    "MetaLearner": "library",
    **dict.fromkeys(("algorithm_class", "register"), "registry"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
