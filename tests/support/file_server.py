"""Serve files as the hub does, and as a file server does: ranges, statuses, redirects, lost connections."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FileServer:
    """files: path -> content; as a repository of the hub, `/org/name/resolve/COMMIT/manifest.json`.

    statuses: path -> what to reply instead of the file.
    redirects: path -> address.
    losses: path -> how many times the connection is lost after half of what is left.
    received: method, path and Range of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    received: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def add_repository(self, name: str, folder: Path, leave_out: tuple[str, ...] = ()) -> None:
        """Serve a folder as a repository with one commit, which `main` names."""
        self.files[f"/api/models/{name}"] = json.dumps({"id": name, "sha": COMMIT}).encode()
        self.files[f"/api/models/{name}/revision/main"] = self.files[f"/api/models/{name}"]
        for file in folder.iterdir():
            if file.name not in leave_out:
                self.files[f"/{name}/resolve/{COMMIT}/{file.name}"] = file.read_bytes()

    def paths(self, method: str = "GET") -> list[str]:
        return [path for sent, path, _ in self.received if sent == method]


class Replies(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Listener"

    def do_GET(self) -> None:
        files, path = self.server.files, self.path.partition("?")[0]
        with self.server.lock:
            files.received.append((self.command, path, self.headers["Range"]))
        if path in files.redirects:
            self.reply(302, b"", Location=files.redirects[path])
        elif path in files.statuses:
            self.reply(files.statuses[path], b"{}")
        elif path in files.files:
            self.send_file(path, files.files[path])
        else:
            self.reply(404, b"{}", X_Error_Code=self.missing(path))

    do_HEAD = do_GET  # noqa: N815 - the names are the base class's

    def missing(self, path: str) -> str:
        """Return what the hub names in a header: the file, the revision or the repository."""
        repository = re.match(r"(/api/models)?(/[^/]+/[^/]+)", path)
        if not repository or f"/api/models{repository[2]}" not in self.server.files.files:
            return "RepoNotFound"
        return "EntryNotFound" if COMMIT in path else "RevisionNotFound"

    def send_file(self, path: str, content: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        start = int(found[1]) if found else 0
        if found and start >= len(content):
            self.reply(416, b"")
            return
        with self.server.lock:
            losses = self.server.files.losses
            is_lost = self.command == "GET" and losses.get(path, 0) > 0
            losses[path] = losses.get(path, 0) - is_lost
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": COMMIT}
        if found:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(206 if found else 200, content[start:], is_lost=is_lost, **headers)

    def reply(self, status: int, content: bytes, *, is_lost: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_lost else content)
        self.close_connection = is_lost

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing: standard error belongs to the tests."""


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Replies)
        self.lock = threading.Lock()
        self.files = FileServer(url=f"http://127.0.0.1:{self.server_port}")


@contextmanager
def file_server() -> Iterator[FileServer]:
    """Run a server on this machine."""
    with Listener() as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield http.files
        finally:
            http.shutdown()
