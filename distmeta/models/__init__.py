"""Networks from transformers, as meta-learning uses them. Imports without Ray and without DeepSpeed."""

from distmeta.models.batch import TaskBatch, TokenBatch, collate_task, collate_tokens
from distmeta.models.export import export
from distmeta.models.load import load_network, load_tokenizer
from distmeta.models.network import Network, Parameters
from distmeta.models.weights import load_weights, save_weights

__all__ = [
    "Network",
    "Parameters",
    "TaskBatch",
    "TokenBatch",
    "collate_task",
    "collate_tokens",
    "export",
    "load_network",
    "load_tokenizer",
    "load_weights",
    "save_weights",
]
