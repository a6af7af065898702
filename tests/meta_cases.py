"""Algorithms with their settings, a network and tasks for each, and what the paper says of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from distmeta.compute.batch import TaskBatch
from distmeta.meta import TaskResult, algorithm_class
from distmeta.meta.algorithm import Parameters
from distmeta.meta.config import MetaConfig
from distmeta.meta.multitask import TrainingClasses
from distmeta.models import Network
from distmeta.tasks.episode import Example
from tests import references
from tests.helpers import meta_config, random_task, task_batch, tiny_network
from tests.references import Answer, Setting

RATE, STEPS = 0.3, 3
CLASSES = TrainingClasses({"one": list("abcdef"), "two": list("uvwxyz")})

ADAPTED = ("all", "head", "lora", "bias", "last_k", "regex:attention|attn")


@dataclass(frozen=True)
class Case:
    """An algorithm with its settings."""

    algorithm: str
    adapt: str = "all"
    options: tuple[tuple[str, Any], ...] = ()
    progress: float = 1.0
    freeze: int = 0
    """1: the outer loop leaves the embeddings and the lowest layer alone."""

    def __str__(self) -> str:
        extra = [f"{key}={value}" for key, value in self.options]
        extra += [f"freeze={self.freeze}"] if self.freeze else []
        return "-".join([self.algorithm, self.adapt.replace("regex:", "regex "), *extra])

    @property
    def config(self) -> MetaConfig:
        """As the software reads it."""
        settings = {"inner_lr": RATE, "inner_steps": STEPS, "lm_weight": 0.0} | dict(self.options)
        return meta_config(algorithm=self.algorithm, adapt=self.adapt, **settings)


def case(algorithm: str, adapt: str = "all", progress: float = 1.0, freeze: int = 0, **options: Any) -> Case:
    """A Case in one line."""
    return Case(algorithm, adapt, tuple(options.items()), progress, freeze)


def fast_names(network: Network, adapt: str) -> tuple[str, ...]:
    """What moves in the inner loop, read off the names of BERT's and GPT-2's parameters."""
    kept = {
        "head": lambda name, value: False,
        "lora": lambda name, value: name.startswith("lora."),
        "all": lambda name, value: True,
        "bias": lambda name, value: value.ndim == 1,
        "last_k": lambda name, value: any(part in name for part in (".layer.1.", ".h.1.", ".ln_f.")),
        "regex:dense|mlp": lambda name, value: ".dense." in name or "mlp" in name,
        "regex:attention|attn": lambda name, value: "attention" in name or "attn" in name,
    }[adapt]
    body = ("lora.",) if adapt == "lora" else ("model.bert.", "model.transformer.")
    return tuple(name for name, value in network.named_parameters() if name.startswith(body) and kept(name, value))


def make_network(case: Case, model_type: str, *, attention: str = "eager") -> Network:
    """In double precision; every tensor is moved, so that biases and norms matter and no gradient is small."""
    network = tiny_network(model_type, lora_rank=4 if case.adapt == "lora" else 0, attention=attention)
    torch.manual_seed(1)
    algorithm = algorithm_class(case.algorithm)
    network.learn(algorithm.learned(network, case.config))
    if algorithm.needs_training_classes:
        network.learn(algorithm.learned_of_classes(network, case.config, CLASSES))
    network.double().eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5
            if name.startswith("learned.inner_lr"):
                parameter.mul_(1 + noise)
            else:
                parameter.add_(0.3 * noise)
    if case.freeze:
        network.freeze(case.freeze)
    return network


def make_task(case: Case, index: int = 4) -> TaskBatch:
    """Three classes in no order; metaicl gets short texts, for which the networks have positions in one prompt."""
    task = random_task(index, n_way=3, k_shot=1 if case.algorithm == "metaicl" else 2, query_per_class=2)

    def turned(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        if case.algorithm == "metaicl":
            examples = tuple(replace(each, input_ids=each.input_ids[: 5 + n]) for n, each in enumerate(examples))
        return examples[::2] + examples[1::2]

    batch = task_batch(replace(task, support=turned(task.support), query=turned(task.query)))
    return with_head(batch, index) if algorithm_class(case.algorithm).needs_training_classes else batch


def with_head(batch: TaskBatch, index: int) -> TaskBatch:
    """The task with its classes among all of training: every other one is of the second data set, in another order."""
    source, classes = ("one", "abcd") if index % 2 else ("two", "xwvu")
    return replace(batch, head=CLASSES.rows(source, classes[: batch.n_way], torch.device("cpu")))


@lru_cache
def reference(case: Case, model_type: str, prompt_order: tuple[int, ...] = ()) -> Answer:
    """What the paper says of the network and the task of a case."""
    return paper_answer(case, make_network(case, model_type), make_task(case), prompt_order)


def paper_answer(case: Case, network: Network, task: TaskBatch, prompt_order: Sequence[int] = ()) -> Answer:
    """What the paper says of a network in double precision; `prompt_order` is that of metaicl's examples."""
    config = case.config
    order = config.second_order
    if order is None:
        order = case.algorithm in ("maml", "anil", "metasgd")
    weights: tuple[float, ...] = ()
    if config.multi_step_loss:
        # Antoniou et al. 2019, section 4: from 1 / steps each to the last step alone.
        share = max(0.0, 1 - case.progress / config.multi_step_loss) / config.inner_steps
        weights = (*[share] * (config.inner_steps - 1), 1 - (config.inner_steps - 1) * share)
    setting = Setting(
        fast_names(network, case.adapt),
        config.inner_steps,
        config.inner_lr,
        order,
        config.inner_optimizer,
        config.inner_clipping,
        weights,
    )
    if case.algorithm == "protonet":
        by = None if config.learn_temperature else config.temperature or 1.0
        if not config.learn_temperature and config.distance != "euclidean":
            by = 0.1
        answer = references.protonet(network, task, config.distance, by)
    elif case.algorithm == "multitask":
        answer = references.multitask(network, task)
    elif case.algorithm == "metaicl":
        answer = references.metaicl(network, task, prompt_order)
    else:
        write = "layer_step" if config.inner_rates == "layer_step" and "maml" in case.algorithm else case.algorithm
        answer = getattr(references, {"fomaml": "maml"}.get(write, write))(network, task, setting)
    if case.freeze:
        low = (".embeddings.", ".layer.0.", ".wte.", ".wpe.", ".h.0.")
        for name in [name for name in answer.gradients if any(part in name for part in low)]:
            del answer.gradients[name]
    return answer


def whole(result: TaskResult, parameters: Parameters) -> Parameters:
    """The gradients, those of the word embedding and of its rates with all rows."""
    gradients = dict(result.gradients)
    for name in gradients.keys() & set(result.of_rows):
        assert result.rows is not None
        rows = gradients[name].view(len(result.rows), -1)
        full = torch.zeros_like(parameters[name]).view(-1, rows.shape[1]).index_add_(0, result.rows, rows)
        gradients[name] = full.view_as(parameters[name])
    return gradients


def relative_error(found: Parameters, expected: Parameters) -> tuple[float, str]:
    """The largest |found - expected| of a parameter, over its largest |expected|, and the parameter's name.

    A parameter whose gradient is smaller than a thousandth of the largest one's (a key's bias, which attention does not
    see) is held against that thousandth.
    """
    largest = max((float(gradient.abs().max()) for gradient in expected.values()), default=0.0)
    least = 1e-3 * largest or 1.0
    worst = (0.0, "")
    for name, gradient in expected.items():
        error = float((found[name] - gradient).abs().max()) / max(least, float(gradient.abs().max()))
        worst = max(worst, (error, name))
    return worst
