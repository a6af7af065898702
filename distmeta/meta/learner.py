"""The step that all algorithms share: the meta-gradient of a share of the tasks. Knows no workers and no engine."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from distmeta.compute.batch import TaskBatch, join
from distmeta.compute.parts import Parts, is_batched
from distmeta.compute.precision import passes_in
from distmeta.meta.algorithm import Algorithm
from distmeta.meta.config import MetaConfig
from distmeta.meta.kept_similarity import KeptSimilarity
from distmeta.meta.language_model import LanguageModelBatch, language_model_gradient
from distmeta.meta.registry import algorithm_class
from distmeta.meta.replay import Replay
from distmeta.meta.threads import in_threads
from distmeta.models import Network, Parameters
from distmeta.tasks.draw import generator

MOST_NUMBERS = {"cpu": 2**20, "cuda": 2**24}
"""Tokens of one pass (of the support sets, the query sets, both, or the text) times the width of the network, unless
`tasks_at_a_time` says how many tasks. It bounds the memory of activations; on a CPU twice as many were slower.
"""
MOST_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Bytes of the fast weights that there are at a time."""


@dataclass(frozen=True)
class Work:
    """What goes with one task index of a meta-batch: the task, and text for the language model beside it."""

    index: int
    task: TaskBatch | None
    """None during the language-model warm-up."""
    text: LanguageModelBatch | None
    """None where no language modelling is mixed in."""


def dropout_seed(seed: int, index: int) -> int:
    """What fixes the dropout of a task index, whoever computes it."""
    return int(generator(seed, "dropout", index).integers(2**62))


def counts(item: Work) -> dict[str, int]:
    """What a piece of work holds: `tasks`, and tokens, texts and predictions."""
    found: dict[str, int] = {}
    if item.task is not None:
        found["tasks"] = 1
        for half, batch in (("support", item.task.support), ("query", item.task.query)):
            found |= {f"{half}_tokens": batch.num_tokens, f"{half}_texts": len(batch.input_ids)}
    if item.text is not None:
        tokens = item.text.tokens
        found |= {"lm_tokens": tokens.num_tokens, "lm_texts": len(tokens.input_ids)}
        found["lm_predictions"] = len(item.text.targets)
    return found


Term = tuple[str, torch.Tensor, float, torch.Tensor | None]
"""A parameter's name, a gradient of it, its weight in the sum, and the rows it belongs to where not to all."""


