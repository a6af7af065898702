"""Meta-gradients written out by hand from the papers, in double precision: plain PyTorch, padded batches, loops.

Of `distmeta` nothing is used but the names of parameters and how a task is laid out. Each function returns an `Answer`.
First order takes the inner gradients for constants, so that d phi / d theta is the identity (Finn et al. 2017, section
5.2); second order keeps the whole graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from distmeta.compute.batch import TaskBatch, TokenBatch
from distmeta.models import Network

Parameters = dict[str, Tensor]


@dataclass
class Answer:
    """What a method says of a task."""

    gradients: Parameters
    """Meta-gradient by parameter name; of what nothing depends on there is none."""
    query_loss: float
    """After the last inner step."""
    scores: Tensor
    """Of the query set after the last inner step: (examples, n_way)."""
    support_losses: list[float]
    """Before each inner step."""


@dataclass(frozen=True)
class Setting:
    """An inner loop."""

    adapted: tuple[str, ...]
    """The parameters that move, beside the head."""
    steps: int
    rate: float
    second_order: bool = False
    optimizer: str = "sgd"
    clipping: float = 0.0
    weights: tuple[float, ...] = ()
    """How much the query loss after each step counts; (): the last one alone."""


def double_parameters(network: Network) -> Parameters:
    """Leaves to differentiate by."""
    return {name: value.detach().double().requires_grad_() for name, value in network.named_parameters()}


def hidden_states(network: Network, parameters: Parameters, batch: TokenBatch) -> Tensor:
    """The last hidden states (texts, length, width) of the padded batch, with adapters W + scale * B A written in."""
    prefix = f"model.{network.model.base_model_prefix}."
    weights = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
    for key in {name.rsplit("/", 1)[0] for name in parameters if name.startswith("lora.")}:
        path, start = key.removeprefix("lora.").rsplit("/", 1)
        name = path.replace("/", ".").removeprefix(prefix)
        update = network.lora_scale * parameters[f"{key}/b"] @ parameters[f"{key}/a"]  # (out, in)
        if "c_attn" in name:  # query, key and value side by side, kept as (in, 3 * out)
            wide = torch.zeros_like(weights[name])
            wide[:, int(start) : int(start) + len(update)] = update.t()
            update = wide
        weights[name] = weights[name] + update
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return functional_call(network.model.base_model, weights, kwargs=arguments).last_hidden_state


def features(network: Network, parameters: Parameters, batch: TokenBatch) -> Tensor:
    """The mean hidden state of each text: (texts, width)."""
    hidden = hidden_states(network, parameters, batch)
    lengths = batch.attention_mask.sum(1)
    return torch.stack([row[: int(length)].mean(0) for row, length in zip(hidden, lengths, strict=True)])


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log softmax(scores)[label]."""
    return -(scores - scores.logsumexp(1, keepdim=True))[torch.arange(len(labels)), labels].mean()


