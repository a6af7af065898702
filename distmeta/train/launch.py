"""Training on Ray Train: workers, storage of checkpoints, retries, and an orderly end on a signal."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from tqdm import tqdm

from distmeta.cluster.connect import workers_of
from distmeta.config import Config
from distmeta.errors import Interrupted, UserError
from distmeta.rundir import RunDirectory
from distmeta.signals import stop_on_signal
from distmeta.store.folders import Lent, carry, folder_on_worker, given
from distmeta.tracking import wandb_environment
from distmeta.tracking.metrics import MetricsTail
from distmeta.train.checkpoint_folder import CheckpointFolder
from distmeta.train.events import EventsTail, NoteWarnings
from distmeta.train.failures import Failures, SureFailure, describe, sure_failure, told_apart
from distmeta.train.network import NodeNetwork
from distmeta.train.outcome import is_over
from distmeta.train.patience import patiently
from distmeta.train.restart import StartAgain, StoppedWaiting, is_asked
from distmeta.train.scaling import Scaling
from distmeta.train.storage import CHECKPOINTS, local_copy, newest_checkpoint, storage_path
from distmeta.train.watchdog import watchdogs

FIRST_STEP = 5.0
"""Seconds after a signal in which workers that have not yet done a step may do one; then there is nothing to keep."""


class TrainingRun:
    """A run on the cluster that Ray is connected to, under way in a thread from its newest good checkpoint, if any.

    Ray Train itself would hold the thread that starts it, and take SIGINT for itself and leave no checkpoint.

    Raises:
        UserError: the cluster has too few GPUs for the workers.
    """

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._run = run
        self._result: ray.train.Result | None = None
        self._error: BaseException | None = None
        run.stop_request.unlink(missing_ok=True)
        (each, most), train = workers_of(config), config.train
        self._lent = Lent(run.path)
        self._trainer = _Trainer(
            run,
            train.wait_for_nodes,
            _train_worker,
            train_loop_config={
                "config": config.model_dump(),
                "run": given(run.path),
                "owner": self._lent.owner,
                "use_gpu": "GPU" in each,
                "launched": time.time(),
                "wandb": wandb_environment.environment(),
            },
            torch_config=NodeNetwork(events=run.events),
            scaling_config=ScalingConfig(
                num_workers=(train.fewest_workers, most),  # type: ignore[arg-type]  # of Train V2
                use_gpu="GPU" in each,
                resources_per_worker=each,
            ),
            run_config=RunConfig(
                name=CHECKPOINTS,
                storage_path=storage_path(config, run),
                failure_config=FailureConfig(max_failures=config.train.max_failures),
                callbacks=watchdogs(config.train.wait_for_worker, run.events),
            ),
        )
        self._thread = threading.Thread(target=self._fit, daemon=True, name="distmeta-fit")
        self._thread.start()

    def is_over(self, wait: float = 0.0) -> bool:
        """Whether it has come to its end, after `wait` seconds at most; then all that it has left is there."""
        self._thread.join(wait)
        if self._thread.is_alive():
            return False
        self._lent.end()
        return True

    def request_stop(self) -> None:
        """Asks the workers to leave a checkpoint after the step that they are in, and end."""
        self._run.stop_request.touch()

    def progress(self) -> dict[str, Any]:
        """What `distmeta.train.loop.train` returned, once the run is over.

        Raises:
            UserError: the settings cannot work, or workers were lost more than `train.max_failures` times.
        """
        self._run.stop_request.unlink(missing_ok=True)
        if self._error is not None:
            raise _explain(self._error, self._run)
        assert self._result is not None
        return self._result.return_value  # type: ignore[attr-defined]  # of Train V2

    def _fit(self) -> None:
        try:
            self._result = self._trainer.fit()
        except BaseException as error:
            self._error = error


class _Trainer(TorchTrainer):
    """Ray's trainer without helper processes that these runs have no use for: at each start they cost a third of what
    the worker itself costs. And it starts workers again only where that may help, as many as there is room for."""

    def __init__(self, run: RunDirectory, wait_for_nodes: float, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._run, self._wait_for_nodes = run, wait_for_nodes

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        run = self._run
        options["failure_policy"] = Failures(self.run_config.failure_config, run.events)
        options["scaling_policy"] = Scaling(self.scaling_config, run.events, run.stop_request, self._wait_for_nodes)
        return super()._initialize_and_run_controller(**options)  # type: ignore[misc]  # of Train V2

    def _create_default_callbacks(self) -> list[Any]:
        # Tasks are read from files, not from Ray Data. Placement groups end with the controller that made them.
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        every = super()._create_default_callbacks()  # type: ignore[misc]  # of Train V2
        return [callback for callback in every if not isinstance(callback, unused)]


def launch(config: Config, run: RunDirectory, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains to the end, with a progress bar. The first signal (see `distmeta.signals`) asks for a checkpoint and the
    end of the run; where no step is done yet there is nothing to keep, and it ends without.

    Returns the progress of `distmeta.train.loop.train`.

    Raises:
        UserError: the settings cannot work, workers were lost more than `train.max_failures` times, or the cluster was.
        Interrupted: a signal ended the run.
    """
    with _Progress(config, run, say) as shown:
        training = TrainingRun(config, run)
        with stop_on_signal(training.request_stop, "leaving a checkpoint after this step", say) as stopped:
            left = FIRST_STEP
            while not training.is_over(wait=0.3):
                shown.update()
                left -= 0.3 if stopped.is_set() else 0.0
                if not shown.has_stepped and left < 0:
                    run.stop_request.unlink(missing_ok=True)
                    raise Interrupted("stopped before an outer step was done; --resume goes on from where it began")
    try:
        progress = training.progress()
    except StoppedWaiting as error:
        raise Interrupted(str(error)) from None
    except RayError as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"training ended with the process of Ray's that led it: {line}\n"
            "see whether the cluster is well; --resume goes on from the newest checkpoint"
        ) from None
    if stopped.is_set() and "diverged" not in progress:
        raise Interrupted(f"stopped after outer step {progress['outer_step']}; --resume goes on from there")
    return progress


