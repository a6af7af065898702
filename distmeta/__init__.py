"""distmeta: distributed meta-pretraining of language models on Ray and DeepSpeed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.adapt.classifier import Classifier

__version__ = "0.1.0"
__all__ = ["Classifier"]


def __getattr__(name: str) -> Any:
    """`Classifier` is loaded when it is first asked for: the command line starts without torch."""
    if name == "Classifier":
        from distmeta.adapt.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
