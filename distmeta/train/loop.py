"""The training loop that every worker runs, from top to bottom in the order in which things happen.

It needs torch.distributed where there are several workers, and nothing of Ray: a launcher gives it a `Worker`.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from distmeta.allocator import freed_at_once
from distmeta.config import Config
from distmeta.engine.checkpoint import read_checkpoint
from distmeta.engine.precision import set_up_arithmetic
from distmeta.meta import Learner
from distmeta.meta.config import MetaConfig
from distmeta.models import Network
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.tensors import read_tensors
from distmeta.tracking.cost import FlopCounter, StepTokens, run_summary
from distmeta.tracking.machine_use import MachineUse
from distmeta.train.best import Best
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.checkpoints import Checkpoints
from distmeta.train.choose import Chooser
from distmeta.train.phases import OWN_PHASES, PHASES, STEP_PHASES, PhaseClock, Totals
from distmeta.train.pulse import PULSE
from distmeta.train.record import Recorder
from distmeta.train.stepper import Partitioned, Whole
from distmeta.train.validate import Validator
from distmeta.train.work import WorkSource

logger = logging.getLogger(__name__)

TOTALS = ("flops", "wall_seconds", "worker_seconds", "energy_kwh")
"""What a row of the metrics says of all steps so far, behind `cost/`."""


JOULES_OF_A_KWH = 3.6e6


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together, as its launcher describes it."""

    rank: int
    world_size: int
    device: torch.device
    newest_checkpoint: Callable[[], Path | None]
    """Local folder of the newest good checkpoint, the same one on every worker, whose digests were just seen to be
    right; None: begin at step 0."""
    checkpoints: CheckpointFolder
    """Where checkpoints go, of all workers."""
    launched: float = field(default_factory=time.time)
    """Time at which the run was asked for (seconds since 1970)."""
    is_to_end: Callable[[], bool] = lambda: False
    """Whether a checkpoint and the end are asked for, as by the run directory's stop request."""


def learning_rate(config: MetaConfig, step: int, outer_steps: int) -> float:
    """The outer learning rate of step number `step` (from 0): linear warm-up, then constant, linear or cosine to 0."""
    warmup = config.warmup_ratio * outer_steps
    if step + 1 <= warmup:
        return config.outer_lr * (step + 1) / warmup
    progress = (step - warmup) / max(outer_steps - warmup, 1)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return config.outer_lr * factor[config.schedule]


