"""Algorithms by name: a line each. Imports nothing heavy, so that a configuration can be checked at once."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distmeta.meta.algorithm import Algorithm

_ALGORITHMS = {
    "maml": "distmeta.meta.maml:MAML",
    "fomaml": "distmeta.meta.maml:FirstOrderMAML",
    "reptile": "distmeta.meta.reptile:Reptile",
    "anil": "distmeta.meta.anil:ANIL",
    "metasgd": "distmeta.meta.metasgd:MetaSGD",
    "protomaml": "distmeta.meta.protomaml:ProtoMAML",
    "protonet": "distmeta.meta.protonet:PrototypicalNetwork",
    "leopard": "distmeta.meta.leopard:LEOPARD",
    "metaicl": "distmeta.meta.metaicl:MetaICL",
    "multitask": "distmeta.meta.multitask:MultiTask",
}


def algorithm_names() -> list[str]:
    """Names that `meta.algorithm` can have."""
    return list(_ALGORITHMS)


def register(name: str, path: str) -> None:
    """Makes `module:Class`, an `Algorithm`, known under a name; workers of Ray have to do the same."""
    _ALGORITHMS[name] = path


def algorithm_class(name: str) -> "type[Algorithm]":
    """The class of that name.

    Raises:
        KeyError: there is none.
    """
    module, _, attribute = _ALGORITHMS[name].partition(":")
    return getattr(import_module(module), attribute)
