"""As much of W&B's server as its client needs, on this machine."""

import gzip
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal


class Server(http.server.ThreadingHTTPServer):
    """As much of a W&B server as the client needs to log; `sent` and `uploaded` are what it was sent, `waits` when each
    request came and when it was answered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent: list[str] = []
        self.uploaded: dict[str, bytes] = {}
        self.silent, self.closing = threading.Event(), threading.Event()
        self.uploads: Literal["taken", "refused", "unanswered"] = "taken"
        self.refuses_rows = False
        self.delay = 0.0
        """Seconds before each answer."""
        self.waits: list[tuple[float, float]] = []

    @property
    def history(self) -> list[dict[str, Any]]:
        lines = []
        for body in self.sent:
            if not body.startswith("{"):
                continue  # figures of its own, which `wandb sync` sends
            files = json.loads(body).get("files") or {}
            lines += files.get("wandb-history.jsonl", {}).get("content", [])
        return [json.loads(line) for line in lines]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if not self.wait():
            return
        if self.server.refuses_rows and self.path.endswith("/file_stream"):
            self.answer(b"", status=403)
            return
        self.server.sent.append(body.decode(errors="replace"))
        request = json.loads(body) if body.startswith(b"{") else {}
        self.answer(json.dumps({"data": self.data(request.get("query", ""), request.get("variables", {}))}).encode())

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.wait():
            return
        if self.server.uploads == "taken":
            self.server.uploaded[self.path] = content
            self.answer(b"")
        elif self.server.uploads == "refused":
            self.answer(b"", status=403)
        else:
            self.server.closing.wait()

    def wait(self) -> bool:
        """Returns after the delay; false: the server is silent, has taken nothing, and ends the connection at last."""
        came = time.time()
        self.server.closing.wait(self.server.delay)
        self.close_connection = self.server.silent.is_set()
        while self.server.silent.is_set():
            time.sleep(0.1)
        self.server.waits.append((came, time.time()))
        return not self.close_connection

    def answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def data(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What the real server would say to a GraphQL query, as far as the client looks."""
        project = {"id": "p", "name": "distmeta", "entity": {"id": "e", "name": "me"}}

        def file(name: str) -> dict[str, Any]:
            url = f"http://127.0.0.1:{self.server.server_port}/uploaded/{name}"
            return {"id": name, "name": name, "displayName": name, "uploadUrl": url, "uploadHeaders": []}

        if "upsertBucket" in query:
            bucket = {"id": "b", "name": variables["name"], "config": "{}", "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "RunResumeStatus" in query:
            return {"model": project | {"bucket": self.resumed_bucket(variables["name"])}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        if "query Viewer" in query:
            user = {"id": "u", "entity": "me", "username": "me", "name": "me", "flags": "{}"}
            return {"viewer": user | {"teams": {"edges": []}}}
        if "query ArtifactType" in query:
            return {"project": {"artifact": None}}
        if "query ArtifactByID" in query:
            return {"artifact": self.artifact(variables["id"], project)}
        if "mutation CreateArtifactFiles" in query:
            names = [each["name"] for each in variables["input"]["artifactFiles"]]
            extra = {"artifact": {"id": "a"}, "storagePath": "x", "uploadMultipartUrls": None}
            return {"createArtifactFiles": {"files": {"edges": [{"node": file(name) | extra} for name in names]}}}
        if "mutation CreateArtifactManifest" in query:
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file("manifest")}}}
        if "mutation CommitArtifact" in query:
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        if "mutation CreateArtifact" in query:
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "a", "state": "PENDING", "artifactSequence": sequence}}}
        return {}

    def resumed_bucket(self, name: str) -> dict[str, Any] | None:
        """What a client that resumes a run learns of it."""
        history = self.server.history
        if not history:
            return None
        counts = {"historyLineCount": len(history), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(history[-1])]), "eventsTail": "[]"}
        more = {"summaryMetrics": "{}", "displayName": "demo", "config": "{}", "tags": [], "notes": None}
        return {"id": "b", "name": name, "wandbConfig": json.dumps({"t": 1}), **counts, **tails, **more}

    def artifact(self, identity: str, project: dict[str, Any]) -> dict[str, Any]:
        """An artifact as the client reads it back once it is committed."""
        return {
            "id": identity,
            "artifactSequence": {"name": "model-abc123", "project": project | {"internalId": "p"}},
            "versionIndex": 0,
            "artifactType": {"name": "model"},
            "description": None,
            "metadata": None,
            "ttlDurationSeconds": -1,
            "ttlIsInherited": False,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 1,
            "digest": "d",
            "commitHash": None,
            "fileCount": 2,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
        }


@contextmanager
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.silent.clear()
            running.closing.set()
            running.shutdown()
