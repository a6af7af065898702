"""Notices that the head node of a Ray cluster is gone while a command uses it, and waits for one that is started again:
Ray itself says nothing, and after a minute ends the process by a dump of its own."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distmeta.store.limits import limit

INTERVAL = 5.0
"""Seconds between two questions to the head node."""

ANSWER = 5.0
"""Seconds in which it has to answer one."""

TELL = 12.0
"""Seconds of a wait before it is told: a busy head node answers late."""

RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's own setting: the seconds after which its processes give up a head node that does not answer; 60 if unset."""

OWN = 20.0
"""Seconds after which the head node of a cluster that this command has started counts as gone: a busy one answers late,
and none starts it again."""


def patience_with_named() -> float:
    """Seconds for which the head node of another's cluster may be away, as it is while it is started again: some less
    than Ray itself waits.

    Raises:
        UserError: that is no number.
    """
    return max(OWN, limit(RECONNECT, 60, "seconds") - 10)


@contextmanager
def watched_head_node(patience: float) -> Iterator[None]:
    """Says that the head node that Ray is connected to does not answer, and ends this process in a line, with status 2,
    where it has not answered for `patience` seconds.

    Nothing else could be done: each call of Ray's would wait for it.
    """
    import ray
    from ray._private.grpc_utils import init_grpc_channel

    address = ray.get_runtime_context().gcs_address
    channel = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(address, channel, patience, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        channel.close()


def _watch(address: str, channel: Any, patience: float, is_over: threading.Event) -> None:
    answered, is_told = time.monotonic(), False
    while not is_over.wait(INTERVAL):
        asked = time.monotonic()
        if _answers(channel):
            if is_told:
                _say(f"the head node answers again after {asked - answered:.0f} s")
            answered, is_told = asked, False
            continue
        waited = time.monotonic() - answered
        if waited > patience and not is_over.is_set():
            _say(
                f"the head node of the Ray cluster ({address}) does not answer any more; what is finished is kept, and "
                "--resume goes on from the newest checkpoint when there is a cluster again"
            )
            os._exit(2)
        if not is_told and waited > TELL:
            is_told = True
            _say(
                f"waiting since {waited:.0f} s for the head node of the Ray cluster ({address}), which does not "
                f"answer, for {patience:.0f} s at the most"
            )


def _say(text: str) -> None:
    print(f"distmeta: {text}", file=sys.stderr, flush=True)


def _answers(channel: Any) -> bool:
    """Whether the head node says anything at all within the time that it has."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    try:
        question = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]  # generated
        gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).CheckAlive(question, timeout=ANSWER)
    except grpc.RpcError as error:
        return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True
