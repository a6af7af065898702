"""The ways to make a classifier of a network and a few examples. Each is a function in `METHODS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distmeta.adapt.base import Base
from distmeta.compute.batch import TokenBatch, collate_tokens
from distmeta.compute.precision import passes_in
from distmeta.engine.precision import faster
from distmeta.evaluate.features import runs
from distmeta.evaluate.fine_tuning import MOST_TEXTS, tuned_weights
from distmeta.evaluate.head import TEMPERATURE, Head
from distmeta.evaluate.networks import Tokens
from distmeta.evaluate.together import moved_prototypes
from distmeta.models import Network, Parameters

Scores = NDArray[np.floating]
"""Of each text for each class: (texts, n_way)."""

QUERY_TOKENS = 4096
"""Tokens of queries that go through an adapted network together."""
CONTRASTIVE_STEPS = 10
CONTRASTIVE_RATE = 1e-4
LEAST_OF_A_CLASS = 4
"""Texts of each class that a step compares, where the classes are many and have so many."""


@dataclass(frozen=True)
class Support:
    """Examples of every class."""

    tokens: Sequence[Tokens]
    labels: NDArray[np.int64]
    """(examples,), from 0 to n_way - 1."""
    n_way: int

    def part(self, rows: NDArray[np.integer]) -> "Support":
        """Some of them, by number."""
        return Support([self.tokens[row] for row in rows], self.labels[rows], self.n_way)

    def with_more(self, other: "Support") -> "Support":
        """These and others of the same classes."""
        labels = np.concatenate([self.labels, other.labels])
        return Support([*self.tokens, *other.tokens], labels, self.n_way)

    def batch(self, base: Base) -> TokenBatch:
        """All of them as a network takes them."""
        return collate_tokens([ids for ids, _ in self.tokens], base.pad_token_id, base.device)

    def targets(self, base: Base) -> Tensor:
        """The labels where the network is."""
        return torch.from_numpy(self.labels).to(base.device)

    @property
    def fewest(self) -> int:
        """Examples of the class that has the fewest."""
        return int(np.bincount(self.labels, minlength=self.n_way).min())


class Fitted(Protocol):
    """A classifier."""

    @property
    def base(self) -> Base: ...
    def scores(self, tokens: Sequence[Tokens]) -> Scores: ...


@dataclass(frozen=True)
class Linear:
    """A network's features and a head."""

    base: Base
    head: Head

    def scores(self, tokens: Sequence[Tokens]) -> Scores:
        """See `Scores`."""
        return self.of_features(self.base.features(tokens))

    def of_features(self, features: NDArray[np.floating]) -> Scores:
        """The same of texts whose features are there."""
        return self.head.scores(torch.from_numpy(features)).numpy()


@dataclass(frozen=True)
class Together:
    """Prototypes that the texts which are predicted together move (see `distmeta.evaluate.together`)."""

    base: Base
    sums: Tensor
    """(n_way, width): of the features of each class, of length 1."""

    def scores(self, tokens: Sequence[Tokens]) -> Scores:
        """See `Scores`."""
        return self.of_features(self.base.features(tokens))

    def of_features(self, features: NDArray[np.floating]) -> Scores:
        """The same of texts whose features are there."""
        rows = functional.normalize(torch.from_numpy(features))
        return (rows @ moved_prototypes(self.sums, rows).t() / TEMPERATURE).numpy()


@dataclass(frozen=True)
class InnerLoop:
    """What the algorithm that trained a network makes of the examples, which are kept, to make it again."""

    base: Base
    support: Support
    classify: Callable[[TokenBatch], Tensor]

    @classmethod
    def of(cls, base: Base, support: Support) -> "InnerLoop":
        """Adapts the network."""
        scorer = base.scorer
        assert scorer.algorithm is not None, "a network that knows of no algorithm"
        scorer.network.eval()
        labels = support.targets(base)
        with torch.enable_grad():
            classify = scorer.algorithm.fit(
                scorer.parameters, support.batch(base), labels, support.n_way, scorer.inner_steps
            )
        return cls(base, support, classify)

    def scores(self, tokens: Sequence[Tokens]) -> Scores:
        """See `Scores`."""
        order = sorted(range(len(tokens)), key=lambda number: -len(tokens[number][0]))
        found = np.empty((len(tokens), self.support.n_way), np.float32)
        for first, end in runs([len(tokens[number][0]) for number in order], QUERY_TOKENS):
            some = order[first:end]
            ids = [tokens[number][0] for number in some]
            batch = collate_tokens(ids, self.base.pad_token_id, self.base.device)
            with passes_in(self.base.scorer.precision):
                found[some] = self.classify(batch).detach().float().cpu().numpy()
        return found


def prototype(base: Base, support: Support, features: NDArray[np.floating]) -> Fitted:
    """Nearest prototype by cosine."""
    return Linear(base, Head.of_prototypes(*_tensors(support, features), support.n_way))


def regression(base: Base, support: Support, features: NDArray[np.floating]) -> Fitted:
    """Logistic regression on frozen features."""
    return Linear(base, Head.of_regression(*_tensors(support, features), support.n_way))


def together(base: Base, support: Support, features: NDArray[np.floating]) -> Fitted:
    """Prototypes moved by what is predicted together."""
    rows, labels = _tensors(support, features)
    return Together(base, functional.one_hot(labels, support.n_way).float().t() @ functional.normalize(rows))


