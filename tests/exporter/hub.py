"""A Hugging Face hub on this machine: the few requests that a download makes, answered from a directory."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What is on it, and what was asked for.

    Attributes:
        models: the directory of each id.
        revisions: the branches and tags of every model.
        sizes: sizes to tell for files, where they are not the true ones.
        sent: the files that were sent, in order.
        error: the error code of every answer, as the hub names it; empty: there is none.
    """

    def __init__(self) -> None:
        self.models: dict[str, Path] = {}
        self.revisions = ["main"]
        self.sizes: dict[str, int] = {}
        self.sent: list[str] = []
        self.error = ""


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serve a hub to huggingface_hub in this process, with a cache of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    endpoint = f"http://127.0.0.1:{server.server_port}"
    # The library reads HF_ENDPOINT and HF_HOME when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the name that the library calls
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def _answer(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models").strip("/")
            owner, name, *rest = path.split("/")
            folder = hub.models.get(f"{owner}/{name}")
            if hub.error:
                self._send(403, {"X-Error-Code": hub.error})
            elif folder is None:
                self._send(404, {"X-Error-Code": "RepoNotFound"})
            elif len(rest) > 1 and rest[1] not in (*hub.revisions, COMMIT):
                self._send(404, {"X-Error-Code": "RevisionNotFound"})
            elif not rest or rest[0] == "revision":
                self._send_json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []})
            elif rest[0] == "tree":
                self._send_json([self._entry(folder, file) for file in sorted(folder.rglob("*")) if file.is_file()])
            else:
                self._send_file(folder, "/".join(rest[2:]))

        def _entry(self, folder: Path, file: Path) -> dict[str, Any]:
            name = file.relative_to(folder).as_posix()
            size = hub.sizes.get(name, file.stat().st_size)
            return {"type": "file", "path": name, "size": size, "oid": _digest(file)}

        def _send_file(self, folder: Path, name: str) -> None:
            file = folder / name
            if not file.is_file():
                self._send(404, {"X-Error-Code": "EntryNotFound"})
                return
            if self.command == "GET":
                hub.sent.append(name)
            size = hub.sizes.get(name, file.stat().st_size)
            headers = {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT}
            self._send(200, headers, file.read_bytes() if self.command == "GET" else b"", size)

        def _send_json(self, value: Any) -> None:
            self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

        def _send(self, code: int, headers: dict[str, str], body: bytes = b"", size: int | None = None) -> None:
            self.send_response(code)
            for key, value in (headers | {"Content-Length": str(len(body) if size is None else size)}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