def _explain(error: BaseException, run: RunDirectory) -> BaseException:
    """What training ended with, as the user can use it."""
    if not isinstance(error, ray.train.TrainingFailedError):
        return error
    cause = getattr(error, "controller_failure", None)
    if isinstance(cause, UserError):
        return cause
    if sure := sure_failure(getattr(error, "worker_failures", {})):
        rank, cause = sure
        if isinstance(cause, SureFailure):
            return UserError(
                f"training was given up: worker {rank} failed, as it would again: {cause}\n"
                f"the traceback is in {run.events}"
            )
        return cause
    return UserError(
        f"training was given up: {describe(error)}\nsee {run.events}; --resume goes on from the newest checkpoint"
    )


def _train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Runs in each worker process."""
    rank = ray.train.get_context().get_world_rank()

    def work() -> dict[str, Any]:
        with folder_on_worker(settings["run"], rank, settings["owner"]) as folder:
            return _train(settings, RunDirectory(folder))

    return told_apart(work)


def _train(settings: dict[str, Any], run: RunDirectory) -> dict[str, Any]:
    # Here, so that the driver of a trial need not load what only its workers need.
    from distmeta.train.loop import Worker, train

    config, context = Config.model_validate(settings["config"]), ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    logging.getLogger("distmeta").addHandler(NoteWarnings(run.worker_events(rank), rank))
    wandb_environment.prepare_environment(settings["wandb"])
    device = ray.train.torch.get_device() if settings["use_gpu"] else torch.device("cpu")
    torch.set_num_threads(max(1, round(config.train.cpus_per_worker)))

    # One worker looks for the checkpoint, so that all go on from the same one. The name of the attempt keeps a
    # checkpoint that is made again apart from one that is there and damaged.
    decided: list[Any] = [None, None]
    limit = config.train.wait_for_storage
    if rank == 0:
        found = patiently(lambda: newest_checkpoint(config, run), "the newest checkpoint cannot be read", limit)
        decided = [found and str(found[1]), secrets.token_hex(3)]
    if world_size > 1:
        torch.distributed.broadcast_object_list(decided)
    path, attempt = decided

    def newest() -> Path | None:
        return path and patiently(lambda: local_copy(config, run, path), f"{path} cannot be read", limit)

    filesystem, folder = pyarrow.fs.FileSystem.from_uri(storage_path(config, run))
    to = CheckpointFolder(
        filesystem,
        f"{folder}/{CHECKPOINTS}",
        config.train.checkpoints_to_keep,
        f"-{attempt}",
        lambda: carry(run.path),
        run.has_checkpoint.touch,
        limit,
    )
    worker = Worker(rank, world_size, device, newest, to, settings["launched"], is_asked)
    progress = train(config, run, worker)
    if is_asked() and not is_over(progress, config.train) and not run.stop_request.exists():
        raise StartAgain
    return progress


class _Progress:
    """A progress bar on a terminal, a plain line now and then elsewhere, fed from the metrics file."""

    def __init__(self, config: Config, run: RunDirectory, say: Callable[[str], None]) -> None:
        self._tail, self._events = MetricsTail(run.metrics), EventsTail(run)
        for each in (self._tail, self._events):
            each.new()  # what was there before is no news
        self._say = say
        self._last_step = 0
        self.has_stepped = False
        self._bar = tqdm(total=config.train.outer_steps, unit="step", desc="meta-pretraining", disable=None)
        self._every = max(1, config.train.outer_steps // 10)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        self._bar.close()

    def update(self) -> None:
        """Shows what has come since the last call."""
        for event in self._events.new():
            if event.get("tell", True):
                self._say(event["text"])
        for row in self._tail.new():
            step, self.has_stepped = row["outer_step"], True
            if step != self._last_step + 1:
                where = f"going on from the checkpoint of outer step {step - 1}"
                self._say(where if step > 1 else "beginning again: there was no checkpoint yet")
            self._last_step = step
            text = _describe(row)
            self._bar.n = step
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.refresh()
            if self._bar.disable and (step % self._every == 0 or step == 1):
                self._say(f"step {step}/{self._bar.total} | {text}")


def _describe(row: dict[str, Any]) -> str:
    parts = []
    if "training/query_loss" in row:
        parts.append(f"query loss {row['training/query_loss']:.3f}, accuracy {row['training/query_accuracy']:.0%}")
    if "training/lm_loss" in row:
        parts.append(f"lm loss {row['training/lm_loss']:.3f}")
    return " | ".join([*parts, f"lr {row['training/outer_lr']:.2e}", f"{row['time/tokens_per_second']:.0f} tok/s"])
