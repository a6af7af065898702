"""Clusters that are not there, do not answer, or are others than this process can work with: a line each, and soon."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import ray
from ray._common.usage import usage_lib
from ray._private import services
from ray._private.utils import compute_version_info
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from distmeta.cluster import head_node, named_cluster
from distmeta.cluster.connect import check_workers_fit, prepare_environment
from distmeta.cluster.head_node import SOCKET
from distmeta.cluster.named_cluster import reach
from distmeta.config import Config
from distmeta.errors import UserError

HERE = services.get_node_ip_address()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(named_cluster, "ANSWER", 1.0)
    monkeypatch.setattr(named_cluster, "NODE", 0.5)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def refusal(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    since = time.monotonic()
    with pytest.raises(UserError) as raised:
        check_workers_fit(Config())  # what `pretrain` and `sweep` begin with, before anything is prepared
    assert time.monotonic() - since < 10
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"RAY_ADDRESS: {address}")
    return line


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "job server"),
        ("https://cluster.example", "job server"),
        ("ray://127.0.0.1:10001", "the Ray client"),
        ("s3://bucket", "something else"),
        ("head-node", "is not HOST:PORT"),
        ("head-node:ray", "is not HOST:PORT"),
        ("head-node:70000", "is not HOST:PORT"),
        (":6379", "is not HOST:PORT"),
        ("no.such.host.invalid:6379", "no machine is known as no.such.host.invalid"),
        ("ray-head..svc:6379", "no machine is known as ray-head..svc"),
    ],
)
def test_what_is_no_address_of_a_head_node_is_told(address: str, words: str, monkeypatch: pytest.MonkeyPatch):
    assert words in refusal(address, monkeypatch)


@contextmanager
def listening() -> Iterator[int]:
    """A port at which connections are taken and nothing is ever said, as by a process that hangs."""
    with socket.create_server((HERE, 0)) as server:
        yield server.getsockname()[1]


def test_nobody_there_and_nobody_who_answers(monkeypatch: pytest.MonkeyPatch):
    with listening() as port:
        assert "no answer within 1 s" in refusal(f"{HERE}:{port}", monkeypatch)
    assert "nobody listens there" in refusal(f"{HERE}:{port}", monkeypatch)
    assert "nobody listens there" in refusal(f"localhost:{port}", monkeypatch)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    assert "none does: start one" in refusal("auto", monkeypatch)


def test_another_service_is_no_head_node(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(BaseHTTPRequestHandler, "log_message", lambda *_: None)
    with HTTPServer((HERE, 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "no head node of Ray" in refusal(f"{HERE}:{server.server_port}", monkeypatch)
        server.shutdown()


class HeadNode(gcs_service_pb2_grpc.InternalKVGcsServiceServicer, gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """What a head node says of itself: one of other versions cannot be had here."""

    def __init__(self, versions: tuple[str, str], code: grpc.StatusCode | None = None) -> None:
        self._metadata, self._code = dict(zip(("ray_version", "python_version"), versions, strict=True)), code

    def InternalKVGet(self, request: Any, context: Any) -> Any:
        if self._code:
            context.abort(self._code, "told to")
        stored = {b"CLUSTER_METADATA": json.dumps(self._metadata).encode()}
        return gcs_service_pb2.InternalKVGetReply(value=stored.get(request.key, b""))

    def GetAllNodeInfo(self, request: Any, context: Any) -> Any:
        reply = gcs_service_pb2.GetAllNodeInfoReply()
        for state, cpus in ((0, 2.0), (1, 64.0), (0, 1.0)):
            reply.node_info_list.add(node_id=bytes([state] * 28), state=state).resources_total["CPU"] = cpus
        return reply


@contextmanager
def serving(head: HeadNode) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(head, server)
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(head, server)
    port = server.add_insecure_port(f"{HERE}:0")
    server.start()
    yield f"{HERE}:{port}"
    server.stop(None)


def test_a_cluster_of_another_version_is_told_with_both(monkeypatch: pytest.MonkeyPatch):
    with serving(HeadNode(("2.44.1", "3.9.7"))) as address:
        line = refusal(address, monkeypatch)
    assert f"Ray 2.44.1 on Python 3.9.7, and this process Ray {ray.__version__}" in line


def test_a_cluster_without_a_node_here_is_told(monkeypatch: pytest.MonkeyPatch):
    with serving(HeadNode(compute_version_info())) as address:
        assert "none of the 2 living nodes of that cluster is on this machine" in refusal(address, monkeypatch)
        # With one, it is the CPUs of the living nodes that count.
        monkeypatch.setattr(services, "find_node_ids", lambda: {"00" * 28})
        assert [node["CPU"] for node in reach().nodes] == [2.0, 1.0]
        with pytest.raises(UserError, match="5 workers of 1 CPUs need 5, the cluster has 3 on 2 nodes"):
            check_workers_fit(Config(train={"num_workers": 5}, meta={"meta_batch_size": 5}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "there is none here: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "token"}, "there is none here: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "ab" * 32}, "set RAY_AUTH_MODE=token, so that yours is sent"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}, "the token of RAY_AUTH_TOKEN is not the cluster's"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_told(
    settings: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ray._raylet import AuthenticationTokenLoader, Config

    def read_again() -> None:
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    with monkeypatch.context() as changed:
        for name, value in ({"HOME": str(tmp_path)} | settings).items():
            changed.setenv(name, value)
        read_again()
        with serving(HeadNode(compute_version_info(), grpc.StatusCode.UNAUTHENTICATED)) as address:
            line = refusal(address, changed)
    read_again()
    assert words in line
    assert "ab" * 32 not in line


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_an_empty_address_names_no_cluster(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert named_cluster.named_cluster() is None
    with pytest.raises(UserError, match="this machine has"):
        check_workers_fit(Config(train={"num_workers": 999}, meta={"meta_batch_size": 999}))


# On this machine


def test_nothing_about_a_run_is_told_to_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    prepare_environment()
    assert not usage_lib.usage_stats_enabled()


def test_a_long_path_of_temporary_files_is_gone_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A socket's path has at most 107 bytes, and that of a folder for temporary files may be longer already."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(head_node.tempfile, "gettempdir", lambda: str(long))
    chosen = head_node._temporary_folder()
    assert len(f"{chosen}/{SOCKET}") <= 107
    assert os.access(chosen, os.W_OK)
    monkeypatch.setenv("RAY_TMPDIR", str(long))  # the user's word
    with pytest.raises(UserError, match=r"RAY_TMPDIR cannot hold its sockets: .* of at most 39 bytes"):
        head_node._temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/proc/ray")
    with pytest.raises(UserError, match="a folder that can be written"):
        head_node._temporary_folder()


def test_a_node_that_does_not_come_up_is_tried_again_and_then_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attempts = []

    def init(**_: Any) -> None:
        attempts.append(1)
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(head_node, "_temporary_folder", lambda: str(tmp_path))
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"did not come up in half a minute, 2 times over; try again when") as raised:
        head_node._start(1)
    assert (len(attempts), len(str(raised.value).splitlines())) == (2, 1)
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(OSError("no room for\nthis")))
    with pytest.raises(UserError, match=r"could not be started on this machine: no room for$"):
        head_node._start(1)


def test_what_a_part_of_ray_ended_with_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logs = tmp_path / "ray" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("first\nNo space left on device\n")
    script = tmp_path / "raylet"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)

    def init(**_: Any) -> None:
        services.ConsolePopen([str(script)]).wait()
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(head_node, "_temporary_folder", lambda: str(tmp_path))
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"its raylet ended at once \(No space left on device\)"):
        head_node._start(1)


def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    """Ray says so in a log of its own."""
    monkeypatch.setattr(head_node.shutil, "disk_usage", lambda _: SimpleNamespace(total=100, used=90, free=9))
    head_node._warn_of_full_disk(str(tmp_path))
    assert not caplog.text
    monkeypatch.setattr(head_node.shutil, "disk_usage", lambda _: SimpleNamespace(total=100, used=97, free=2))
    head_node._warn_of_full_disk(str(tmp_path))
    assert "of which 98% are in use" in caplog.text
