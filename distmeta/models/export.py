"""A network as a Hugging Face folder: `AutoModel` loads it, and a language model stands in a folder inside it."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerBase

from distmeta.models.network import Network, Parameters

LANGUAGE_MODEL_FOLDER = "language-model"


def export(network: Network, parameters: Parameters, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes weights (safetensors, fp32), configuration and tokenizer to `folder`.

    `AutoModel.from_pretrained(folder)` finds every key and no other, and computes what the network does: adapters
    are written into the weights they belong to. The language-modelling head, where there is one, cannot stand in the
    same file without being unexpected there; `from_pretrained(folder, subfolder="language-model")` loads it with its
    network.
    """
    merged = {name: value.detach().cpu() for name, value in network.merged(parameters).items()}
    # The model with these values in place of its own, of which no copy is made.
    values: dict[int, Any] = {
        id(own): nn.Parameter(merged[f"model.{name}"], requires_grad=False)
        for name, own in network.model.named_parameters()
    }
    whole = copy.deepcopy(network.model, values).cpu()
    whole.config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        bare = AutoModel.from_config(whole.config)
    weights = dict(whole.base_model.state_dict()) | network.unused
    bare.save_pretrained(folder, state_dict={name: value.contiguous() for name, value in weights.items()})
    tokenizer.save_pretrained(folder)
    if network.has_language_model:
        whole.save_pretrained(folder / LANGUAGE_MODEL_FOLDER)
        tokenizer.save_pretrained(folder / LANGUAGE_MODEL_FOLDER)
