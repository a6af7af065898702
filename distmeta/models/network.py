"""A Hugging Face network as meta-learning uses it: features of a text, and logits of a language model."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from distmeta.compute.batch import TokenBatch, concatenate
from distmeta.compute.by_task import layers_together, weights_by_task
from distmeta.compute.checkpointing import layers_computed_again
from distmeta.compute.large_products import large_products, linear_layers
from distmeta.compute.layers import above_layer, layers_of
from distmeta.compute.packing import packed_attention, run
from distmeta.compute.parts import is_batched
from distmeta.compute.precision import of_pass
from distmeta.errors import UserError
from distmeta.models.lora import Target, adapted, find_targets, make_adapters, merge
from distmeta.section import finds

Parameters = dict[str, torch.Tensor]
Pooling = Literal["mean", "mask", "first", "last"]
Computation = Literal["packed", "bucketed", "plain"]

_HEADS = re.compile("summary|classif|^qa_|pooler")
"""Settings of heads that no network here has."""

BUCKETS = 3
"""Groups of texts of like length, where they cannot be packed."""


@dataclass(frozen=True)
class Localized:
    """A network's parameters with those rows of the word embedding alone that some batches use."""

    parameters: Parameters
    batches: list[TokenBatch]
    """The batches, with ids that number the rows."""
    embedding: str | None
    """Name of the word embedding; None where it is whole."""
    rows: torch.Tensor | None
    """(rows,): the token ids that they belong to."""
    of_rows: tuple[str, ...] = ()
    """Names of all parameters of which there are those rows alone."""