def by_class(values: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Mean row of each class."""
    return torch.stack([values[labels == label].mean(0) for label in range(n_way)])


def gradients_of(loss: Tensor, theta: Parameters) -> Parameters:
    """d loss / d theta, of those that it depends on."""
    found = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(theta, found, strict=True) if gradient is not None}


class InnerOptimizer:
    """The direction of each step, by the usual definitions.

    Clipping as torch.nn.utils.clip_grad_norm_ has it; Adam (Kingma and Ba 2015) with epsilon under the root.
    """

    def __init__(self, setting: Setting, momentum: float = 0.9) -> None:
        self.setting, self.momentum, self.step = setting, momentum, 0
        self.m: list[Tensor] = []
        self.v: list[Tensor] = []

    def directions(self, gradients: list[Tensor]) -> list[Tensor]:
        """That of each weight."""
        self.step += 1
        if self.setting.clipping:
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            gradients = [gradient * (self.setting.clipping / (norm + 1e-6)).clamp(max=1.0) for gradient in gradients]
        if self.setting.optimizer == "sgd":
            return gradients
        if not self.m:
            self.m = self.v = [torch.zeros_like(gradient) for gradient in gradients]
        if self.setting.optimizer == "momentum":
            self.m = [self.momentum * m + g for m, g in zip(self.m, gradients, strict=True)]
            return self.m
        self.m = [0.9 * m + 0.1 * g for m, g in zip(self.m, gradients, strict=True)]
        self.v = [0.999 * v + 0.001 * g**2 for v, g in zip(self.v, gradients, strict=True)]
        return [
            (m / (1 - 0.9**self.step)) / (v / (1 - 0.999**self.step) + 1e-16).sqrt()
            for m, v in zip(self.m, self.v, strict=True)
        ]


def adapted_answer(
    network: Network,
    theta: Parameters,
    task: TaskBatch,
    setting: Setting,
    *,
    start: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    project: Callable[[Tensor], Tensor] = lambda values: values,
    rate: Callable[[str, int], Any] | None = None,
) -> Answer:
    """phi_{k+1} = phi_k - rate * direction of d L_S / d phi; the gradient of sum over k of w_k L_Q(phi_k).

    Args:
        network: the network.
        theta: the meta-parameters.
        task: the task.
        setting: the inner loop.
        start: the head's weight and bias from the support set's features; unset: zeros.
        project: what is done to features before the head sees them.
        rate: of a weight at a step; unset: that of the setting.
    """
    if start is None:
        weight = torch.zeros(task.n_way, network.hidden_size, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(task.n_way, dtype=torch.float64, requires_grad=True)
    else:
        weight, bias = start(features(network, theta, task.support))
    # Copies, which keep the way to theta: a head that is made from theta is no part of d L_S / d phi.
    phi = {name: theta[name].clone() for name in setting.adapted} | {"head.weight": weight, "head.bias": bias}

    def scores(batch: TokenBatch) -> Tensor:
        return project(features(network, theta | phi, batch)) @ phi["head.weight"].t() + phi["head.bias"]

    optimizer = InnerOptimizer(setting)
    weights = setting.weights or (*[0.0] * (setting.steps - 1), 1.0)
    total = torch.zeros((), dtype=torch.float64)
    support_losses = []
    for step in range(setting.steps):
        loss = cross_entropy(scores(task.support), task.support_labels)
        support_losses.append(float(loss.detach()))
        found = torch.autograd.grad(
            loss,
            list(phi.values()),
            create_graph=setting.second_order,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        moves = optimizer.directions(list(found))
        for name, move in zip(list(phi), moves, strict=True):
            phi[name] = phi[name] - (setting.rate if rate is None else rate(name, step)) * move
        if weights[step]:
            query_scores = scores(task.query)
            query_loss = cross_entropy(query_scores, task.query_labels)
            total = total + weights[step] * query_loss
    return Answer(gradients_of(total, theta), float(query_loss.detach()), query_scores.detach(), support_losses)


def maml(network: Network, task: TaskBatch, setting: Setting) -> Answer:
    """Finn et al. 2017, and its first-order form."""
    return adapted_answer(network, double_parameters(network), task, setting)


def layer_step(network: Network, task: TaskBatch, setting: Setting) -> Answer:
    """MAML++'s learned rates (Antoniou et al. 2019): one for each tensor and step."""
    theta = double_parameters(network)
    order = [*setting.adapted, "head.weight", "head.bias"]
    rates = theta["learned.inner_lr"].view(len(order), setting.steps)
    return adapted_answer(network, theta, task, setting, rate=lambda name, step: rates[order.index(name), step])


def metasgd(network: Network, task: TaskBatch, setting: Setting) -> Answer:
    """Li et al. 2017: phi = theta - alpha o gradient, alpha as large as theta; shared by the rows of the head."""
    theta = double_parameters(network)

    def rate(name: str, _step: int) -> Tensor:
        alpha = theta["learned.inner_lr/" + name.replace(".", "/")]
        return alpha[None, :] if name == "head.weight" else alpha.reshape(theta[name].shape) if name in theta else alpha

    return adapted_answer(network, theta, task, setting, rate=rate)


def anil(network: Network, task: TaskBatch, setting: Setting) -> Answer:
    """Raghu et al. 2020: W <- W - rate * (P - Y)^T F / n, the gradient of softmax regression, on features F(theta)."""
    theta = double_parameters(network)
    support, query = (features(network, theta, batch) for batch in (task.support, task.query))
    wanted = torch.eye(task.n_way, dtype=torch.float64)[task.support_labels]
    weight = torch.zeros(task.n_way, network.hidden_size, dtype=torch.float64)
    bias = torch.zeros(task.n_way, dtype=torch.float64)
    losses = []
    for _ in range(setting.steps):
        scores = support @ weight.t() + bias
        losses.append(float(cross_entropy(scores.detach(), task.support_labels)))
        error = (scores.softmax(1) - wanted) / len(wanted)
        weight_move, bias_move = error.t() @ support, error.sum(0)
        if not setting.second_order:
            weight_move, bias_move = weight_move.detach(), bias_move.detach()
        weight, bias = weight - setting.rate * weight_move, bias - setting.rate * bias_move
    scores = query @ weight.t() + bias
    loss = cross_entropy(scores, task.query_labels)
    return Answer(gradients_of(loss, theta), float(loss.detach()), scores.detach(), losses)


def reptile(network: Network, task: TaskBatch, setting: Setting) -> Answer:
    """Nichol et al. 2018, section 2: (theta - phi) / rate, phi after plain descent on all the task's examples.

    Support and query go through the network one after the other, so nothing has to be put together.
    """
    theta = double_parameters(network)
    phi = {name: theta[name].detach().clone() for name in setting.adapted}
    phi["head.weight"] = torch.zeros(task.n_way, network.hidden_size, dtype=torch.float64)
    phi["head.bias"] = torch.zeros(task.n_way, dtype=torch.float64)
    labels = torch.cat([task.support_labels, task.query_labels])
    optimizer = InnerOptimizer(setting)
    losses = []

    def scores() -> Tensor:
        found = torch.cat([features(network, theta | phi, batch) for batch in (task.support, task.query)])
        return found @ phi["head.weight"].t() + phi["head.bias"]

    for _ in range(setting.steps):
        phi = {name: value.detach().requires_grad_() for name, value in phi.items()}
        loss = cross_entropy(scores(), labels)
        losses.append(float(loss.detach()))
        moves = optimizer.directions(list(torch.autograd.grad(loss, list(phi.values()))))
        phi = {name: phi[name] - setting.rate * move for name, move in zip(list(phi), moves, strict=True)}
    after = scores().detach()[len(task.support_labels) :]
    gradients = {name: (theta[name] - phi[name]).detach() / setting.rate for name in setting.adapted}
    return Answer(gradients, float(cross_entropy(after, task.query_labels)), after, losses)


def protomaml(network: Network, task: TaskBatch, setting: Setting) -> Answer:
    """Triantafillou et al. 2020, section 3.4: w_k = 2 c_k, b_k = -|c_k|^2, then as MAML."""

    def start(support: Tensor) -> tuple[Tensor, Tensor]:
        centers = by_class(support, task.support_labels, task.n_way)
        return 2 * centers, -(centers**2).sum(1)

    return adapted_answer(network, double_parameters(network), task, setting, start=start)


def leopard(network: Network, task: TaskBatch, setting: Setting) -> Answer:
    """Bansal et al. 2020a: the head's rows are class means of g(f); scores are head(h(f)); g and h do not move."""
    theta = double_parameters(network)

    def layer(values: Tensor, name: str) -> Tensor:
        return values @ theta[f"learned.{name}/weight"].t() + theta[f"learned.{name}/bias"]

    def start(support: Tensor) -> tuple[Tensor, Tensor]:
        rows = by_class(
            layer(torch.tanh(layer(support, "generator")), "generator/out"), task.support_labels, task.n_way
        )
        return rows[:, : network.hidden_size], rows[:, network.hidden_size]

    order = [*setting.adapted, "head.weight", "head.bias"]
    table = theta.get("learned.inner_lr")
    rate = None
    if table is not None:
        rates = table.view(len(order), setting.steps)

        def rate(name: str, step: int) -> Tensor:
            return rates[order.index(name), step]

    return adapted_answer(
        network, theta, task, setting, start=start, rate=rate, project=lambda f: torch.tanh(layer(f, "projection"))
    )


def protonet(network: Network, task: TaskBatch, distance: str, temperature: float | None) -> Answer:
    """Snell et al. 2017: scores are -d(f, c_k) / temperature; temperature unset: exp of the learned parameter."""
    theta = double_parameters(network)
    support, query = (features(network, theta, half) for half in (task.support, task.query))
    if distance == "centred-cosine":
        support, query = (half / half.norm(dim=1, keepdim=True) for half in (support, query))
    centers = by_class(support, task.support_labels, task.n_way)
    if distance == "centred-cosine":
        middle = centers.mean(0)
        centers, query = centers - middle, query - middle
    rows = []
    for text in query:
        if distance == "euclidean":
            row = [((text - center) ** 2).sum() for center in centers]
        else:
            row = [1 - (text * center).sum() / (text.norm() * center.norm()) for center in centers]
        rows.append(torch.stack(row))
    by = theta["learned.log_temperature"].exp() if temperature is None else temperature
    scores = -torch.stack(rows) / by
    loss = cross_entropy(scores, task.query_labels)
    return Answer(gradients_of(loss, theta), float(loss.detach()), scores.detach(), [])


def kept_similarity(network: Network, start: Parameters, task: TaskBatch, weight: float) -> tuple[Parameters, float]:
    """Gradient and value of weight * the mean over pairs of different texts of (cos - cos under `start`)^2."""
    theta = double_parameters(network)

    def cosines(parameters: Parameters) -> list[Tensor]:
        texts = [row for half in (task.support, task.query) for row in features(network, parameters, half)]
        return [(a * b).sum() / (a.norm() * b.norm()) for i, a in enumerate(texts) for b in texts[:i]]

    pairs = zip(cosines(theta), cosines({name: value.detach() for name, value in start.items()}), strict=True)
    term = weight * torch.stack([(now - before) ** 2 for now, before in pairs]).mean()
    return gradients_of(term, theta), float(term.detach())


def multitask(network: Network, task: TaskBatch) -> Answer:
    """Cross-entropy of cos(f, w_c) / 0.1 over all classes of the task's data set, mean over support and query texts.
    The scores are those of the query texts for the task's own classes."""
    theta = double_parameters(network)
    assert task.head is not None
    (rows,), ((first, behind),) = task.head.rows, task.head.spans
    losses, own = [], []
    for batch, labels in ((task.support, task.support_labels), (task.query, task.query_labels)):
        for text, label in zip(features(network, theta, batch), labels, strict=True):
            among = theta["learned.head"][first:behind]
            scores = torch.stack([(text * w).sum() / (text.norm() * w.norm()) / 0.1 for w in among])
            losses.append(scores.logsumexp(0) - scores[int(rows[label]) - first])
            own.append(torch.stack([scores[int(row) - first] for row in rows]))
    loss = torch.stack(losses).mean()
    scores = torch.stack(own[len(task.support_labels) :]).detach()
    return Answer(gradients_of(loss, theta), float(loss.detach()), scores, [])


def nearest_mean(network: Network, task: TaskBatch) -> Tensor:
    """Scores of the query texts: cosine to the mean, by class, of the support features of length 1, over 0.1."""
    theta = double_parameters(network)
    support, query = (
        torch.stack([row / row.norm() for row in features(network, theta, batch)])
        for batch in (task.support, task.query)
    )
    centers = by_class(support, task.support_labels, task.n_way)
    return torch.stack([torch.stack([(text * c).sum() / c.norm() / 0.1 for c in centers]) for text in query]).detach()


def metaicl(network: Network, task: TaskBatch, order: Sequence[int], special: Sequence[int] = ()) -> Answer:
    """Min et al. 2022: -log p(y | x_1 y_1 ... x_K y_K x).

    Labels are words that mean nothing for the task: label 0 is the vocabulary's last token that is no `special` one,
    label 1 the one before it. Every prompt goes through the language model alone, without padding.
    """
    theta = double_parameters(network)
    weights = {name.removeprefix("model."): value for name, value in theta.items() if name.startswith("model.")}
    words: list[int] = []
    token = network.model.config.vocab_size
    while len(words) < task.n_way:
        token -= 1
        if token not in special:
            words.append(token)

    def texts(batch: TokenBatch) -> list[list[int]]:
        lengths = batch.attention_mask.sum(1).tolist()
        return [row[:length] for row, length in zip(batch.input_ids.tolist(), lengths, strict=True)]

    shots = [
        [*text, words[label]] for text, label in zip(texts(task.support), task.support_labels.tolist(), strict=True)
    ]
    context = [token for number in order for token in shots[number]]
    logits = torch.stack(
        [
            functional_call(network.model, weights, (torch.tensor([[*context, *text]]),)).logits[0, -1]
            for text in texts(task.query)
        ]
    )
    loss = cross_entropy(logits, torch.tensor([words[label] for label in task.query_labels.tolist()]))
    scores = torch.stack([logits[:, word] for word in words], dim=1)
    return Answer(gradients_of(loss, theta), float(loss.detach()), scores.detach(), [])
