"""A Hugging Face network as meta-learning uses it: features of a text, and logits of a language model."""

import copy
from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from distmeta.models.batch import TokenBatch
from distmeta.models.lora import Target, find_targets, make_adapters, merge

Parameters = dict[str, torch.Tensor]
Pooling = Literal["mean", "mask", "first", "last"]


class Network(nn.Module):
    """Holds the meta-parameters and says what they compute; it is always called with parameters from outside.

    Args:
        model: the language model, or the bare network where no language modelling is asked for.
        pooling: which hidden states are the features of a text.
        lora_rank: rank of the adapters on query and value projections; 0: none.
        lora_alpha: the adapters' update is scaled by alpha / rank.
        unused: tensors of the bare network that its language model does not have (BERT's pooler), kept for the export.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pooling: Pooling,
        *,
        lora_rank: int = 0,
        lora_alpha: float = 1.0,
        unused: Parameters | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.unused = unused or {}
        self.lora_targets: list[Target] = []
        self.lora_scale = 0.0
        if lora_rank:
            self.lora_targets = find_targets(self)
            self.lora_scale = lora_alpha / lora_rank
            self.lora = make_adapters(self, self.lora_targets, lora_rank)

    @property
    def base(self) -> PreTrainedModel:
        """The network without a language-modelling head."""
        base = self.model.base_model
        assert isinstance(base, PreTrainedModel)
        return base

    @property
    def has_language_model(self) -> bool:
        """Whether the model carries a language-modelling head."""
        return self.model.base_model is not self.model

    @property
    def hidden_size(self) -> int:
        """Width of the features."""
        return self.model.config.hidden_size

    def adapted_names(self, adapt: Literal["all", "lora", "head"]) -> list[str]:
        """Names of the parameters that are fast weights beside the head, which always is one."""
        if adapt == "head":
            return []
        if adapt == "lora":
            return [name for name, _ in self.named_parameters() if name.startswith("lora.")]
        base = {id(parameter) for parameter in self.base.parameters()}
        return [name for name, parameter in self.named_parameters() if id(parameter) in base]

    def skeleton(self) -> "Network":
        """A copy without weights of its own, to be called with parameters from outside whatever becomes of this one."""
        twin = copy.deepcopy(self)
        for parameter in twin.parameters():
            parameter.data = torch.empty(0)
        return twin

    def merged(self, parameters: Parameters) -> Parameters:
        """The parameters with the adapters, if any, written into the weights."""
        return merge(parameters, self.lora_targets, self.lora_scale) if self.lora_targets else parameters

    def features(self, parameters: Parameters, batch: TokenBatch) -> torch.Tensor:
        """Features of each text under the given parameters: (sequences, hidden_size), fp32."""
        hidden = functional_call(self, self.merged(parameters), ("hidden", batch))
        return _pool(hidden, batch, self.pooling).float()

    def language_model_logits(
        self, parameters: Parameters, batch: TokenBatch, positions: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Vocabulary logits at the given (rows, columns) alone: (positions, vocabulary), fp32.

        The projection to the vocabulary costs more than a small network's layers, so it is not done where no
        prediction is scored.
        """
        return functional_call(self, self.merged(parameters), ("logits", batch, positions)).float()

    def forward(self, what: Literal["hidden", "logits"], batch: TokenBatch, positions: Any = None) -> torch.Tensor:
        """Hidden states (sequences, length, hidden_size), or logits at `positions`: for the methods above."""
        arguments: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if not self.model.config.is_encoder_decoder and hasattr(self.model.config, "use_cache"):
            arguments["use_cache"] = False
        if what == "hidden":
            return self.base(**arguments).last_hidden_state

        def keep_positions(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[positions][None]
            return output

        hook = self.base.register_forward_hook(keep_positions)
        try:
            return self.model(**arguments).logits[0]
        finally:
            hook.remove()


def _pool(hidden: torch.Tensor, batch: TokenBatch, pooling: Pooling) -> torch.Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    if pooling == "mean":
        mask = batch.attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)
    if pooling == "mask":
        return hidden[rows, batch.mask_positions]
    if pooling == "first":
        return hidden[:, 0]
    return hidden[rows, batch.attention_mask.sum(1) - 1]
