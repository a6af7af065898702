"""An S3-compatible server on this machine, for tests of what is kept at an address."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer


class Server:
    """One that can be gone for a while; what it holds stays."""

    def __init__(self) -> None:
        self._server: Any = None
        self.port = 0
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()
        self._server._server.server_close()  # or the port listens on, and whoever connects is never answered

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "NOTASECRET77",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }

    def keys(self, bucket: str) -> dict[str, int]:
        """The files of a bucket with their sizes (bytes)."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        found = {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", ())}
        return {key: size for key, size in found.items() if not key.endswith("/")}

    def read(self, bucket: str, key: str) -> bytes:
        content: bytes = self._client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def make_bucket(self, name: str) -> None:
        self._client().create_bucket(Bucket=name)

    def _client(self) -> Any:
        return boto3.client("s3")


@contextmanager
def s3_server() -> Iterator[Server]:
    """A server with a bucket `bucket`, to which this process's environment leads."""
    server = Server()
    with mock.patch.dict(os.environ, server.environment):
        server.make_bucket("bucket")
        yield server
    server.stop()
