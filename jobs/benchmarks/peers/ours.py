"""distmeta itself, by the call that its own training makes."""

from collections.abc import Sequence
from dataclasses import replace

from distmeta.compute.batch import TaskBatch
from distmeta.meta import Learner, Work
from distmeta.meta.config import MetaConfig
from distmeta.models import Network
from peers.work import LORA_ALPHA, LORA_RANK, Contestant, Outcome, Weights, encoder
from peers.work import Work as Given


def make(work: Given) -> Contestant | None:
    """The learner on a skeleton of the same BERT, with texts packed as it does of itself."""
    workload = work.workload
    without_lora = replace(work, workload=replace(workload, adapt="all"))  # adapters are the network's own
    network = Network(
        encoder(without_lora),
        "mean",
        computation="packed",
        lora_rank=LORA_RANK if workload.adapt == "lora" else 0,
        lora_alpha=LORA_ALPHA,
    )
    names = {f"model.{name}": name for name, _ in network.model.named_parameters()}
    for target in network.lora_targets:
        module = target.weight.removeprefix("model.").removesuffix(".weight")
        names |= {f"lora.{target.key}/{factor}": f"{module}.lora_{factor}" for factor in "ab"}
    for own, parameter in network.named_parameters():
        parameter.requires_grad_(workload.trains(names[own]))
    config = MetaConfig(
        algorithm=workload.algorithm,
        adapt=workload.adapt,
        inner_lr=work.inner_lr,
        inner_steps=work.inner_steps,
        lm_weight=0.0,
    )
    learner = Learner(network.skeleton().eval().to(work.device), config, work.precision, seed=0)

    def run(weights: Weights, tasks: Sequence[TaskBatch]) -> Outcome:
        parameters = {own: weights[name] for own, name in names.items()}
        pieces = [Work(index, task, None) for index, task in enumerate(tasks)]
        gradients, metrics = learner.gradient(parameters, pieces, len(tasks))
        return Outcome(
            {names[own]: value for own, value in gradients.items()},
            metrics["query_loss"],
            metrics["seconds/inner"] if work.device.type == "cpu" and not workload.second_order else None,
        )

    return run
