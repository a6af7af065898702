"""What a run costs in floating-point operations, from counts of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from distmeta.tracking.config import TrackingConfig


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """The sizes of a transformer that set its operations."""

    layers: int
    width: int
    """Width of attention: the sum over the heads."""
    matmul_parameters: int
    """Entries of the weight matrices in the layers; not embeddings, heads, biases and norms."""
    output_parameters: int
    """Entries of the projection to the vocabulary, which language modelling needs."""


@dataclass(frozen=True, slots=True)
class StepTokens:
    """What one outer step computes on, over all workers: real tokens, no padding."""

    support: int = 0
    support_texts: int = 0
    query: int = 0
    query_texts: int = 0
    lm: int = 0
    lm_texts: int = 0
    lm_predictions: int = 0
    """Positions that the language model predicts, each with a projection to the vocabulary."""


def network_size(model: nn.Module, config: PretrainedConfig) -> NetworkSize:
    """Sizes of a Hugging Face model.

    The layers' matrices are those of linear modules that stand in a numbered block (`encoder.layer.0...`, `h.0...`),
    so that pooler and heads don't count. A model whose layers share their weights (ALBERT) has them counted once and
    so comes out too low.
    """
    matrices = [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))
    ]
    heads = config.num_attention_heads
    return NetworkSize(
        layers=config.num_hidden_layers,
        width=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        matmul_parameters=sum(matrices),
        output_parameters=config.vocab_size * config.hidden_size,
    )


@dataclass(frozen=True, slots=True)
class FlopCounter:
    """Floating-point operations of meta-learning: what the algorithm asks for, whatever way it is computed.

    *Forward*, a token: 2 for each entry of the layers' matrices, and 4 x layers x width x context for attention,
    where context is the mean length of the texts (Kaplan et al. 2020, "Scaling Laws for Neural Language Models",
    section 2.1; the attention term as in Chowdhery et al. 2022, "PaLM", appendix B, where 12 stands for forward and
    backward together). A product of two matrices counts as one unit below, w for those with weights and a for those
    inside attention.

    *Backward*: each product makes two, one for each factor's gradient; so forward and backward together are 3w + 3a.
    Where a weight is neither adapted nor trained, its own gradient falls away: 2w + 3a.

    *Inner step, first order*: forward and backward on the support set, with the gradients of what is adapted. All: 3w
    + 3a. LoRA: 2w + 3a. Head: the features do not change from step to step, so the support set goes forward once a
    task: 1w + 1a.

    *Inner step, second order*: the outer backward goes back through the inner step. Through its forward that is two
    products for each product again; through its backward, where each product made two, two for each of these: four.
    So the first order's 3 and 6 more: 9w + 9a; with LoRA, whose backward has one product for each weight, 2 + 2 + 2 =
    6w + 9a; with the head alone the outer gradient reaches the encoder through the features: 3w + 3a.

    *Query set* and *language modelling*: 3w + 3a, and 3 x 2 x output_parameters for each predicted position.

    Left out, since small: embeddings, norms, softmax, biases, few-shot heads and adapters, the optimizer. Padding,
    work that is done again, and work that an implementation spares are not counted either.
    """

    size: NetworkSize
    algorithm: Literal["maml", "fomaml"]
    adapt: Literal["all", "lora", "head"]
    inner_steps: int

    def step(self, tokens: StepTokens) -> float:
        """Operations of one outer step over all workers."""
        weights, attention = self._support_factors()
        total = self._forward(tokens.support, tokens.support_texts, weights, attention)
        total += self._forward(tokens.query, tokens.query_texts, 3, 3)
        total += self._forward(tokens.lm, tokens.lm_texts, 3, 3)
        total += 3 * 2 * self.size.output_parameters * tokens.lm_predictions
        return total

    def _support_factors(self) -> tuple[int, int]:
        """How often the support set's forward products come up in a task: those with weights, those in attention."""
        second_order = self.algorithm == "maml"
        if self.adapt == "head":
            return (3, 3) if second_order else (1, 1)
        if self.adapt == "lora":
            weights, attention = (6, 9) if second_order else (2, 3)
        else:
            weights, attention = (9, 9) if second_order else (3, 3)
        return weights * self.inner_steps, attention * self.inner_steps

    def _forward(self, tokens: int, texts: int, weights: int, attention: int) -> float:
        if not tokens:
            return 0.0
        context = tokens / texts
        with_weights = 2 * self.size.matmul_parameters
        in_attention = 4 * self.size.layers * self.size.width * context
        return tokens * (weights * with_weights + attention * in_attention)


def run_cost(worker_seconds: float, config: TrackingConfig) -> dict[str, Any]:
    """The price of the workers' time, `cost`, and its `currency`."""
    return {"cost": worker_seconds / 3600 * config.price_per_worker_hour, "currency": config.currency}


def run_summary(progress: Mapping[str, Any], config: TrackingConfig) -> dict[str, Any]:
    """The content of summary.json: the progress of `distmeta.train.loop.train`, its price, and the accuracy on the
    meta-valid classes of the network that is kept, with half the width of its 95% interval."""
    names = {"best_score": "accuracy", "best_score_ci95": "accuracy_ci95"}
    accuracy = {name: progress[key] for key, name in names.items() if key in progress}
    return {**progress, **run_cost(progress["worker_seconds"], config), **accuracy}
