"""In-context meta-training (MetaICL, Min et al. 2022, https://arxiv.org/abs/2110.15943): for decoders.

    prompt   x_1 y_1 x_2 y_2 ... x_K y_K x, the support examples in random order and a query text
    outer    gradient of -log p(y | prompt) over the whole vocabulary; there is no inner loop
    scores   log p(y | prompt) of the classes' labels

A label is a token: the last ones of the vocabulary that are not special, in the task's order of classes, which means
nothing. So the network has to read from the prompt which token stands for which class.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distmeta.compute.batch import TaskBatch, TokenBatch, collate_tokens
from distmeta.errors import UserError
from distmeta.meta.algorithm import Algorithm, Classifier, Outcome, Parameters, TaskResult, accuracy


@dataclass(frozen=True)
class _Prompts:
    batch: TokenBatch
    positions: tuple[Tensor, Tensor]


class MetaICL(Algorithm):
    """No inner loop, and no head: the language model answers."""

    needs_language_model = True

    def __init__(self, network: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(network, *arguments, **options)
        # A special token stands in the texts themselves: SMLMT hides a word of each behind the mask.
        tokens = reversed(range(network.model.config.vocab_size))
        self._label_tokens = torch.tensor([token for token in tokens if token not in network.special_tokens])

    @classmethod
    def differentiates_twice(cls, config: Any) -> bool:
        """Never."""
        return False

    def task_gradient(self, parameters: Parameters, task: TaskBatch, progress: float = 1.0) -> TaskResult:
        """See `Algorithm`."""
        theta = {name: value.detach().requires_grad_(name in self.trained) for name, value in parameters.items()}
        order = torch.randperm(len(task.support_labels))
        prompts = self._prompts(task.support, task.support_labels, task.query, order)
        logits = self.network.language_model_logits(theta, prompts.batch, prompts.positions)
        loss = functional.cross_entropy(logits, self._tokens(task.query_labels))
        sources = {name: value for name, value in theta.items() if value.requires_grad}
        found = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(sources, found, strict=True) if gradient is not None}
        scores = logits.detach()[:, self._tokens(torch.arange(task.n_way, device=logits.device))]
        return Outcome(gradients, loss, accuracy(scores, task.query_labels)).read()

    def fit(self, parameters: Parameters, support: Any, labels: Tensor, n_way: int, inner_steps: int) -> Classifier:
        """See `Algorithm`. The order of the support examples is drawn from a fixed seed."""
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))

        @torch.no_grad()
        def classify(query: Any) -> Tensor:
            prompts = self._prompts(support, labels, query, order)
            logits = self.network.language_model_logits(parameters, prompts.batch, prompts.positions)
            return logits[:, self._tokens(torch.arange(n_way, device=logits.device))]

        return classify

    def _tokens(self, labels: Tensor) -> Tensor:
        self._label_tokens = self._label_tokens.to(labels.device)  # once, and not the vocabulary each time
        return self._label_tokens[labels]

    def _prompts(self, support: TokenBatch, labels: Tensor, query: TokenBatch, order: Tensor) -> _Prompts:
        shots = list(zip(support.sequences(), self._tokens(labels).tolist(), strict=True))
        context = [token for number in order.tolist() for token in (*shots[number][0], shots[number][1])]
        sequences = [[*context, *text] for text in query.sequences()]
        longest = max(map(len, sequences))
        limit = getattr(self.network.model.config, "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise UserError(
                f"meta.algorithm: a prompt of metaicl has {longest} tokens and the model takes {limit}; "
                "lower tasks.k_shot, tasks.n_way or tokenizer.max_length"
            )
        batch = collate_tokens(sequences, 0, query.input_ids.device)
        rows = torch.arange(len(sequences), device=query.input_ids.device)
        return _Prompts(batch, (rows, batch.attention_mask.sum(1) - 1))
