"""The cluster that RAY_ADDRESS names: whether it is there, answers, lets this process in and is of the same Ray.

Ray itself would go on trying for a quarter of an hour without a word where nobody answers, so its head node is asked
first, with a deadline.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distmeta.cluster.growth import Growth, growth_of
from distmeta.cluster.head_node import quietly
from distmeta.errors import UserError
from distmeta.signals import keep_sigterm_handler

ANSWER = 8.0
"""Seconds in which a head node has to answer a call."""

NODE = 10.0
"""Seconds that are given to the node of this machine to be known to the head node."""

START_OR_UNSET = "start it, or unset RAY_ADDRESS for a cluster of this command's own"


@dataclass(frozen=True)
class Cluster:
    """What a head node says of its cluster."""

    address: str
    nodes: list[Mapping[str, float]]
    """The resources of each node that is alive, by Ray's names."""
    growth: Growth | None
    """What it can grow to; None: it stays as it is."""


def named_cluster() -> str | None:
    """The address in RAY_ADDRESS; None: a cluster is to be started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def reach() -> Cluster:
    """Asks the head node of the named cluster what there is.

    Raises:
        UserError: it does not answer within half a minute, does not let this process in, or is not one that this
            process can work with.
    """
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import find_node_ids
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
    from ray.exceptions import AuthenticationError

    address = _head_node()
    deadline = time.monotonic() + NODE
    channel = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    try:
        store = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)

        def stored(namespace: bytes, key: bytes) -> bytes:
            wanted = gcs_service_pb2.InternalKVGetRequest(key=key, namespace=namespace)  # type: ignore[attr-defined]  # generated
            return store.InternalKVGet(wanted, timeout=ANSWER).value

        found = stored(b"cluster", b"CLUSTER_METADATA")
        _check_versions(address, json.loads(found) if found else {})
        node_info = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        everything = gcs_service_pb2.GetAllNodeInfoRequest()  # type: ignore[attr-defined]  # generated
        while True:
            known = node_info.GetAllNodeInfo(everything, timeout=ANSWER).node_info_list
            nodes = [node for node in known if node.state == node.ALIVE]
            if {node.node_id.hex() for node in nodes} & set(find_node_ids()):
                return Cluster(address, [dict(node.resources_total) for node in nodes], growth_of(address, stored))
            if time.monotonic() > deadline:
                raise UserError(
                    f"{_told(address)}: none of the {len(nodes)} living nodes of that cluster is on this machine, and "
                    "a run is started from one of them: submit it as a job (`ray job submit`, see the README)"
                )
            time.sleep(1)
    except grpc.RpcError as error:
        raise UserError(_explain(address, error.code())) from None
    except AuthenticationError:  # there is none to send
        raise UserError(_explain(address, grpc.StatusCode.UNAUTHENTICATED)) from None
    finally:
        channel.close()


@contextmanager
def connection() -> Iterator[None]:
    """Has this process connected to the named cluster.

    Raises:
        UserError: see `reach`.
    """
    import ray

    address = reach().address
    try:
        with keep_sigterm_handler():
            quietly(address=address)
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{_told(address)}: {line}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _head_node() -> str:
    """HOST:PORT of the head node, as Ray will use it; somebody listens there."""
    from ray._private.services import canonicalize_bootstrap_address

    named = named_cluster() or ""
    if named == "auto":
        named = _running_here()
    host, port = _host_and_port(named)
    try:
        address = str(canonicalize_bootstrap_address(named))  # this machine's own name instead of localhost
    except (OSError, UnicodeError):
        raise UserError(f"{_told(named)}: no machine is known as {host}") from None
    try:
        socket.create_connection((address.rpartition(":")[0].strip("[]"), port), timeout=ANSWER).close()
    except (socket.gaierror, UnicodeError):  # the latter of an empty part of a name
        raise UserError(f"{_told(address)}: no machine is known as {host}") from None
    except TimeoutError:
        raise UserError(f"{_told(address)}: nobody answers within {ANSWER:g} s; {START_OR_UNSET}") from None
    except OSError as error:
        raise UserError(f"{_told(address)}: nobody listens there ({error.strerror}); {START_OR_UNSET}") from None
    return address


def _running_here() -> str:
    """The head node that runs on this machine."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.services import canonicalize_bootstrap_address

    logging.getLogger("ray").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray start` did
    try:
        return str(canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        raise UserError(
            "RAY_ADDRESS: auto is the cluster that runs on this machine, and none does: start one (clusters/local.sh), "
            "or unset RAY_ADDRESS for one of this command's own"
        ) from None


def _host_and_port(named: str) -> tuple[str, int]:
    scheme, mark, _ = named.partition("://")
    if mark:
        what = {
            "http": "a job server, to which `ray job submit` goes",
            "ray": "the Ray client, which no training goes by",
        }
        raise UserError(
            f"RAY_ADDRESS: {named} is the address of {what.get(scheme.removesuffix('s'), 'something else')}; give "
            "that of the head node, HOST:6379 unless `ray start` was told another port"
        )
    host, _, port = named.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"RAY_ADDRESS: {named} is not HOST:PORT, as of a head node (port 6379 unless told otherwise)")
    return host, int(port)


def _check_versions(address: str, metadata: dict[str, str]) -> None:
    from ray._private.utils import check_version_info, compute_version_info

    try:
        if metadata:
            check_version_info(metadata, "here")
    except RuntimeError:
        ray_version, python_version = compute_version_info()
        raise UserError(
            f"{_told(address)}: that cluster runs Ray {metadata['ray_version']} on Python "
            f"{metadata['python_version']}, and this process Ray {ray_version} on Python {python_version}; they have "
            "to be the same"
        ) from None


def _explain(address: str, code: Any) -> str:
    """Why a call to the head node failed, in a line, by the status of gRPC."""
    import grpc

    if code == grpc.StatusCode.UNAUTHENTICATED:
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # in C

        right = "`ray get-auth-token` prints the right one on the head node"
        if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
            return (
                f"{_told(address)}: the cluster asks for a token, and there is none here: set RAY_AUTH_MODE=token and "
                f"RAY_AUTH_TOKEN; {right}"
            )
        if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            return f"{_told(address)}: the cluster asks for a token: set RAY_AUTH_MODE=token, so that yours is sent"
        source = next((name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if name in os.environ), "")
        return f"{_told(address)}: the token of {source or '~/.ray/auth_token'} is not the cluster's; {right}"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{_told(address)}: no answer within {ANSWER:g} s: it is no head node of Ray, or hangs; {START_OR_UNSET}"
    return f"{_told(address)}: what listens there is no head node of Ray ({code.name}); {START_OR_UNSET}"


def _told(address: str) -> str:
    named = named_cluster()
    return f"RAY_ADDRESS: {named}" if named == address else f"RAY_ADDRESS: {named} ({address})"
