"""Which failures of workers a new attempt can mend, and how they are told. Light: Ray's controller loads it too."""

import errno
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from distmeta.cluster.nodes import lost_nodes
from distmeta.errors import UserError
from distmeta.train.events import note
from distmeta.train.restart import StartAgain

_CONNECTION = re.compile("gloo|nccl|connection|socket|broken pipe|timed ?out|unavailable|cuda error", re.IGNORECASE)
"""What is in messages about a worker, a network or a device that is not there any more."""

_PEER = re.compile(r"Connection closed by peer \[([\d.a-f:]+)\]")
"""What gloo says of a worker that is gone, before Ray knows it."""

_LASTING = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
}
"""Faults of a file system that a new attempt meets again."""


NAMED = 4
"""Lost workers that are named in a line; of more the rest is counted."""


class WorkerStalled(Exception):
    """A worker that stands still while the others wait for it, which is as good as lost.

    Args:
        line: which, since when and where.
    """


_DEATHS = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError, WorkerStalled)


class SureFailure(Exception):
    """An exception out of a worker's own code, which a new attempt would end by as well.

    Args:
        line: the exception in a line.
        details: its traceback.
    """

    def __init__(self, line: str, details: str) -> None:
        super().__init__(line, details)
        self.line, self.details = line, details

    def __str__(self) -> str:
        return self.line


def told_apart(work: Callable[[], Any]) -> Any:
    """Does a worker's work; turns what it raises into a `SureFailure`, unless a new attempt may do without it.

    What only says that another worker, a connection or a storage is not there, is left as it is, and so is `UserError`,
    which is as sure a failure, but has been told apart already.
    """
    try:
        return work()
    except Exception as error:
        if isinstance(error, UserError | StartAgain) or may_pass(error):
            raise
        line = (str(error).strip().splitlines() or [""])[0]
        raise SureFailure(f"{type(error).__name__}: {line}".rstrip(": "), traceback.format_exc()) from None


def may_pass(error: BaseException) -> bool:
    """Whether the exception tells of something outside of the worker that may be otherwise the next time."""
    import torch
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, RayError | RayTrainError | torch.distributed.DistError):
        return True
    if isinstance(error, OSError):
        return error.errno not in _LASTING
    return isinstance(error, RuntimeError) and bool(_CONNECTION.search(str(error)))


class Failures(DefaultFailurePolicy):
    """Starts the workers again after a loss, `train.max_failures` times, and never after a sure failure. Notes each
    loss for the driver to tell and the user to look up. Runs in Ray's controller.

    A node that is lost is not counted, as Ray counts none that it was told of before: it comes of no fault of the run,
    and one of many nodes is lost often. Where too few are left, `Scaling` waits, and that has a limit of its own.

    Args:
        failure_config: Ray's.
        path: the file of events.
    """

    def __init__(self, failure_config: Any, path: Path) -> None:
        super().__init__(failure_config)
        self._path = path
        self._lost_nodes = set(lost_nodes()) if ray.is_initialized() else set()

    def _is_retryable_error(self, training_failed_error: Any) -> bool:
        # A storage that fails under the controller fails under the workers too, which wait for it when they start.
        return super()._is_retryable_error(training_failed_error) or _is_of_storage(training_failed_error)

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Whether to start the workers again."""
        failures = getattr(training_failed_error, "worker_failures", {})
        if sure := sure_failure(failures):
            rank, error = sure
            if isinstance(error, SureFailure):
                note(self._path, rank, f"worker {rank} failed: {error}", error.details, tell=False)
            return FailureDecision.RAISE
        if not _lost(failures) and any(isinstance(error, StartAgain) for error in failures.values()):
            return FailureDecision.RETRY  # which was asked for, and has been told
        text = describe(training_failed_error)
        gone = self._newly_lost() if failures else []
        is_counted = not gone and not any(_node_is_gone(error) for error in failures.values())
        decision = super().make_decision(training_failed_error) if is_counted else FailureDecision.RETRY
        if gone and not _lost(failures):  # which is known before the loss of its workers is
            text = f"the node {' and '.join(gone)} does not answer"
        if decision is FailureDecision.RETRY:
            allowed = self.failure_config.max_failures
            count = f" (loss {self._worker_group_failures} of {allowed} that train.max_failures allows)"
            is_counted &= bool(failures) and allowed >= 0 and self._worker_group_failures > 0
            text += f"; all workers are started again{count if is_counted else ''}"
        # Else the driver says it at the end.
        is_over = decision is not FailureDecision.RETRY
        rank = min(_lost(failures) or failures, default=0)
        note(self._path, rank, text, str(training_failed_error), tell=not is_over)
        return decision

    def _newly_lost(self) -> list[str]:
        """Addresses of the nodes that were lost since this was asked the last time."""
        lost = lost_nodes() if ray.is_initialized() else {}
        gone = sorted(address for node, address in lost.items() if node not in self._lost_nodes)
        self._lost_nodes |= lost.keys()
        return gone


def sure_failure(failures: Mapping[int, BaseException]) -> tuple[int, BaseException] | None:
    """The rank and the exception of a failure that no new attempt can mend. None: there is no such one, or a worker was
    lost besides, which others' failures may come of."""
    if _lost(failures):
        return None
    sure = ((rank, error) for rank, error in failures.items() if isinstance(error, UserError | SureFailure))
    return next(sure, None)


