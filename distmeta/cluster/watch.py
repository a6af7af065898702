"""Notices that the head node of a Ray cluster is gone while a command uses it: Ray itself waits for a minute, and then
ends the process by a dump of its own."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERVAL = 5.0
"""Seconds between two questions to the head node."""

ANSWER = 5.0
"""Seconds in which it has to answer one."""

MISSED = 4
"""Answers in a row that may fail to come; a busy head node answers late, one that is started again soon answers."""


@contextmanager
def watched_head_node() -> Iterator[None]:
    """Ends this process in a line, with status 2, once the head node that Ray is connected to answers no more.

    Nothing else could be done: each call of Ray's would wait for it.
    """
    import ray
    from ray._private.grpc_utils import init_grpc_channel

    address = ray.get_runtime_context().gcs_address
    channel = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(address, channel, is_over), daemon=True, name="distmeta-watch")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        channel.close()


def _watch(address: str, channel: Any, is_over: threading.Event) -> None:
    missed = 0
    while not is_over.wait(INTERVAL):
        missed = 0 if _answers(channel) else missed + 1
        if missed >= MISSED and not is_over.is_set():
            print(
                f"distmeta: the head node of the Ray cluster ({address}) does not answer any more; what is finished is "
                "kept, and --resume goes on from the newest checkpoint when there is a cluster again",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)


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