class Network(nn.Module):
    """Holds the meta-parameters and says what they compute; it is always called with parameters from outside.

    Args:
        model: the language model, or the bare network where no language modelling is asked for.
        pooling: which hidden states are the features of a text.
        computation: how texts of different lengths go together: `packed` (no padding), `bucketed` or
            `plain` (padded to the longest).
        lora_rank: rank of the adapters on query and value projections; 0: none.
        lora_alpha: the adapters' update is scaled by alpha / rank.
        unused: tensors of the bare network that its language model does not have (BERT's pooler), kept for the export.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pooling: Pooling,
        *,
        computation: Computation = "plain",
        lora_rank: int = 0,
        lora_alpha: float = 1.0,
        lora_targets: str | None = None,
        unused: Parameters | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.computation = computation
        self.unused = unused or {}
        self.lora_targets: list[Target] = []
        self.lora_scale = 0.0
        if lora_rank:
            self.lora_targets = find_targets(self, lora_targets)
            self.lora_scale = lora_alpha / lora_rank
            self.lora = make_adapters(self, self.lora_targets, lora_rank)
        self.learned = nn.ParameterDict()
        """What an algorithm learns beside the network (rates, a temperature, a head's generator)."""
        parameter_names = {id(parameter): name for name, parameter in self.named_parameters()}
        words: Any = model.get_input_embeddings()
        self.embedding = parameter_names.get(id(words.weight))
        if getattr(words, "padding_idx", None) is not None:
            # It numbers a row of the whole table, and `localized` leaves rows out. Where the padding is not seen, its
            # row takes no gradient anyway; where it is, as by MobileBERT's look at the neighbours, the row is trained.
            words.padding_idx = None
        self.special_tokens: frozenset[int] = frozenset()
        """Ids of the tokens that are no words, as far as a tokenizer said."""
        self.checkpoints_activations = False
        """Whether a layer's activations are computed again on the way back instead of kept."""
        self.fallback_reason = ""
        """Why texts are not packed, though that was left to the software."""
        self.remarks: list[str] = []
        """What is to be said of the weights that it was loaded with, a line each."""
        self.separates_tasks = True
        """Whether its modules compute the same where each task has weights of its own."""
        self._linear = linear_layers(model)
        self._together = layers_together(model)
        self._places = {
            f"{path}.{name}": (module, name, parameter.ndim)
            for path, module in model.named_modules(prefix="model")
            for name, parameter in module._parameters.items()
            if parameter is not None
        }

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

    @property
    def takes_both(self) -> bool:
        """Whether the texts of two batches may go through together."""
        return self.computation != "plain"

    @property
    def takes_tasks(self) -> bool:
        """Whether several tasks, with weights of their own, may go through together."""
        return self.computation == "packed" and self.separates_tasks

    @property
    def is_random(self) -> bool:
        """Whether it computes something else each time that it is asked, for dropout."""
        rates = [value for key, value in vars(self.model.config).items() if "drop" in key and not _HEADS.search(key)]
        return self.training and any(isinstance(rate, int | float) and rate > 0 for rate in rates)

    def learn(self, values: Parameters) -> None:
        """Takes in what an algorithm learns beside the network; its names become `learned.*`."""
        self.learned.update({name: nn.Parameter(value) for name, value in values.items()})

    def adapted_names(self, adapt: str, last_k: int = 1) -> list[str]:
        """Names of the parameters that are fast weights beside the head, which always is one: see `meta.adapt`.

        Raises:
            UserError: there are none, and it is not `head`.
        """
        if adapt == "head":
            return []
        if adapt == "lora":
            return [name for name, _ in self.named_parameters() if name.startswith("lora.")]
        in_base = {id(parameter) for parameter in self.base.parameters()}
        base = {name: parameter for name, parameter in self.named_parameters() if id(parameter) in in_base}
        if adapt == "bias":
            names = [name for name, parameter in base.items() if parameter.ndim <= 1]
        elif adapt == "last_k":
            count = layers_of(self.base)
            if last_k > count:
                raise UserError(f"meta.last_k: the model has {count} layers, not {last_k}")
            names = above_layer(base, count - last_k)
        elif adapt.startswith("regex:"):
            names = [name for name in base if finds(adapt.removeprefix("regex:"), name, "meta.adapt")]
        else:
            names = list(base)
        if not names:
            raise UserError(f"meta.adapt: {adapt} finds no parameter of this model")
        return names

    def freeze(self, lowest_layers: int) -> None:
        """Takes the embeddings and the lowest layers out of the outer loop.

        Raises:
            UserError: there are not so many layers.
        """
        count = layers_of(self.base)
        if lowest_layers >= count:
            raise UserError(f"meta.freeze_lowest: {lowest_layers} layers of {count} leaves none to train")
        base = dict(self.base.named_parameters())
        for name in base.keys() - set(above_layer(base, lowest_layers)):
            base[name].requires_grad_(False)

    def localized(self, parameters: Parameters, batches: Sequence[TokenBatch], least_rows: int = 0) -> Localized:
        """The same parameters with only those rows of the word embedding that the batches use: copies of a large
        vocabulary cost more than a small network's layers. Filled up with one of them to `least_rows`."""
        if self.computation == "plain" or self.embedding is None:
            return Localized(parameters, list(batches), None, None)
        padding = getattr(self.base.config, "pad_token_id", None)
        # Each task has rows of its own, so that this table needs no dimension of tasks.
        vocabulary = len(parameters[self.embedding])
        ids = [batch.input_ids + vocabulary * batch.task_numbers[:, None] for batch in batches]
        keys, inverse = torch.cat([each.reshape(-1) for each in ids]).unique(return_inverse=True)
        rows = keys % vocabulary
        if padding is not None and padding < len(rows):
            # Models that count positions by ids pass over this number, so it must be the padding's own.
            order = torch.arange(len(rows), device=rows.device)
            at = int((rows == padding).nonzero()[0, 0]) if bool((rows == padding).any()) else None
            if at is None:
                rows = torch.cat([rows, rows.new_tensor([padding])])
                order, at = torch.arange(len(rows), device=rows.device), len(rows) - 1
            order[at], order[padding] = padding, at
            rows, inverse = rows[order], order[inverse]
        local = [
            replace(batch, input_ids=part.view_as(batch.input_ids))
            for batch, part in zip(batches, inverse.split([batch.input_ids.numel() for batch in batches]), strict=True)
        ]
        rows = torch.cat([rows, rows[-1:].expand(max(0, least_rows - len(rows)))])
        embedding = parameters[self.embedding].index_select(0, rows)
        parameters = {**parameters, self.embedding: embedding}
        return Localized(parameters, local, self.embedding, rows, (self.embedding,))

    def together(self, *batches: TokenBatch) -> TokenBatch:
        """The texts of all as one batch."""
        return concatenate(*batches)

    def skeleton(self) -> "Network":
        """A copy without weights of its own, to be called with parameters from outside whatever becomes of this one."""
        # By the number of dimensions biases are told.
        empty = {id(p): nn.Parameter(torch.empty([0] * p.ndim), p.requires_grad) for p in self.parameters()}
        return copy.deepcopy(self, empty)

    def merged(self, parameters: Parameters) -> Parameters:
        """The parameters with the adapters, if any, written into the weights."""
        return merge(parameters, self.lora_targets, self.lora_scale) if self.lora_targets else parameters

    def features(self, parameters: Parameters, batch: TokenBatch) -> torch.Tensor:
        """Features of each text under the given parameters: (sequences, hidden_size), fp32."""
        if self.computation == "bucketed" and len(batch.input_ids) > BUCKETS:
            order = batch.attention_mask.sum(1).argsort()
            parts = [self._features(parameters, batch.take(part)) for part in order.chunk(BUCKETS)]
            return torch.cat(parts).index_select(0, order.argsort())
        return self._features(parameters, batch)

    def _features(self, parameters: Parameters, batch: TokenBatch) -> torch.Tensor:
        if batch.texts_per_task and not is_batched(batch.input_ids.device) and not self._has_tasks(parameters):
            batch = replace(batch, texts_per_task=())  # the texts of all may stand by length
        hidden = self._call(parameters, "hidden", batch)
        pool = _pool_packed if self.computation == "packed" else _pool
        return _at_least_fp32(pool(hidden, batch, self.pooling))

    def _call(self, parameters: Parameters, what: str, batch: TokenBatch, *arguments: Any) -> Any:
        """`forward` with the given parameters in the place of its own."""

        def again(layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
            with self._layers_for(parameters, batch):
                return functional_call(self, parameters, ("layer", batch, (layer, given, options)))

        is_kept = not (self.checkpoints_activations and torch.is_grad_enabled())
        with (
            of_pass(batch.input_ids.device),
            self._layers_for(parameters, batch),
            nullcontext() if is_kept else layers_computed_again(self.base, again),
        ):
            return functional_call(self, parameters, (what, batch, *arguments))

    @contextmanager
    def _layers_for(self, parameters: Parameters, batch: TokenBatch) -> Iterator[None]:
        """While it is entered, each task has its own of those weights that have a dimension of tasks, and the layers
        whose weights all tasks share make their products as suits a packed row."""
        own = self._of_tasks(parameters) if batch.texts_per_task else {}
        shared = [layer for layer in self._linear if layer not in own] if self.computation == "packed" else []
        by_task = weights_by_task(own, batch.tokens_of_tasks, self._together) if own else nullcontext()
        with by_task, large_products(shared):
            yield

    def _has_tasks(self, parameters: Parameters) -> bool:
        """Whether a weight, or an adapter's factor, has a dimension of tasks."""
        adapters = (value for name, value in parameters.items() if name.startswith("lora."))
        return any(value.ndim > 2 for value in adapters) or bool(self._of_tasks(parameters))

    def _of_tasks(self, parameters: Parameters) -> dict[nn.Module, list[str]]:
        """The modules of which a weight has a dimension of tasks in front, and the names of those weights."""
        found: dict[nn.Module, list[str]] = {}
        for name, (module, attribute, dimensions) in self._places.items():
            if name in parameters and parameters[name].ndim > dimensions:
                found.setdefault(module, []).append(attribute)
        return found

    def language_model_logits(
        self, parameters: Parameters, batch: TokenBatch, positions: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Vocabulary logits at the given (rows, columns) alone: (positions, vocabulary), fp32.

        The projection to the vocabulary costs more than a small network's layers, so it is not done where no
        prediction is scored.
        """
        return _at_least_fp32(self._call(parameters, "logits", batch, positions))

    def forward(self, what: Literal["hidden", "logits", "layer"], batch: TokenBatch, argument: Any = None) -> Any:
        """Hidden states (sequences, length, hidden_size), logits at positions, or what a layer makes of its arguments:
        for the methods above."""
        with adapted(self, self.lora_targets, self.lora_scale, batch):
            return self._run(what, batch, argument)

    def _run(self, what: str, batch: TokenBatch, argument: Any) -> Any:
        packed = self.computation == "packed"
        if what == "hidden":
            return run(self.base, batch, packed=packed).last_hidden_state
        if what == "layer":
            layer, given, options = argument
            with packed_attention(self.base, batch.layout) if packed else nullcontext():
                return type(layer).forward(layer, *given, **options)
        positions = argument
        if packed:
            rows, columns = positions
            positions = (torch.zeros_like(rows), batch.layout.starts[rows] + columns)

        def keep_positions(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[positions][None]
            return output

        hook = self.base.register_forward_hook(keep_positions)
        try:
            return run(self.model, batch, packed=packed).logits[0]
        finally:
            hook.remove()


def _at_least_fp32(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _pool(hidden: torch.Tensor, batch: TokenBatch, pooling: Pooling) -> torch.Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    if pooling == "mean":
        hidden = _at_least_fp32(hidden)
        mask = batch.attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)
    if pooling == "mask":
        return hidden[rows, batch.mask_positions]
    if pooling == "first":
        return hidden[:, 0]
    return hidden[rows, batch.attention_mask.sum(1) - 1]


def _pool_packed(hidden: torch.Tensor, batch: TokenBatch, pooling: Pooling) -> torch.Tensor:
    layout, rows = batch.layout, hidden[0]
    if pooling == "mean":
        rows = _at_least_fp32(rows)
        return layout.average.to(rows.dtype) @ rows
    if pooling == "mask":
        return rows.index_select(0, layout.starts + batch.mask_positions)
    last = batch.attention_mask.sum(1) - 1
    return rows.index_select(0, layout.starts if pooling == "first" else layout.starts + last)
