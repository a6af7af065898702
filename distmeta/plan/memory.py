"""Whether a run fits into the memory of its workers, and where its weights are to be so that it does."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

from distmeta.cluster.machine import available_cpus, available_memory
from distmeta.cluster.named_cluster import named_cluster
from distmeta.config import Config, read_key, with_values
from distmeta.errors import UserError
from distmeta.impossible import NOTHING_BUT_A_HEAD, OWN_TO_ALGORITHMS, contradictions, partitioned_needs, written
from distmeta.meta.config import MetaConfig
from distmeta.plan.states import ModelStates, PartitionedStates, States
from distmeta.recipes import filled_meta

STAGES = (0, 1, 2, 3)
MOST_DOUBLINGS = 10
"""Of the workers, when a number is looked for with which a run would fit."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers in a network."""

    parameters: int
    trained: int
    """Those that the outer loop changes."""
    adapted: int
    """Those that a task has fast weights of, the head left out."""
    largest: int
    """Those that one module owns itself, at most."""

    @classmethod
    def of(cls, network: Any, config: Config) -> "Sizes":
        """Those of a network that is there."""
        numbers = {name: parameter.numel() for name, parameter in network.named_parameters()}
        adapted = network.adapted_names(config.meta.adapt, config.meta.last_k)
        return cls(
            parameters=sum(numbers.values()),
            trained=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
            adapted=sum(numbers[name] for name in adapted),
            largest=max(sum(p.numel() for p in module.parameters(recurse=False)) for module in network.modules()),
        )


def network_sizes(config: Config, vocab_size: int) -> Sizes:
    """Sizes of the network, adapters included, without making it: on torch's meta device, which allocates nothing.

    `vocab_size` is that of a new model, whose tokenizer need not be there yet; a loaded one has its own.
    """
    from distmeta.setup import bare_network

    return Sizes.of(bare_network(config, vocab_size), config)


def states_of(
    config: Config, sizes: Sizes, *, workers: int | None = None, stage: int | None = None, weights: str | None = None
) -> States:
    """What a worker's engine holds as the run is configured, but for what is given; `auto` weights count as whole."""
    count = config.train.fewest_workers if workers is None else workers
    stage = config.engine.zero_stage if stage is None else stage
    adapted = 0 if config.meta.algorithm in NOTHING_BUT_A_HEAD else sizes.adapted
    offload = config.engine.offload_optimizer and stage > 0
    if (weights or config.engine.weights) == "partitioned":
        second_order = config.meta.algorithm == "maml" and config.meta.second_order is not False
        copies = config.meta.inner_steps + 6 if second_order else 3
        return PartitionedStates(
            sizes.parameters, sizes.trained, count, adapted, sizes.largest, copies, offload=offload
        )
    return ModelStates(sizes.parameters, sizes.trained, count, stage, adapted, offload)


def worker_bytes(config: Config, states: States, *, is_gpu: bool | None = None) -> float:
    """The peak of these states in the memory that a worker computes in: on a CPU the host's is the same, where the copy
    for a checkpoint is too.

    `is_gpu` says what a worker computes on; unset: as the run's workers will.
    """
    on_device = workers_on_gpu(config) if is_gpu is None else is_gpu
    return states.peak if on_device else states.peak + states.host + states.checkpoint


def memory_by_stage(config: Config, sizes: Sizes, workers: int, other: float) -> dict[str, float]:
    """Bytes a worker at each ZeRO stage, and with partitioned weights where the run could have them: its model states
    at their peak, and `other` memory, which none of this changes."""
    settings = {str(stage): (stage, "whole") for stage in STAGES}
    if can_be_partitioned(config):
        settings["3 partitioned"] = (3, "partitioned")
    return {
        name: worker_bytes(config, states_of(config, sizes, workers=workers, stage=stage, weights=weights)) + other
        for name, (stage, weights) in settings.items()
    }


def can_be_partitioned(config: Config) -> bool:
    """Whether the run could be one with `engine.weights: partitioned`, at stage 3."""
    return not any(key != "engine.zero_stage" for key, *_ in partitioned_needs(config))


def on_gpu(config: Config) -> bool:
    """Whether a worker on this machine computes on a GPU."""
    import torch

    return config.engine.device != "cpu" and torch.cuda.is_available()


