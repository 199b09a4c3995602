"""A hub on the loopback: model info, HEAD and ranged GET of files, and every way to misbehave."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """files: of the one repository. large: names that are stored as LFS, with a sha256.

    cut_after: file -> bytes after which the connection is closed, each time. lies: file -> length the server claims.
    swapped: file -> what is sent instead of it. elsewhere: an address that large files are redirected to.
    is_terse: the API gives names of files alone. status: what the API answers with instead of the model.
    requests: (method, path, Range, Authorization).
    """

    files: dict[str, bytes]
    repository: str = "org/model"
    large: tuple[str, ...] = ()
    cut_after: dict[str, int] = field(default_factory=dict)
    lies: dict[str, int] = field(default_factory=dict)
    swapped: dict[str, bytes] = field(default_factory=dict)
    elsewhere: str = ""
    is_terse: bool = False
    status: int = 0
    error_code: str = ""
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    address: str = ""

    def info(self) -> dict[str, object]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if name in self.large:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append({"rfilename": name} if self.is_terse else entry)
        return {"id": self.repository, "modelId": self.repository, "sha": COMMIT, "siblings": siblings, "tags": [],
                "downloads": 0, "likes": 0, "private": False, "gated": False}

    def etag(self, name: str) -> str:
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if name in self.large else git_sha1(data)

    def fetched(self, name: str) -> int:
        return sum(method == "GET" and path.endswith(f"/{name}") for method, path, *_ in self.requests)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if path.startswith(f"/api/models/{hub.repository}"):
            if hub.status or not re.search(rf"{hub.repository}(/revision/(main|v1|{COMMIT}))?$", path):
                code = hub.error_code if hub.status else "RevisionNotFound"
                return self._send(hub.status or 404, b"{}", {"X-Error-Code": code} if code else {}, with_body)
            return self._send(200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"}, with_body)
        match = re.fullmatch(rf"/{hub.repository}/resolve/({COMMIT}|main|v1)/(.+)", path)
        if match is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        if match[2] not in hub.files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, with_body)
        return self._file(match[2], with_body)

    def _file(self, name: str, with_body: bool) -> None:
        hub, data = self.hub, self.hub.swapped.get(name, self.hub.files[name])
        headers = {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in hub.large:
            headers |= {"X-Linked-Etag": f'"{hub.etag(name)}"', "X-Linked-Size": str(len(hub.files[name]))}
            if hub.elsewhere:
                return self._send(302, b"", {**headers, "Location": f"{hub.elsewhere}{self.path}"}, with_body)
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        end = len(data)
        if wanted:
            start, status = int(wanted[1]), 206
            end = min(end, int(wanted[2]) + 1) if wanted[2] else end
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        body = data[start:end]
        length = hub.lies.get(name, len(body))
        cut = hub.cut_after.get(name)
        return self._send(status, body if cut is None else body[:cut], headers, with_body, length)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool,
              length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
            self.wfile.flush()
        if length is not None and length != len(body):
            self.close_connection = True


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at ``hub.address`` while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