def describe(error: Any) -> str:
    """A failure of training as a line."""
    failures = getattr(error, "worker_failures", {})
    if lost := _lost(failures):
        named = [describe_loss(f"worker {rank}", failures[rank]) for rank in lost[:NAMED]]
        others = [f"and {len(lost) - NAMED} more workers"] if len(lost) > NAMED else []
        return "; ".join([*named, *others])
    if failures:
        rank, cause = next(iter(failures.items()))
        if peer := _PEER.search(str(cause)):
            return f"worker {rank} lost its connection to the worker on node {peer[1]}"
        return f"worker {rank} failed: {_last_line(cause)}"
    if ranks := getattr(getattr(error, "preemption_info", None), "preempted_ranks", None):
        names = ", ".join(str(rank) for rank in sorted(ranks))
        return f"worker {names} was lost: its node was taken away"
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return f"{cause.num_workers} workers did not start in time: the cluster has no room for them now, or is slow"
    what = "the storage of the checkpoints failed" if _is_of_storage(error) else "the workers could not be kept going"
    return f"{what}: {_last_line(cause)}"


def _is_of_storage(error: Any) -> bool:
    return isinstance(getattr(error, "controller_failure", None), OSError)


def _lost(failures: Mapping[int, BaseException]) -> list[int]:
    """The ranks of the workers whose processes are gone; what the others failed by came of that."""
    return sorted(rank for rank, error in failures.items() if isinstance(error, _DEATHS))


def describe_loss(who: str, error: BaseException) -> str:
    """The loss of a process that Ray tells of in many lines, as one."""
    text = str(error)
    if isinstance(error, WorkerStalled):
        return text
    process, node = re.search(r"\bpid: ?(\d+)", text), re.search(r"\bip: ?([\w.:]+)", text)
    parts = [f"process {process[1]}"] if process else []
    parts += [f"on node {node[1]}"] if node else []
    where = f" ({' '.join(parts)})" if parts else ""
    return f"{who} was lost{where}: {_cause(error, text)}"


def _cause(error: BaseException, text: str) -> str:
    """Why a process is gone, as far as Ray knows."""
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return "it does not answer"
    failure = getattr(error, "health_check_failure", error)
    if isinstance(failure, ActorUnavailableError):
        return "it cannot be reached"
    if getattr(failure, "preempted", False):
        return "its node was taken away, as was announced"
    if "running low on memory" in text:
        return "Ray ended its process, since the node was running out of memory"
    if _node_is_gone(error):
        return "its node is gone"
    if "serializ" in text:
        return _last_line(error)
    return "its process ended without a word, as one that is killed, is out of memory or has crashed"


def _node_is_gone(error: BaseException) -> bool:
    if getattr(getattr(error, "health_check_failure", error), "preempted", False):
        return True
    return bool(re.search(r"node (has )?died|node was terminated|node.{0,80}(dead|terminated)", str(error), re.I))


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
