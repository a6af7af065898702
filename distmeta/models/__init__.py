"""Networks from transformers, as meta-learning uses them. Imports without Ray and without DeepSpeed.

The names below are loaded when they are first asked for: a configuration is checked without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.models.load import load_network, load_tokenizer
    from distmeta.models.network import Network, Parameters
    from distmeta.models.weights import load_weights, save_weights

__all__ = [
    "Network",
    "Parameters",
    "load_network",
    "load_tokenizer",
    "load_weights",
    "save_weights",
]

_MODULES = {
    **dict.fromkeys(("load_network", "load_tokenizer"), "load"),
    **dict.fromkeys(("Network", "Parameters"), "network"),
    **dict.fromkeys(("load_weights", "save_weights"), "weights"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
