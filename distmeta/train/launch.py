"""Training on Ray Train: workers, storage of checkpoints, retries, and an orderly end on a signal."""

import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from tqdm import tqdm

from distmeta.config import Config
from distmeta.engine.checkpoint import PREFIX, fetch_checkpoint, newest_good
from distmeta.errors import Interrupted, UserError
from distmeta.rundir import RunDirectory
from distmeta.tracking.metrics import MetricsTail
from distmeta.train.loop import Worker, train

CHECKPOINTS = "checkpoints"
"""Ray Train's name of the run, and so the folder of the checkpoints in the storage."""


def storage_path(config: Config, run: RunDirectory) -> str:
    """Where Ray Train keeps the folder `checkpoints`."""
    return f"{config.train.storage.rstrip('/')}/{run.path.name}" if config.train.storage else str(run.path)


def newest_checkpoint(config: Config, run: RunDirectory) -> tuple[pyarrow.fs.FileSystem, str] | None:
    """The newest good checkpoint in storage as (file system, path); None: there is none."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(f"{storage_path(config, run)}/{CHECKPOINTS}")
    name = newest_good(filesystem, path)
    return None if name is None else (filesystem, f"{path}/{name}")


def launch(config: Config, run: RunDirectory, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains on the cluster that Ray is connected to, from the newest good checkpoint if there is one.

    The first SIGINT or SIGTERM asks the workers to leave a checkpoint and end; a second one ends at once.

    Returns the progress of `distmeta.train.loop.train`.

    Raises:
        UserError: the settings cannot work, as a worker found out.
        Interrupted: a signal ended the run.
        ray.train.TrainingFailedError: workers were lost more than `train.max_failures` times.
    """
    run.stop_request.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _train_worker,  # type: ignore[arg-type]  # Ray's annotation forgets that it may return something
        train_loop_config={"config": config.model_dump(), "run": str(run.path)},
        scaling_config=ScalingConfig(
            num_workers=config.train.num_workers,
            use_gpu=_use_gpu(config),
            resources_per_worker={"CPU": config.train.cpus_per_worker} | ({"GPU": 1} if _use_gpu(config) else {}),
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=storage_path(config, run),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.train.checkpoints_to_keep),
            callbacks=[_WriteFailures(run.failures)],  # type: ignore[list-item]  # annotated as Tune's
        ),
    )
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:
            outcome["error"] = error

    # Not in the main thread: Ray Train would take SIGINT for itself and leave no checkpoint.
    thread = threading.Thread(target=fit, daemon=True, name="distmeta-fit")
    with _stop_on_signal(run, say) as stopped, _Progress(config, run, say) as progress:
        thread.start()
        while thread.is_alive():
            thread.join(0.3)
            progress.update()
    run.stop_request.unlink(missing_ok=True)
    if "error" in outcome:
        raise outcome["error"]
    returned = outcome["result"].return_value
    if "user_error" in returned:
        raise UserError(returned["user_error"])
    if stopped.is_set() and returned["outer_step"] < config.train.outer_steps:
        raise Interrupted(f"stopped after outer step {returned['outer_step']}; --resume goes on from there")
    return returned


def _use_gpu(config: Config) -> bool:
    gpus = ray.cluster_resources().get("GPU", 0)
    wanted = config.engine.device
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return False
    if gpus < config.train.num_workers:
        raise UserError(
            f"train.num_workers: {config.train.num_workers} workers need as many GPUs, the cluster has {gpus:g}: "
            "lower it, or set engine.device to cpu"
        )
    return True


def _train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Runs in each worker process."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config, run = Config.model_validate(settings["config"]), RunDirectory(Path(settings["run"]))
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(max(1, round(config.train.cpus_per_worker)))

    with tempfile.TemporaryDirectory(prefix="distmeta-resume-") as scratch:

        def newest() -> Path | None:
            # One worker looks, so that all go on from the same one.
            found = [newest_checkpoint(config, run)] if context.get_world_rank() == 0 else [None]
            if context.get_world_size() > 1:
                chosen = [found[0][1] if found[0] else None]
                torch.distributed.broadcast_object_list(chosen)
            else:
                chosen = [found[0][1] if found[0] else None]
            if chosen[0] is None:
                return None
            filesystem, _ = pyarrow.fs.FileSystem.from_uri(storage_path(config, run))
            return fetch_checkpoint(filesystem, chosen[0], Path(scratch))

        def store(outer_step: int, folder: Path | None) -> None:
            checkpoint = Checkpoint.from_directory(folder) if folder else None
            ray.train.report(
                {"outer_step": outer_step}, checkpoint=checkpoint, checkpoint_dir_name=f"{PREFIX}{outer_step:08d}"
            )

        worker = Worker(context.get_world_rank(), context.get_world_size(), device, newest, store)
        try:
            return train(config, run, worker)
        except UserError as error:
            # Returned, not raised: Ray Train would try again.
            return {"user_error": str(error)}


class _WriteFailures(UserCallback):
    """Notes what workers were lost to, for the driver to tell and the user to look up."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            for rank, error in worker_exceptions.items():
                lines = str(error).strip().splitlines() or [type(error).__name__]
                file.write(json.dumps({"time": time.time(), "rank": rank, "error": lines[-1], "details": lines}) + "\n")


class _Progress:
    """A progress bar on a terminal, a plain line now and then elsewhere, fed from the metrics file."""

    def __init__(self, config: Config, run: RunDirectory, say: Callable[[str], None]) -> None:
        self._tail, self._failures = MetricsTail(run.metrics), run.failures
        self._tail.new()  # what was there before is no news
        self._seen_failures = self._count_failures()
        self._say = say
        self._last_step = 0
        self._bar = tqdm(total=config.train.outer_steps, unit="step", desc="meta-pretraining", disable=None)
        self._every = max(1, config.train.outer_steps // 10)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        self._bar.close()

    def update(self) -> None:
        """Shows what has come since the last call."""
        for failure in self._new_failures():
            self._say(f"worker {failure['rank']} was lost ({failure['error']})")
        for row in self._tail.new():
            step = row["outer_step"]
            if step != self._last_step + 1:
                self._say(f"going on from the checkpoint of outer step {step - 1}")
            self._last_step = step
            text = _describe(row)
            self._bar.n = step
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.refresh()
            if self._bar.disable and (step % self._every == 0 or step == 1):
                self._say(f"step {step}/{self._bar.total} | {text}")

    def _count_failures(self) -> int:
        return len(self._failures.read_text().splitlines()) if self._failures.exists() else 0

    def _new_failures(self) -> Iterator[dict[str, Any]]:
        count = self._count_failures()
        if count > self._seen_failures:
            yield from map(json.loads, self._failures.read_text().splitlines()[self._seen_failures : count])
            self._seen_failures = count


def _describe(row: dict[str, Any]) -> str:
    parts = []
    if "query_loss" in row:
        parts.append(f"query loss {row['query_loss']:.3f}, accuracy {row['query_accuracy']:.0%}")
    if "lm_loss" in row:
        parts.append(f"lm loss {row['lm_loss']:.3f}")
    return " | ".join([*parts, f"lr {row['outer_lr']:.2e}", f"{row['tokens_per_second']:.0f} tok/s"])


@contextmanager
def _stop_on_signal(run: RunDirectory, say: Callable[[str], None]) -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a stop request, the next into KeyboardInterrupt."""
    stopped = threading.Event()

    def handle(number: int, _frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        run.stop_request.touch()
        say(f"{signal.Signals(number).name}: leaving a checkpoint after this step; once more ends at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
