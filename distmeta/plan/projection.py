"""A run on other numbers of workers than its own, row by row: time, tokens a second, memory and money."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distmeta.config import Config
from distmeta.errors import UserError
from distmeta.impossible import NOTHING_BUT_A_HEAD
from distmeta.plan.memory import Sizes, on_gpu, states_of, worker_bytes
from distmeta.plan.scaling import (
    Collective,
    Network,
    Profile,
    Shape,
    StepTime,
    collectives_of_partitioned,
    collectives_of_whole,
    step_time,
)
from distmeta.plan.tokens import SAMPLE, differ_in_size, task_tokens
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.tracking.cost import run_cost

BANDWIDTH = 10e9 / 8
"""Bytes a second between nodes where nothing else is said: 10 Gbit/s."""

LATENCY = 50e-6
"""Seconds of a message over TCP between two nodes of one data centre."""


def network_between(config: Config, bandwidth: float | None, measured: tuple[float, float] | None) -> Network:
    """The network of a cluster, with so many bytes a second (None: `BANDWIDTH`), but no faster than two workers on this
    machine were seen to exchange, whom no cable holds up."""
    fastest, latency = measured or (math.inf, 0.0)
    is_nccl = on_gpu(config) or config.engine.device == "cuda"
    return Network(min(bandwidth or BANDWIDTH, fastest), max(LATENCY, latency), is_nccl)


def shape_of(network: Any) -> Shape:
    """Numbers and tensors of a network."""
    parameters = list(network.parameters())
    return Shape(
        parameters=sum(each.numel() for each in parameters),
        trained=sum(each.numel() for each in parameters if each.requires_grad),
        largest=max(each.numel() for each in parameters),
        tensors=len(parameters),
        trained_tensors=sum(each.requires_grad for each in parameters),
        modules=sum(any(True for _ in module.parameters(recurse=False)) for module in network.modules()),
    )


def collectives_of(config: Config, shape: Shape, tasks: int, *, with_tasks: bool = True) -> list[Collective]:
    """Those of an outer step in which the worker with the most has so many tasks."""
    if config.engine.weights != "partitioned":
        return collectives_of_whole(shape, config.engine.zero_stage)
    meta = config.meta
    second_order = meta.algorithm == "maml" and meta.second_order is not False
    inner = 0 if meta.algorithm in NOTHING_BUT_A_HEAD else meta.inner_steps
    outer = (1 + (2 * inner if second_order else 0) + (1 if meta.lm_weight else 0)) if with_tasks else 1
    gathers = 3 if config.engine.activation_checkpointing else 2
    return collectives_of_partitioned(shape, tasks * inner * with_tasks, tasks * outer, gathers)


def numbers_of_workers(most: int) -> list[int]:
    """1, 2, 4 and so on, and the last one asked for."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


@dataclass(frozen=True, slots=True)
class Run:
    """What of a run does not change with the number of workers."""

    config: Config
    shape: Shape
    sizes: Sizes
    profile: Profile
    network: Network
    task_sizes: Sequence[float] = (1.0,)
    """Of some tasks, in any unit."""

    def step(self, workers: int, tasks: int, *, with_tasks: bool = True) -> StepTime:
        """An outer step with tasks; or what one of language modelling alone exchanges, and the rest as with tasks."""
        collectives = collectives_of(self.config, self.shape, math.ceil(tasks / workers), with_tasks=with_tasks)
        return step_time(
            self.profile,
            self.network,
            collectives,
            workers=workers,
            tasks=tasks,
            stage=self.config.engine.zero_stage,
            sizes=self.task_sizes,
        )