def train(config: Config, run: RunDirectory, worker: Worker) -> dict[str, Any]:
    """Trains to `train.outer_steps`, or until validations show that it may end, or a stop is requested.

    Leaves metrics, checkpoints and the best weights in the run directory and the storage. Returns the progress, as the
    last checkpoint has it: `outer_step`, `best_step`, `best_score`, `best_score_ci95` and `best_start_share` of the
    network that is kept, `candidates` among which it was chosen at the end, `ended_early` only where the run did (see
    `Chooser`), `startup_seconds` from the launch to the first step, `peak_memory_bytes` of the largest worker, totals
    of `flops`, `tokens`, `lm_tokens`, `wall_seconds`, `worker_seconds` and `phase_seconds` (see `PhaseClock`; mean over
    the workers, of validation and checkpoint the main worker's), of `energy_kwh` where the devices tell, those before a
    resume included, `diverged`, a line of text, only where it did, and `unvalidated` where a stop was asked for before
    the last step was validated, which is made good when the run goes on.
    """
    config.engine.precision = set_up_arithmetic(config.engine.precision, worker.device)
    with freed_at_once():
        checkpoint = worker.newest_checkpoint()
        found = read_checkpoint(checkpoint, has_digests_right=True) if checkpoint else (None, {}, {})
        state, reached, extra = found
        progress = _beginning() | reached
        unvalidated = progress.pop("unvalidated", None)  # the row of a step whose validation a signal cut off
        setup = Setup(config, run)
        partitioned = config.engine.weights == "partitioned"
        # The first worker makes weights that no worker can hold, and gives each its part of them.
        is_empty = partitioned and worker.rank > 0
        network = setup.network(empty=is_empty)
        if worker.rank == 0:
            say_computation(config, network)
        flop_counter = FlopCounter.of(network, config.meta)  # while it has its weights
        skeleton = network.skeleton().train()
        if not is_empty:  # else it has no numbers, and is never run
            skeleton.to(worker.device)
        learner = Learner(
            skeleton,
            config.meta,
            config.engine.precision,
            config.train.seed,
            config.engine.tasks_at_a_time,
            records=config.engine.cuda_graphs,
        )
        make_stepper = Partitioned if partitioned else Whole
        stepper: Whole | Partitioned = make_stepper(setup, network, learner, worker.device, state)
        del state  # the engine has its shard of it
    engine = stepper.engine
    work_source = WorkSource(setup, worker.device, worker.rank, worker.world_size)
    validator = (
        Validator(setup, skeleton, learner.algorithm, worker.rank, worker.world_size, worker.device)
        if config.train.validates
        else None
    )
    is_main = worker.rank == 0
    before = progress["outer_step"] - (unvalidated is not None)
    kind = network.base.config.model_type
    recorder = Recorder(config, run, before, setup.manifest.figures(), kind) if is_main else None
    best = Best(run, progress, extra, is_main)
    chooser = Chooser(config, run, stepper, validator, recorder, best, progress)
    totals = Totals(progress, worker.world_size)
    checkpoints = Checkpoints(worker.checkpoints, engine, worker.rank, worker.world_size)
    machine = MachineUse(worker.device, worker.world_size, is_main=is_main)

    def is_to_end() -> bool:
        return run.stop_request.exists() or worker.is_to_end()

    def validate(outer_step: int, is_stopping: Callable[[], bool]) -> dict[str, float] | None:
        PULSE.at(f"the validation after outer step {outer_step}")
        scores = chooser.validate(outer_step, is_stopping)
        totals.count("validation")
        return scores

    progress.setdefault("startup_seconds", time.time() - worker.launched)
    if config.meta.keep_similarity:
        learner.keep(_starting_weights(run, stepper, progress["outer_step"], worker.device))
    # Before a step is done there is nothing that a stop could keep: whoever asks for one ends the processes.
    if progress["outer_step"] == 0:
        validate(0, lambda: False)  # the network as it was is a candidate
    elif unvalidated is not None:
        scores = validate(progress["outer_step"], lambda: False)
        if recorder:
            recorder.step(unvalidated | (scores or {}) | _totals(progress))
    is_whole = True
    for step in () if chooser.ended_early else range(progress["outer_step"], config.train.outer_steps):
        PULSE.at(f"outer step {step + 1}", is_step=True)
        clock = PhaseClock()
        work = work_source.take(step)
        clock.mark("data")
        rate = learning_rate(config.meta, step, config.train.outer_steps)
        norm, metrics = stepper.step(work, rate, step / config.train.outer_steps, clock)
        PULSE.worked(sum(clock.seconds.get(phase, 0.0) for phase in OWN_PHASES))
        metrics["stop"] = float(is_main and is_to_end())
        metrics["look"] = float(machine.is_due)
        metrics["written"] = float(checkpoints.is_written)
        metrics |= {f"seconds/{phase}": spent / worker.world_size for phase, spent in clock.seconds.items()}
        started = time.perf_counter()
        metrics = _sum_over_workers(metrics, worker)
        metrics["seconds/communication"] += time.perf_counter() - started
        seconds = time.perf_counter() - clock.started

        outer_step = step + 1
        is_stopping, is_due = metrics.pop("stop") > 0, metrics.pop("look") > 0
        if metrics.pop("written") == worker.world_size:
            checkpoints.commit()
        row = _row(outer_step, metrics, norm, rate, seconds, config.meta)
        row["training/clip_factor"] = engine.clip_factor
        progress["outer_step"] = outer_step
        progress["tokens"] += row["training/tokens"]
        progress["lm_tokens"] += int(metrics.get("lm_tokens", 0))
        progress["flops"] += flop_counter.step(step_tokens(metrics))
        totals.count({phase: metrics[f"seconds/{phase}"] for phase in STEP_PHASES})
        if is_due:
            seen, joules = machine.look()
            row |= seen
            if joules:
                progress["energy_kwh"] = progress.get("energy_kwh", 0.0) + joules / JOULES_OF_A_KWH
        diverged, is_whole = _divergence(row, config.train.max_loss), True
        if diverged:
            progress["diverged"] = diverged
        elif chooser.is_due(outer_step):
            # What is cut off, or not begun, is made good when the run goes on.
            scores = None if is_stopping else validate(outer_step, is_to_end)
            is_whole, is_stopping = scores is not None, scores is None
            row |= scores or {}
        row |= _totals(progress)
        if recorder:
            recorder.step(row, is_whole=is_whole)
        if diverged:
            break
        is_last = outer_step == config.train.outer_steps or chooser.ended_early is not None
        if is_last or is_stopping or outer_step % config.train.checkpoint_every == 0:
            PULSE.at(f"the checkpoint of outer step {outer_step}")
            progress["peak_memory_bytes"] = max(progress["peak_memory_bytes"], _peak_memory(worker))
            left = {} if is_whole else {"unvalidated": row}
            with freed_at_once():
                checkpoints.begin(progress | chooser.progress | left, best.files())
            if is_last or is_stopping:
                checkpoints.finish()
            totals.count("checkpoint")
        if is_last or is_stopping:
            break

    PULSE.at("the end")
    progress |= chooser.progress
    progress["peak_memory_bytes"] = max(progress["peak_memory_bytes"], _peak_memory(worker))
    if recorder:
        recorder.finish(run_summary(progress, config.tracking))
    checkpoints.close()
    work_source.close()
    engine.close()
    return progress if is_whole else progress | {"unvalidated": True}