def inner_loop(base: Base, support: Support, features: NDArray[np.floating]) -> Fitted:
    """The algorithm's own use, with what it learned beside the network."""
    return InnerLoop.of(base, support)


def fine_tune(base: Base, support: Support, features: NDArray[np.floating]) -> Fitted:
    """Fine-tuning of all weights behind a logistic regression; see `distmeta.evaluate.fine_tuning`."""
    tuned: list[Head] = []

    def train(network: Network, weights: Parameters, batch: TokenBatch) -> Parameters:
        weights, head = tuned_weights(network, weights, batch, support.targets(base), support.n_way)
        tuned.append(Head(*(each.detach().cpu() for each in (head.centre, head.weight, head.bias))))
        return weights

    return Linear(_trained(base, support, train), tuned[0])


def contrastive(base: Base, support: Support, features: NDArray[np.floating]) -> Fitted:
    """Ten steps of a supervised contrastive loss on all weights, and a logistic regression on what comes of it."""

    def train(network: Network, weights: Parameters, batch: TokenBatch) -> Parameters:
        return contrasted_weights(network, weights, batch, support.targets(base))

    changed = _trained(base, support, train)
    return regression(changed, support, changed.features(support.tokens))


METHODS: dict[str, Callable[[Base, Support, NDArray[np.floating]], Fitted]] = {
    "prototype": prototype,
    "logistic-regression": regression,
    "inner-loop": inner_loop,
    "contrastive": contrastive,
    "fine-tune": fine_tune,
}
"""Those to choose from. Each takes the features of its examples as well, which several ask for."""
TOGETHER = "queries-together"
FITS = METHODS | {TOGETHER: together}
"""With the one that is another question, and is had where that is asked."""
FROZEN = ("prototype", "logistic-regression")
"""Those that need no more than features."""


def why_not(method: str, base: Base, support: Support) -> str | None:
    """Why a method cannot be had of a network and examples; None where it can."""
    if method == "inner-loop" and base.scorer.algorithm is None:
        return "the network knows of no algorithm that adapts it: give a run of distmeta, or the folder it exported"
    if method == "contrastive" and int(np.bincount(support.labels).max()) < 2:
        return "it compares examples of one class, and each class has a single one"
    return None


def contrasted_weights(network: Network, parameters: Parameters, support: TokenBatch, labels: Tensor) -> Parameters:
    """All weights after a few steps of the supervised contrastive loss (Khosla et al. 2020,
    https://arxiv.org/abs/2004.11362) by cosine."""
    weights = {
        name: value.detach().clone().requires_grad_(name.startswith("model.") and value.is_floating_point())
        for name, value in parameters.items()
    }
    body = [value for value in weights.values() if value.requires_grad]
    optimizer = torch.optim.AdamW(body, lr=CONTRASTIVE_RATE, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(CONTRASTIVE_STEPS):
        part = some_of_each(labels.cpu(), generator).to(labels.device)
        loss = contrastive_loss(network.features(weights, support.take(part)).float(), labels[part])
        if loss is None:
            continue
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(body, 1.0)
        optimizer.step()
    return {name: value.detach() for name, value in weights.items()}


def some_of_each(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of at most `MOST_TEXTS` texts drawn of all classes, or, of many, of some: alone in its class a text would
    be compared with none of its own."""
    n_way = int(labels.max()) + 1
    classes = torch.randperm(n_way, generator=generator)[: max(2, min(n_way, MOST_TEXTS // LEAST_OF_A_CLASS))]
    each = MOST_TEXTS // len(classes)
    rows = [torch.nonzero(labels == label).flatten() for label in classes]
    return torch.cat([own[torch.randperm(len(own), generator=generator)[:each]] for own in rows])


def contrastive_loss(features: Tensor, labels: Tensor) -> Tensor | None:
    """The mean over the texts that have others of their class of the mean of -log softmax of the cosine to those; None
    where no text has."""
    rows = functional.normalize(features)
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    scores = (rows @ rows.t() / TEMPERATURE).masked_fill(own, -torch.inf)
    alike = (labels[:, None] == labels) & ~own
    has = alike.any(1)
    if not bool(has.any()):
        return None
    log = scores.log_softmax(1).masked_fill(~alike, 0.0)
    return -(log.sum(1)[has] / alike.sum(1)[has]).mean()


def _tensors(support: Support, features: NDArray[np.floating]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(features), torch.from_numpy(support.labels)


def _trained(base: Base, support: Support, train: Callable[[Network, Parameters, TokenBatch], Parameters]) -> Base:
    """The network after a training on the examples, in which of the word embedding their rows alone move."""
    scorer = base.scorer
    scorer.network.eval()
    local = scorer.network.localized(scorer.parameters, [support.batch(base)])
    precision, _ = faster(base.device)
    with torch.enable_grad(), passes_in(precision):
        tuned = dict(train(scorer.network, local.parameters, local.batches[0]))
    if local.embedding is not None:
        assert local.rows is not None
        whole = scorer.parameters[local.embedding].clone()
        whole[local.rows] = tuned[local.embedding]
        tuned[local.embedding] = whole
    return base.with_parameters(base.name, tuned)