def on_more_workers(
    setup: Setup,
    run: RunDirectory,
    network: Any,
    plan: Mapping[str, Any],
    tokens_per_task: float,
    most: int,
    bandwidth: float | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What `make_plan` says beside the run: `scaling` and `network`, and where steps may be run `dry_run`.

    Raises:
        UserError: steps cannot be run.
    """
    config = setup.config
    measured, found = None, {}
    if "rate" in plan:
        profile = Profile(per_task=plan["flops_per_step"] / (plan["rate"] * config.meta.meta_batch_size))
    else:
        from distmeta.plan.profile import dry_run, measure

        say("running some steps on one worker and on two (a minute)")
        profile, measured = measure(config, run)
        say(f"trying out a step as one of {most} workers")
        try:
            found["dry_run"] = dry_run(config, run, most)
        except UserError as error:  # the rest is worth having
            say(f"it could not be done: {error}")
    between = network_between(config, bandwidth, measured)
    source = setup.tasks("train")
    sizes = [task_tokens(source, index, config) for index in range(SAMPLE)] if differ_in_size(source) else [1]
    made = Run(config, shape_of(network), Sizes.of(network, config), profile, between, sizes)
    is_held_up = between.bandwidth < (bandwidth or BANDWIDTH)
    network_said = asdict(between) | {"is_held_up_here": is_held_up}
    return {**found, "scaling": project(made, most, plan, tokens_per_task), "network": network_said}


def project(run: Run, most: int, plan: Mapping[str, Any], tokens_per_task: float) -> list[dict[str, Any]]:
    """A row for each number of workers up to `most`, from the forecast of the run that is configured.

    Each has `workers`; `meta_batch_size`, the run's own, or one task for each worker where these are more;
    `seconds_per_step` of steps with tasks, of which `computing`, `waiting` for the slowest worker and `exchanging` over
    the network; `tokens_per_second`; `efficiency`, as a share of so many workers that each do as much as one on its
    own; `peak_memory_bytes` of a worker; `wall_seconds` and `cost` of the run, whose validations are shared out and
    whose checkpoints take as long as here.
    """
    config = run.config
    warmups, seconds_of = config.meta.lm_warmup_steps, plan.get("seconds_of", {})
    memory = plan.get("memory", {})
    other_memory = memory.get("without_model", 0.0) + memory.get("working", 0.0)
    episodes, here = config.train.validate_episodes, plan.get("calibrated_workers", 1)
    rows: list[dict[str, Any]] = []
    for workers in numbers_of_workers(most):
        tasks = max(config.meta.meta_batch_size, workers)
        step = run.step(workers, tasks)
        wall = step.whole * (config.train.outer_steps - warmups)
        if warmups:
            exchanging = run.step(workers, tasks, with_tasks=False).exchanging
            wall += (_warmup_share(plan) * (step.computing + step.waiting) + exchanging) * warmups
        wall += seconds_of.get("validations", 0.0) * math.ceil(episodes / workers) / math.ceil(episodes / here)
        wall += seconds_of.get("checkpoints", 0.0)
        tokens = tasks * tokens_per_task / step.whole
        states = states_of(config, run.sizes, workers=workers)
        rows.append(
            {
                "workers": workers,
                "meta_batch_size": tasks,
                "seconds_per_step": step.whole,
                "computing": step.computing,
                "waiting": step.waiting,
                "exchanging": step.exchanging,
                "tokens_per_second": tokens,
                "efficiency": tokens / (workers * rows[0]["tokens_per_second"]) if rows else 1.0,
                "peak_memory_bytes": worker_bytes(config, states) + other_memory,
                "wall_seconds": wall,
                "cost": run_cost(wall * workers, config.tracking)["cost"],
            }
        )
    return rows


def _warmup_share(plan: Mapping[str, Any]) -> float:
    """How long a step of language modelling alone takes, over one with tasks."""
    if "seconds_of" not in plan:
        return plan["flops_per_warmup_step"] / plan["flops_per_step"]
    seconds, steps = plan["seconds_of"], plan["outer_steps"] - plan["warmup_steps"]
    warmup, with_tasks = seconds["warm-up steps"] / plan["warmup_steps"], seconds["steps with tasks"] / max(steps, 1)
    return warmup / with_tasks if with_tasks else 1.0
