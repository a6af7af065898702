"""What a run costs in floating-point operations, from counts of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from distmeta.compute.layers import layer_number
from distmeta.meta import algorithm_class
from distmeta.meta.config import MetaConfig
from distmeta.models import Network
from distmeta.tracking.config import TrackingConfig


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """The sizes of a transformer that set its operations."""

    layers: int
    width: int
    """Width of attention: the sum over the heads; 0 where there is none (Mamba)."""
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
    tasks: int = 0


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
    heads = getattr(config, "num_attention_heads", None) or 0
    return NetworkSize(
        layers=config.num_hidden_layers,
        width=heads and heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
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
    Where a weight is neither adapted nor trained, its own gradient falls away, and below the lowest such weight
    everything does. With s the share of the layers from there upwards and r the share of the weights, an *inner step*
    is (1 + s + r) w + (1 + 2 s) a: 3w + 3a for all, 2w + 3a for LoRA or biases. With the head alone the features do not
    change from step to step, so the support set goes forward once a task: 1w + 1a.

    *Second order*: the outer backward goes back through the inner step, through its forward by two products for each
    product again, and through its backward by two for each that this made. So three times the first order's; with the
    head alone the outer gradient reaches the encoder through the features: 3w + 3a, once. Frozen layers below the
    lowest adapted one only go forward.

    *Query set*, *prototypes*, *in-context prompts* and *language modelling*: 3w + 3a (less where the lowest layers are
    frozen), and 3 x 2 x output_parameters for each predicted position. Reptile steps on both sets, and only asks for
    the query's scores.

    *Kept similarities*: 1w + 1a more for the texts of a task, by the starting network.

    Left out, since small: embeddings, norms, softmax, biases, few-shot heads and adapters, the optimizer. Padding,
    work that is done again, and work that an implementation spares are not counted either.
    """

    size: NetworkSize
    meta: MetaConfig
    depth: float
    """Share of the layers from the lowest adapted one upwards, s above."""
    breadth: float
    """Share of the layers' weights that are adapted, r above."""
    second_order: bool

    @classmethod
    def of(cls, network: Network, meta: MetaConfig) -> "FlopCounter":
        """That of a network which has its weights."""
        size = network_size(network.base, network.model.config)
        algorithm = algorithm_class(meta.algorithm)(network, meta)
        names = [name.replace("/", ".") for name in getattr(algorithm, "adapted", [])]
        in_layers = {name: layer_number(name) for name in names}
        lowest = min((-1 if layer is None else layer for layer in in_layers.values()), default=size.layers)
        matrices = {
            f"{name}.weight": module.weight.numel()
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))
        }
        adapted = sum(matrices.get(name, 0) for name in names)
        depth = min(1.0, (size.layers - lowest) / size.layers)
        return cls(size, meta, depth, adapted / size.matmul_parameters, algorithm.is_second_order)

    def step(self, tokens: StepTokens) -> float:
        """Operations of one outer step over all workers."""
        frozen = 0.0 if self.meta.freeze_lowest is None else self.meta.freeze_lowest / self.size.layers
        outer = 3 - 2 * frozen
        total = self._forward(tokens.lm, tokens.lm_texts, outer, outer)
        total += 3 * 2 * self.size.output_parameters * tokens.lm_predictions
        support, support_texts, query, query_texts = (
            tokens.support,
            tokens.support_texts,
            tokens.query,
            tokens.query_texts,
        )
        if self.meta.algorithm == "metaicl":
            if not query_texts:
                return total
            tasks = query_texts  # each query text has the whole support set before it, of as many tasks as there are
            prompts = query + tasks * (support + support_texts) / max(1, tokens.tasks)
            total += self._forward(prompts, query_texts, outer, outer)
            return total + 3 * 2 * self.size.output_parameters * query_texts
        if self.meta.algorithm in ("protonet", "multitask"):
            outer += 1 if self.meta.keep_similarity else 0  # the starting network's features of the same texts
            return (
                total
                + self._forward(support, support_texts, outer, outer)
                + self._forward(query, query_texts, outer, outer)
            )
        if self.meta.algorithm == "reptile":
            support, support_texts = support + query, support_texts + query_texts
            total += self._forward(query, query_texts, 1, 1)
        else:
            query_passes = self.meta.inner_steps if self.meta.multi_step_loss else 1
            total += query_passes * self._forward(query, query_texts, outer, outer)
        if self.meta.algorithm in ("protomaml", "leopard"):
            total += self._forward(support, support_texts, outer, outer)
        weights, attention = 1 + self.depth + self.breadth, 1 + 2 * self.depth
        steps = self.meta.inner_steps if self.depth else 1
        if self.second_order:
            # Of what is frozen and below all that is adapted nobody asks for a gradient.
            spared = 2 * min(frozen, 1 - self.depth)
            weights, attention = 3 * weights - spared, 3 * attention - spared
        return total + steps * self._forward(support, support_texts, weights, attention)

    def _forward(self, tokens: float, texts: int, weights: float, attention: float) -> float:
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
    meta-valid classes of the network that is kept, with half the width of its 95% interval; none where the run has
    diverged, so that no table or panel takes it for a result."""
    names = {"best_score": "accuracy", "best_score_ci95": "accuracy_ci95"}
    accuracy = {name: progress[key] for key, name in names.items() if key in progress and "diverged" not in progress}
    return {**progress, **run_cost(progress["worker_seconds"], config), **accuracy}
