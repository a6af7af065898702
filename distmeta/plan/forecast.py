"""The forecast of a run, and of a sweep of such runs: the content of `plan.json`."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any

from distmeta.config import Config
from distmeta.corpus.executor import LocalExecutor
from distmeta.errors import UserError
from distmeta.files import write_json
from distmeta.plan.memory import SIZES, Sizes, check_model_states_fit, memory_by_stage, on_gpu, states_of, worker_bytes
from distmeta.plan.projection import on_more_workers
from distmeta.plan.table import size_lines
from distmeta.plan.tokens import SAMPLE, differ_in_size, step_tokens, task_tokens
from distmeta.run_corpus import check_tasks, prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.tracking.cost import FlopCounter, run_cost
from distmeta.train.config import SHARES

if TYPE_CHECKING:
    from distmeta.plan.calibrate import Calibration


def make_plan(
    config: Config,
    run: RunDirectory,
    *,
    rate: float | None,
    say: Callable[[str], None],
    memory_bytes: float | None = None,
    workers: int | None = None,
    bandwidth: float | None = None,
) -> dict[str, Any]:
    """Forecasts a run of a resolved configuration, whose corpus is prepared where it is not yet.

    With `rate`, the floating-point operations a second of one worker, nothing is run: time is operations over rate, and
    memory is that of the model's states alone. Without, some steps are run and timed.

    Returns `parameters`, `trained_parameters`, `adapted_parameters`, `largest_module_parameters`; `flops_per_step` of
    steps with tasks, `flops_per_warmup_step`, `flops` of the run; `wall_seconds` as the run's summary counts them,
    `worker_seconds`, `cost` and `currency`; `peak_memory_bytes` of a worker and `memory_by_stage`, the same at each
    ZeRO stage, and with partitioned weights where the run could have them (bytes); `num_workers`, the most that it has,
    by which time goes, `fewest_workers`, by which memory goes, `meta_batch_size`,
    `zero_stage`, `weights` (whole or partitioned), `offload_optimizer`, `outer_steps`, `warmup_steps`.

    Where steps were run also `memory`, what the peak is made of (bytes): `without_model`, a process with its libraries;
    `model_states`, see `ModelStates`; `working`, the rest, taken to grow with the largest task where tasks differ in
    size. `calibrated_workers` that ran them; `seconds_of`, what the time was added up from; `startup_seconds`,
    `evaluation_seconds`, `export_seconds`, and `command_seconds`, all of them and the training together, but not what
    Ray needs to start and to end, nor the preparation of the corpus. Evaluation is measured on a few of its own
    episodes by the networks of the calibration. A language-model baseline, which trains for as many tokens, is taken to
    last as long as the steps, and a multi-task baseline, which has the same texts, steps and validations, as long as
    the run (`baseline_seconds`). `unmeasured` names what was not come to in time, and is in none of these numbers.

    With `workers`, also `scaling`, see `project`, `network` that it was made with, and where steps were run `dry_run`,
    the memory of one of so many workers as tried out (bytes).

    Args:
        config: the run.
        run: its directory.
        rate: see above.
        say: is told what is going on.
        memory_bytes: what a worker may use; unset: what this machine has.
        workers: the most that are of interest.
        bandwidth: between nodes (bytes a second); unset: as `network_between`.

    Raises:
        UserError: the settings cannot work, or the model's states alone are too large, which is found out first.
    """
    check_model_states_fit(config, memory_bytes)
    prepare_with(LocalExecutor(), config, run, say)
    check_tasks(config, run)
    setup = Setup(config, run)
    network = setup.network(empty=config.engine.weights == "partitioned")
    sizes = Sizes.of(network, config)
    counter = FlopCounter.of(network, config.meta)
    tasks, warmups = step_tokens(setup, with_tasks=True), step_tokens(setup, with_tasks=False)
    flops_per_step, flops_per_warmup_step = counter.step(tasks), counter.step(warmups)
    steps, warmup_steps = config.train.outer_steps, config.meta.lm_warmup_steps
    flops = flops_per_step * (steps - warmup_steps) + flops_per_warmup_step * warmup_steps
    own, fewest = config.train.most_workers, config.train.fewest_workers
    states = worker_bytes(config, states_of(config, sizes))
    plan: dict[str, Any] = {
        **dict(zip(SIZES, astuple(sizes), strict=True)),
        "num_workers": own,
        "fewest_workers": fewest,
        "meta_batch_size": config.meta.meta_batch_size,
        "zero_stage": config.engine.zero_stage,
        "weights": "partitioned" if config.engine.weights == "partitioned" else "whole",
        "offload_optimizer": config.engine.offload_optimizer,
        "outer_steps": steps,
        "warmup_steps": warmup_steps,
        "flops_per_step": flops_per_step,
        "flops_per_warmup_step": flops_per_warmup_step,
        "flops": flops,
    }
    other = 0.0
    if rate is not None:
        plan |= {"rate": rate, "wall_seconds": flops / (rate * own)}
    else:
        from distmeta.plan.calibrate import calibrate

        say("running some steps to see what they take (half a minute)")
        try:
            measured = calibrate(config, run)
        except UserError:
            by_formula = {"peak_memory_bytes": states, "memory_by_stage": memory_by_stage(config, sizes, fewest, 0.0)}
            say("\n".join(size_lines(plan | by_formula)))  # what there is
            raise
        longer, larger = _beside_measured(setup, measured)
        plan |= _time(config, replace(measured, task_step=measured.task_step * longer))
        plan["calibrated_workers"] = measured.workers
        calibrated = worker_bytes(config, states_of(config, sizes, workers=measured.workers), is_gpu=on_gpu(config))
        other = max(0.0, (measured.peak_memory or 0) - calibrated)
        without_model = min(other, measured.memory_without_model)
        other += (larger - 1) * (other - without_model)
        plan["memory"] = {"without_model": without_model, "model_states": states, "working": other - without_model}
    plan["peak_memory_bytes"] = states + other
    plan["memory_by_stage"] = memory_by_stage(config, sizes, fewest, other)
    plan["worker_seconds"] = plan["wall_seconds"] * own
    if workers is not None:
        tokens = (tasks.support * config.meta.inner_steps + tasks.query + tasks.lm) / config.meta.meta_batch_size
        plan |= on_more_workers(setup, run, network, plan, tokens, workers, bandwidth, say)
    return plan | run_cost(plan["worker_seconds"], config.tracking)


def _time(config: Config, measured: "Calibration") -> dict[str, Any]:
    """Seconds of a run and of the command around it, from those that were measured."""
    steps, warmup_steps = config.train.outer_steps, config.meta.lm_warmup_steps
    validations = 1 + math.ceil(steps / config.train.interval) if config.train.validates else 0
    if config.train.average_with_start == "auto":
        validations += 2 * len(SHARES)  # of the best network and of the last one
    seconds_of = {
        "warm-up steps": measured.warmup_step * warmup_steps,
        "steps with tasks": measured.task_step * (steps - warmup_steps),
        "validations": measured.validation * validations,
        "checkpoints": (measured.checkpoint or 0.0) * math.ceil(steps / config.train.checkpoint_every),
    }
    evaluation = (measured.first_episode or 0.0) + (measured.episode or 0.0) * (config.evaluate.episodes - 1)
    wall_seconds = sum(seconds_of.values())
    baselines = []
    if config.evaluate.language_model_baseline:
        baselines.append(seconds_of["warm-up steps"] + seconds_of["steps with tasks"])
    if config.evaluate.multitask_baseline:
        baselines.append(wall_seconds)
    networks = 2 + len(baselines)
    evaluation = evaluation / 2 * networks + (measured.similarity or 0.0) * networks
    evaluation += (measured.fine_tuned_episode or 0.0) * min(
        config.evaluate.fine_tuning_episodes, config.evaluate.episodes
    )
    baseline = sum(baselines) + measured.startup * len(baselines)
    return {
        "seconds_of": seconds_of,
        "wall_seconds": wall_seconds,
        "unmeasured": measured.unmeasured,
        "startup_seconds": measured.startup,
        "baseline_seconds": baseline,
        "export_seconds": measured.export or 0.0,
        "evaluation_seconds": evaluation,
        "command_seconds": measured.startup + wall_seconds + baseline + (measured.export or 0.0) + evaluation,
    }


def _beside_measured(setup: Setup, measured: "Calibration") -> tuple[float, float]:
    """Where tasks differ in size: how many times as long an average step of the run takes as those that were measured,
    and how many times as large its largest task is, by their tokens."""
    source = setup.tasks("train")
    if not differ_in_size(source):
        return 1.0, 1.0

    def tokens(first: int, count: int) -> list[int]:
        return [task_tokens(source, index, setup.config) for index in range(first, first + count)]

    count = measured.tasks_per_step
    steps = [tokens(step * count, count) for step in measured.steps]
    run = tokens(0, SAMPLE)
    longer = statistics.mean(run) * count / statistics.median(map(sum, steps))
    return longer, max(1.0, max(run) / max(map(max, steps)))


def sweep_totals(
    plan: Mapping[str, Any], *, num_trials: int, concurrent: int, expected_share: float, price: float
) -> dict[str, Any]:
    """The forecast of a sweep of such runs: `num_trials`, `concurrent` at a time, of which a scheduler leaves the
    `expected_share` of the steps; the run's own forecast is under `run`."""
    worker_seconds = plan["worker_seconds"] * num_trials * expected_share
    return {
        **plan,
        "run": dict(plan),
        "num_trials": num_trials,
        "concurrent": concurrent,
        "expected_share": expected_share,
        "wall_seconds": plan["wall_seconds"] * math.ceil(num_trials / concurrent) * expected_share,
        "worker_seconds": worker_seconds,
        "flops": plan["flops"] * num_trials * expected_share,
        "cost": worker_seconds / 3600 * price,
    }


def write_plan(plan: Mapping[str, Any], run: RunDirectory) -> None:
    """Keeps the forecast, for the report to set beside what happened."""
    write_json(run.plan, plan)
