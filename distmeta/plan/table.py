"""The forecast as text."""

from collections.abc import Mapping
from typing import Any

from distmeta.plan.memory import gib


def shares(tasks: int, workers: int) -> str:
    """How many of an outer step's tasks each worker has, as text."""
    least, more = divmod(tasks, workers)
    if not more:
        return f"{least} for each of {workers} workers" if workers > 1 else f"{least} for the worker"
    if workers <= 8:
        return ", ".join([str(least + 1)] * more + [str(least)] * (workers - more)) + f" for {workers} workers in turn"
    return f"{least + 1} for {more} of {workers} workers and {least} for the others, in turn"


def size_lines(plan: Mapping[str, Any]) -> list[str]:
    """What of a forecast is known before a step is run, as lines."""
    by_stage = dict(plan["memory_by_stage"])
    partitioned = by_stage.pop("3 partitioned", None)
    weights = plan["weights"] + (" weights, offloaded optimizer states" if plan["offload_optimizer"] else " weights")
    return [
        f"parameters          {plan['parameters']:,}, {plan['trained_parameters']:,} trained, "
        f"{plan['adapted_parameters']:,} adapted",
        f"operations          {plan['flops_per_step']:.2e} a step with tasks"
        + (f", {plan['flops_per_warmup_step']:.2e} a warm-up step" if plan["warmup_steps"] else "")
        + f", {_run(plan)['flops']:.2e} a run",
        f"tasks of a step     {plan['meta_batch_size']}: {shares(plan['meta_batch_size'], plan['num_workers'])}",
        "memory of a worker  " + ", ".join(f"ZeRO {stage}: {gib(size)}" for stage, size in by_stage.items()),
        *([f"                    ZeRO 3, partitioned weights: {gib(partitioned)}"] if partitioned is not None else []),
        f"                    ZeRO {plan['zero_stage']}, {weights}, {plan['fewest_workers']} workers, as configured: "
        f"{gib(plan['peak_memory_bytes'])}",
        *(["                    (model states alone)"] if "memory" not in _run(plan) else []),
    ]


def plan_table(plan: Mapping[str, Any]) -> str:
    """The forecast as plain text of at most 100 columns."""
    lines = size_lines(plan)
    run = _run(plan)
    if "memory" in run:
        memory = run["memory"]
        lines.append(
            f"                    {gib(memory['without_model'])} without a model, {gib(memory['model_states'])} model "
            f"states, {gib(memory['working'])} working"
        )
    if "seconds_of" in plan:
        lines += [f"{name:20}{seconds:.0f} s" for name, seconds in plan["seconds_of"].items() if seconds]
    if plan.get("unmeasured"):
        lines.append(f"not in these        {', '.join(plan['unmeasured'])}: not done in time on this machine")
    lines.append(f"a run               {_spent(run)}")
    if run["num_workers"] > run.get("calibrated_workers", 1) and "scaling" not in run:
        lines.append(
            f"                    without the network between workers, which --workers {run['num_workers']} adds"
        )
    if "command_seconds" in run:
        parts = {
            "start-up": run["startup_seconds"],
            "baseline": run["baseline_seconds"],
            "export": run["export_seconds"],
            "evaluation": run["evaluation_seconds"],
        }
        spent = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in parts.items() if seconds)
        lines.append(f"the whole command   {_duration(run['command_seconds'])}: {spent}, and the run")
    if "num_trials" in plan:
        lines.append(
            f"the sweep           {_spent(plan)}: {plan['num_trials']} trials, {plan['concurrent']} at a time, "
            f"{plan['expected_share']:.0%} of their steps"
        )
    return "\n".join(lines + (_scaling_lines(run) if "scaling" in run else []))


def _scaling_lines(plan: Mapping[str, Any]) -> list[str]:
    """The forecast on other numbers of workers, a line each."""
    rows, network = plan["scaling"], plan["network"]
    most = rows[-1]
    lines = [
        "",
        f"{network['bandwidth'] * 8 / 1e9:.3g} Gbit/s and {network['latency'] * 1e6:.0f} microseconds a message "
        f"between workers, by {'NCCL' if network['is_nccl'] else 'gloo'}"
        + (" (two workers here exchange no more):" if network["is_held_up_here"] else ":"),
        "workers  tasks  seconds a step (computing + waiting + network)   tokens/s  efficiency  the run     cost",
    ]
    lines += [
        f"{row['workers']:7}{row['meta_batch_size']:7}{row['seconds_per_step']:16.3f} ({row['computing']:9.3f} + "
        f"{row['waiting']:7.3f} + {row['exchanging']:7.3f}){row['tokens_per_second']:11.0f}{row['efficiency']:12.0%}"
        f"{_duration(row['wall_seconds']):>9}{row['cost']:9.2f}"
        for row in rows
    ]
    if most["workers"] > plan["meta_batch_size"]:
        lines.append(
            f"with more than {plan['meta_batch_size']} workers meta.meta_batch_size has to grow, as it does here"
        )
    if "dry_run" in plan:
        lines.append(
            f"one of {most['workers']} workers, tried out: {gib(plan['dry_run'])}, by formula "
            f"{gib(most['peak_memory_bytes'])}"
        )
    return lines


def _run(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    return plan.get("run", plan)


def _spent(plan: Mapping[str, Any]) -> str:
    return (
        f"{_duration(plan['wall_seconds'])}, {plan['worker_seconds'] / 3600:.3g} worker-hours, "
        f"{plan['cost']:.2f} {plan['currency']}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