class Learner:
    """Computes the gradient of the outer objective

        mean over the meta-batch of [query loss after adaptation + lm_weight * language-modelling loss],

    and of the language-modelling loss alone where a piece of work has no task.

    Args:
        network: computes features and logits from parameters given to it.
        config: the inner loop and the mixture; `lm_weight` must be set.
        precision: `fp32`, or `bf16` for the arithmetic of the forward and backward passes.
        seed: with a task's index it fixes the dropout, so that this does not depend on who computes the task.
        tasks_at_a_time: how many tasks are computed at a time where they can; None: what suits the device.
        records: whether on a GPU groups of tasks are replayed from recordings (`distmeta.meta.replay`).
    """

    def __init__(
        self,
        network: Network,
        config: MetaConfig,
        precision: str,
        seed: int,
        tasks_at_a_time: int | None = None,
        *,
        records: bool = True,
    ) -> None:
        self.network = network
        self.config = config
        self.precision = precision
        self.seed = seed
        self.tasks_at_a_time = tasks_at_a_time
        self._start: Parameters | None = None
        self.algorithm = algorithm_class(config.algorithm)(network, config)
        self._algorithms = [self.algorithm]
        on_gpu = next(network.parameters()).is_cuda
        self._replay = Replay() if on_gpu and records else None

    def keep(self, start: Parameters) -> None:
        """From now on keeps the similarities that these weights make of texts; see `meta.keep_similarity`."""
        self._start = start
        for algorithm in self._algorithms:
            self._let_keep(algorithm)

    def _let_keep(self, algorithm: Algorithm) -> None:
        if self._start is not None and self.config.keep_similarity:
            algorithm.kept = KeptSimilarity(self.network.skeleton(), self._start, self.config.keep_similarity)

    def gradient(
        self, parameters: Parameters, work: Sequence[Work], meta_batch_size: int, progress: float = 1.0
    ) -> tuple[Parameters, dict[str, float]]:
        """This share's part of the meta-gradient, and of the metrics: summed over the share, divided by the whole.

        Adding up what all shares return gives the gradient and the means over the meta-batch, whatever the shares
        are. A parameter that nothing depends on is absent. Among the metrics, `seconds/inner` is the time that this
        share's inner loops took. `progress` is the share of the outer steps that is done.
        """
        gradients: Parameters = {}
        metrics: dict[str, float] = defaultdict(float)
        threads = self._threads(len(work), parameters)
        groups = self._groups(work, parameters, threads)
        for terms, found in in_threads(partial(self._of_group, parameters, progress), groups, threads):
            for name, gradient, weight, rows in terms:
                weight /= meta_batch_size
                if rows is not None:
                    if name not in gradients:
                        gradients[name] = torch.zeros_like(parameters[name], dtype=torch.float32)
                    gradient = gradient.reshape(len(rows), -1)
                    gradients[name].view(-1, gradient.shape[1]).index_add_(0, rows, gradient.float(), alpha=weight)
                elif name in gradients:
                    gradients[name].add_(gradient, alpha=weight)
                else:
                    gradients[name] = gradient.float() * weight
            for key, value in found.items():
                metrics[key] += value / meta_batch_size
        if "seconds/inner" in metrics:
            metrics["seconds/inner"] *= meta_batch_size / threads
        for item in work:
            for key, count in counts(item).items():
                metrics[key] += count
        return gradients, dict(metrics)

    def _of_group(
        self, parameters: Parameters, progress: float, group: list[Work]
    ) -> tuple[list[Term], dict[str, float]]:
        """The gradients of tasks side by side and of the text beside them, and metrics: sums over the group."""
        terms: list[Term] = []
        metrics: dict[str, float] = {}
        torch.manual_seed(dropout_seed(self.seed, group[0].index))
        with passes_in(self.precision), self._free_algorithm() as algorithm:
            tasks = [item.task for item in group if item.task is not None]
            if tasks:
                task = join(tasks) if len(tasks) > 1 else tasks[0]
                if self._replay is not None and self._replay.takes(algorithm, task):
                    result = self._replay.task_gradient(algorithm, parameters, task, progress)
                else:
                    result = algorithm.task_gradient(parameters, task, progress)
                for name, gradient in result.gradients.items():
                    terms.append((name, gradient, 1.0, result.rows if name in result.of_rows else None))
                metrics["seconds/inner"] = result.inner_seconds
                metrics["query_loss"] = result.query_loss
                for key in ("query_accuracy", "query_accuracy_before"):
                    value = getattr(result, key)
                    if value is not None:
                        metrics[key] = value
                for step, loss in enumerate(result.support_losses):
                    metrics[f"support_loss/{step}"] = loss
            texts = [item.text for item in group if item.text is not None]
            if texts:
                weight = self.config.lm_weight if tasks else 1.0
                assert weight is not None
                part, loss = language_model_gradient(algorithm.network, parameters, texts, algorithm.trained)
                terms += [(name, gradient, weight, None) for name, gradient in part.items()]
                metrics["lm_loss"] = loss
        return terms, metrics

    @contextmanager
    def _free_algorithm(self) -> Iterator[Algorithm]:
        """One that no other thread uses meanwhile, with a network of its own: a pass puts the weights into modules."""
        algorithm = self._algorithms.pop()
        try:
            yield algorithm
        finally:
            self._algorithms.append(algorithm)

    def _threads(self, pieces: int, parameters: Parameters) -> int:
        """How many groups are computed at the same time: on a CPU small products keep one thread busy, no more."""
        on_cpu = next(iter(parameters.values())).device.type == "cpu"
        if not on_cpu or self.network.is_random or self.network.computation == "plain":
            return 1
        threads = min(torch.get_num_threads(), pieces, self.tasks_at_a_time or pieces)
        gradient = sum(parameters[name].nbytes for name in self.algorithm.trained)
        threads = max(1, min(threads, MOST_BYTES["cpu"] // (gradient + self._bytes_of_a_task(parameters))))
        while len(self._algorithms) < threads:
            network = self.network.skeleton()
            self._algorithms.append(algorithm_class(self.config.algorithm)(network, self.config))
            self._let_keep(self._algorithms[-1])
        return threads

    def _bytes_of_a_task(self, parameters: Parameters) -> int:
        """What its fast weights take."""
        # Of the word embedding a task has the rows that it uses.
        own = sum(parameters[name].nbytes for name in self.algorithm.adapted if name != self.network.embedding)
        return own * self.algorithm.copies

    def _groups(self, work: Sequence[Work], parameters: Parameters, threads: int) -> Iterator[list[Work]]:
        """The work in pieces, each of as many tasks as go side by side, with the text beside them.

        Those of as many classes follow one another. Nothing but the order in which numbers are added depends on it.
        """
        work = sorted(work, key=lambda item: item.task.n_way if item.task else 0)
        most = math.ceil(min(len(work), self.tasks_at_a_time or len(work)) / threads)
        group: list[Work] = []
        for item in work:
            if group and (len(group) == most or not self._fits(item, group, parameters, threads)):
                yield group
                group = []
            group.append(item)
        if group:
            yield group

    def _fits(self, item: Work, group: list[Work], parameters: Parameters, threads: int) -> bool:
        """Whether a piece of work goes side by side with a group."""
        # What dropout draws for a task must not depend on its neighbours.
        if self.network.is_random or not self.network.takes_tasks:
            return False
        together = [*group, item]
        tasks = [each.task for each in together if each.task is not None]
        if tasks and (not self.algorithm.takes_tasks or any(task.n_way != tasks[0].n_way for task in tasks)):
            return False
        if self.tasks_at_a_time is not None:
            return True
        device = next(iter(parameters.values())).device
        algorithm, kind = self.algorithm, device.type
        holds_graph = algorithm.is_second_order and algorithm.adapted and not algorithm.keeps_aside
        if tasks and holds_graph and not is_batched(device):
            return False  # several graphs of whole inner loops are slower than one at a time
        halves = zip(*((task.support, task.query) for task in tasks), strict=True)
        rows = [sum(Parts.of([half.num_tokens for half in each], device).sizes) for each in halves]
        texts = sum(each.text.tokens.num_tokens for each in together if each.text is not None)
        tokens = max([texts, sum(rows)] if algorithm.joins_halves else [texts, *rows])
        own = len(tasks) * threads * self._bytes_of_a_task(parameters)
        return tokens * self.network.hidden_size <= MOST_NUMBERS[kind] and own <= MOST_BYTES[kind]