def _starting_weights(
    run: RunDirectory, stepper: Whole | Partitioned, outer_step: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """A copy of the weights that the run began with."""
    if outer_step:
        return {name: value.to(device) for name, value in read_tensors(run.starting_weights).items()}
    with stepper.weights() as parameters:
        return {name: value.clone() for name, value in parameters.items()}


def say_computation(config: Config, network: Network) -> None:
    """Says how texts, and tasks, go together where that was left to the software, and what the weights are like."""
    for remark in network.remarks:
        logger.warning("model: %s", remark)
    said = []
    if config.engine.computation == "auto":
        since = f" for {network.base.config.model_type}: {network.fallback_reason}" if network.fallback_reason else ""
        said.append(f"auto takes {network.computation}{since}")
    is_one = config.engine.tasks_at_a_time == 1 or config.engine.weights == "partitioned"
    if network.computation == "packed" and not network.separates_tasks and not is_one:
        said.append("tasks go one at a time, since the model's layers do not keep their weights apart")
    elif network.computation != "packed" and (config.engine.tasks_at_a_time or 1) > 1:
        said.append("tasks do not go side by side, as engine.tasks_at_a_time asks for")
    if said:
        logger.warning("engine.computation: %s", "; ".join(said))


def _beginning() -> dict[str, Any]:
    """The progress of a run that has not begun."""
    return {
        "outer_step": 0,
        "wall_seconds": 0.0,
        "worker_seconds": 0.0,
        "tokens": 0,
        "lm_tokens": 0,
        "flops": 0.0,
        "phase_seconds": dict.fromkeys(PHASES, 0.0),
        "peak_memory_bytes": 0,
    }


def _totals(progress: Mapping[str, Any]) -> dict[str, float]:
    return {f"cost/{key}": progress[key] for key in TOTALS if key in progress}


def _divergence(row: Mapping[str, Any], max_loss: float) -> str | None:
    """What shows that a run has diverged, as a line of text; the same on every worker."""
    for key in ("query_loss", "lm_loss", "grad_norm"):
        value = row.get(f"training/{key}", 0.0)
        if not math.isfinite(value) or (key != "grad_norm" and value > max_loss):
            return f"{key.replace('_', ' ')} {value:.4g} at outer step {row['outer_step']}"
    return None


def _peak_memory(worker: Worker) -> int:
    """Largest memory that a worker's process (on a GPU: its tensors) ever held, over all workers (bytes)."""
    if worker.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(worker.device)
    else:
        # Not `resource.getrusage`, which begins with the memory of the process that started this one.
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        peak = int(line.split()[1]) * 1024
    value = torch.tensor(peak, dtype=torch.int64, device=worker.device)
    if worker.world_size > 1:
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)


def _sum_over_workers(metrics: dict[str, float], worker: Worker) -> dict[str, float]:
    """Adds up each metric; every worker has the same ones, since each has a task of every meta-batch."""
    if worker.world_size == 1:
        return metrics
    names = sorted(metrics)
    values = torch.tensor([metrics[name] for name in names], dtype=torch.float64, device=worker.device)
    torch.distributed.all_reduce(values)
    return dict(zip(names, values.tolist(), strict=True))


def step_tokens(metrics: Mapping[str, float]) -> StepTokens:
    """The counts among the metrics of an outer step, summed over the workers."""

    def count(name: str) -> int:
        return int(metrics.get(name, 0))

    return StepTokens(
        support=count("support_tokens"),
        support_texts=count("support_texts"),
        query=count("query_tokens"),
        query_texts=count("query_texts"),
        lm=count("lm_tokens"),
        lm_texts=count("lm_texts"),
        lm_predictions=count("lm_predictions"),
        tasks=count("tasks"),
    )


def _row(
    outer_step: int, metrics: dict[str, float], norm: float, rate: float, seconds: float, config: MetaConfig
) -> dict[str, Any]:
    """The metrics of an outer step as they are written down, in sections, which are W&B's too; what a warm-up step does
    not have is absent."""
    row: dict[str, Any] = {"outer_step": outer_step}
    inner_steps = config.inner_steps
    if "query_loss" in metrics:
        keys = ("query_loss", "query_accuracy", "query_accuracy_before")
        row |= {f"training/{key}": metrics[key] for key in keys if key in metrics}
        if "support_loss/0" in metrics:
            row["training/support_loss"] = [metrics[f"support_loss/{step}"] for step in range(inner_steps)]
        row["time/tasks_per_second"] = config.meta_batch_size / seconds
        row["training/inner_lr"] = config.inner_lr
    if "lm_loss" in metrics:
        row["training/lm_loss"] = metrics["lm_loss"]
    tokens = (
        metrics.get("support_tokens", 0) * inner_steps + metrics.get("query_tokens", 0) + metrics.get("lm_tokens", 0)
    )
    return row | {
        "training/grad_norm": norm,
        "training/outer_lr": rate,
        "training/tokens": int(tokens),
        "time/tokens_per_second": tokens / seconds,
        "time/data_wait_fraction": metrics["seconds/data"] / seconds,
        "time/step": seconds,
        **{f"time/{phase}": metrics[f"seconds/{phase}"] for phase in STEP_PHASES},
    }