def workers_on_gpu(config: Config) -> bool:
    """Whether the run's workers compute on GPUs: of this machine, or of the cluster that is named."""
    if not _is_elsewhere():
        return on_gpu(config)
    from distmeta.cluster.worker_memory import has_gpus

    return config.engine.device != "cpu" and has_gpus()


def memory_of_a_worker(config: Config) -> tuple[float, str] | None:
    """Bytes that a worker may use, and where the number comes from; None: no node that could hold one has said it."""
    if _is_elsewhere():
        from distmeta.cluster.worker_memory import worker_memory

        return worker_memory(config)
    if on_gpu(config):
        import torch

        return torch.cuda.get_device_properties(0).total_memory, "the GPU has"
    here = max(1, min(config.train.most_workers, int(available_cpus() // config.train.cpus_per_worker)))
    return available_memory() / here, f"this machine has for each of {here} workers"


def _is_elsewhere() -> bool:
    """Whether workers may be on other machines than this one."""
    if not named_cluster():
        return False
    from distmeta.cluster.worker_memory import is_one_node

    return not is_one_node()


def choose_weights(config: Config, say: Callable[[str], None], memory_bytes: float | None = None) -> None:
    """Sets `engine.weights` where it is auto, and says by which arithmetic: whole where a worker can hold them, else
    partitioned where it can hold those and the run may have them, else whole, for `check_memory` to refuse.

    Of a new model the vocabulary is taken to be as large as asked for. Once, before workers start: all of them must do
    the same.
    """
    if config.engine.weights != "auto":
        return
    config.engine.weights = "whole"
    there = _available(config, memory_bytes)
    if there is None:
        say("engine.weights: auto takes whole, since the memory of the cluster's workers is not known here")
        return
    available, has = there
    sizes = network_sizes(config, config.tokenizer.vocab_size)
    whole = worker_bytes(config, states_of(config, sizes, weights="whole"))
    found = f"a worker with whole weights needs {gib(whole)} for them and what they are trained with"
    if whole > available and config.engine.zero_stage == 3 and can_be_partitioned(config):
        partitioned = worker_bytes(config, states_of(config, sizes, weights="partitioned"))
        found += f", with partitioned ones {gib(partitioned)}"
        if partitioned <= available:
            config.engine.weights = "partitioned"
    say(f"engine.weights: auto takes {config.engine.weights}: {found}, {has} {gib(available)}")


def check_memory(plan: Mapping[str, Any], memory_bytes: float | None, config: Config) -> None:
    """Refuses a run that does not fit.

    Raises:
        UserError: with what a worker needs, what it has, and the nearest setting that works, if any does.
    """
    there = _available(config, memory_bytes)
    needed = plan["peak_memory_bytes"]
    if there is None or needed <= there[0]:
        return
    available, has = there
    sizes = Sizes(*(plan[key] for key in SIZES))
    other = max(0.0, needed - worker_bytes(config, states_of(config, sizes)))
    least = needed, ""
    for changes, states in _alternatives(config, sizes):
        # Activations take twice as much in fp32 as in bf16.
        takes = worker_bytes(config, states) + other * (2 if "engine.precision" in changes else 1)
        if takes < least[0]:
            least = takes, ", ".join(f"{key} {written(value)}" for key, value in changes.items())
        if takes <= available:
            remedy = f"set {least[1]}, which needs {gib(takes)}"
            break
    else:
        tried = f" ({least[1]})" if least[1] else ""
        remedy = (
            "no ZeRO stage and no number of workers makes it fit, and the least that a setting was found to need is "
            f"{gib(least[0])}{tried}: take a smaller model, or give each worker more memory"
        )
    where = "with partitioned weights" if config.engine.weights == "partitioned" else "with whole weights"
    raise UserError(
        f"engine.zero_stage: at stage {config.engine.zero_stage} {where} a worker needs {gib(needed)}, {has} "
        f"{gib(available)}: {remedy}"
    )


SIZES = ("parameters", "trained_parameters", "adapted_parameters", "largest_module_parameters")
"""Keys of a plan, in the order of `Sizes`."""


def _alternatives(config: Config, sizes: Sizes) -> Iterator[tuple[dict[str, Any], States]]:
    """Values of keys to set, and what a worker's engine holds then; those that change the least come first."""
    engine, train = config.engine, config.train
    offloads = [False, True] if workers_on_gpu(config) and not engine.offload_optimizer else [engine.offload_optimizer]
    for changes, its_sizes in _learners(config, sizes):
        changed = with_values(config, changes)
        needed = {key: possible[0] for key, _, possible in partitioned_needs(changed)}
        wholes: list[tuple[int, str, bool]] = []
        if engine.weights != "partitioned" and changes.keys() <= {"meta.adapt"}:
            stages = range(engine.zero_stage, 4)
            wholes = [(stage, "whole", offload) for offload in offloads for stage in stages if stage or not offload]
        is_possible = not any(key.startswith("meta.") for key in needed)
        partitioned = [(3, "partitioned", offload) for offload in offloads if is_possible]
        for doubling in range(MOST_DOUBLINGS + 1):
            workers = train.fewest_workers * 2**doubling
            for stage, weights, offload in [*wholes, *partitioned]:
                values: dict[str, Any] = {"engine.zero_stage": stage}
                if weights == "partitioned":
                    values |= {"engine.weights": weights, **needed}
                values |= {"engine.offload_optimizer": offload, **changes}
                values["train.num_workers"] = workers if doubling else train.num_workers
                values["meta.meta_batch_size"] = max(config.meta.meta_batch_size, workers)
                changed.engine.offload_optimizer = offload
                states = states_of(changed, its_sizes, workers=workers, stage=stage, weights=weights)
                yield {key: value for key, value in values.items() if value != read_key(config, key)}, states


def _learners(config: Config, sizes: Sizes) -> Iterator[tuple[dict[str, Any], Sizes]]:
    """Settings of what is learned that may take less, first those as they are, and the sizes of the network then."""
    yield {}, sizes
    learned = {key: possible[0] for key, _, possible in partitioned_needs(config) if key.startswith("meta.")}
    if "meta.algorithm" in learned:  # which may have settings of its own
        plain = filled_meta(MetaConfig(algorithm=learned["meta.algorithm"]), config.model.name_or_path is not None)
        learned |= {f"meta.{key}": getattr(plain, key) for key in OWN_TO_ALGORITHMS}
    adapted = config.meta.adapt
    lesser = [each for each in ("lora", "head") if adapted not in (each, "head")]
    for adapt, changes in [*((each, {}) for each in lesser), *((each, learned) for each in [adapted, *lesser])]:
        changes = {**changes, "meta.adapt": adapt}
        changed = with_values(config, changes)
        if any(contradictions(changed.meta)) or changed == config:
            continue
        with suppress(UserError):  # a network that cannot have adapters
            yield changes, network_sizes(changed, config.tokenizer.vocab_size)


def check_model_states_fit(config: Config, memory_bytes: float | None = None) -> None:
    """Refuses, before anything starts, a model whose states alone are larger than the memory that there is.

    No run that could work is refused: what its steps hold beside the states is left out, and of a new model the rows of
    the vocabulary, which may come out smaller than asked for. `check_memory` on a plan looks closer.

    Raises:
        UserError: see `check_memory`. Never where the memory of the cluster's workers is not known.
    """
    sizes = network_sizes(config, vocab_size=8)  # so that a model's own number for the padding is in it
    plan = dict(zip(SIZES, astuple(sizes), strict=True))
    check_memory(plan | {"peak_memory_bytes": worker_bytes(config, states_of(config, sizes))}, memory_bytes, config)


def _available(config: Config, memory_bytes: float | None) -> tuple[float, str] | None:
    return (memory_bytes, "--memory gives it") if memory_bytes is not None else memory_of_a_worker(config)


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.2f} GiB"


def asha_share(max_steps: int, grace_steps: int, reduction_factor: int) -> float:
    """Expected share of all trials' steps that asynchronous successive halving takes.

    With rungs at r_k = grace * factor^k below the last step R, a share factor^-k of the trials goes from rung k - 1 on
    to rung k: the sum over k of factor^-k * (r_k - r_(k-1)), over R (Li et al. 2020, "A System for Massively Parallel
    Hyperparameter Tuning", https://arxiv.org/abs/1810.05934, section 3). An asynchronous one lets the first trials at
    a rung pass whatever they score, so few trials take more than that.
    """
    rung, before, share, taken = min(grace_steps, max_steps), 0, 1.0, 0.0
    while True:
        taken += share * (rung - before)
        if rung == max_steps:
            return taken / max_steps
        before, rung, share = rung, min(rung * reduction_factor, max_steps), share / reduction_factor
