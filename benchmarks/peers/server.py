"""Peers that are servers: started by their process, and called through OpenAI's API. Needs only Python."""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.peers.protocol import Counts, Question

_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.1
# Do not use a proxy for this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Json = dict[str, Any]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServedModel:
    """See `PictureModel`. The server ends with this process.

    Args:
        command: Command that starts the server.
        port: Port of the server.
        health: Path that returns 200 when the server is ready.
        versions: Versions of the relevant libraries.
        environment: Additional environment variables.
        fields: Additional fields of every request.
        streams: Most concurrent questions.

    Raises:
        RuntimeError: It exited before it was ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        health: str,
        versions: Mapping[str, str],
        environment: Mapping[str, str],
        fields: Mapping[str, Any],
        streams: int,
    ) -> None:
        self.versions = versions
        self._fields = fields
        self._root = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(  # noqa: S603  # the peer's own command
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env={**os.environ, **environment}
        )
        atexit.register(self._stop)
        self._pool = ThreadPoolExecutor(streams)
        self._conversation: list[Json] = []
        self._until_healthy(health)
        self._model = self._call("/v1/models")["data"][0]["id"]

    def ask(self, questions: Sequence[Question], new_tokens: int) -> Counts:
        """See `PictureModel`."""
        conversations = [[_user(question)] for question in questions]
        replies = list(self._pool.map(lambda one: self._reply(one, new_tokens), conversations))
        self._conversation = [*conversations[0], replies[0]["choices"][0]["message"]]
        return _counts(replies)

    def follow(self, text: str, new_tokens: int) -> Counts:
        """See `PictureModel`."""
        return _counts([self._reply([*self._conversation, {"role": "user", "content": text}], new_tokens)])

    def _reply(self, messages: Sequence[Json], new_tokens: int) -> Json:
        body = {"model": self._model, "messages": messages, "max_tokens": new_tokens, "temperature": 0}
        return self._call("/v1/chat/completions", {**body, **self._fields})

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310  # on this machine
            self._root + path, data, {"content-type": "application/json"}
        )
        try:
            with _DIRECT.open(request) as reply:
                answer: Json = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path} answered {error.code}: {error.read().decode(errors='replace')}") from error

    def _until_healthy(self, path: str) -> None:
        while self._process.poll() is None:
            with contextlib.suppress(OSError):  # includes refused connections and other statuses than 200
                _DIRECT.open(self._root + path).close()
                return
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"the server ended with code {self._process.returncode}; its output is above")

    def _stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the parent of this process kills what is left
            self._process.wait(_STOP_SECONDS)


def _user(question: Question) -> Json:
    parts: list[Json] = [
        {"type": "image_url", "image_url": {"url": _data_url("image/jpeg", picture)}} for picture in question.pictures
    ]
    if question.clip is not None:
        parts.append({"type": "video_url", "video_url": {"url": _data_url("video/mp4", question.clip)}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": question.text}]}


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _counts(replies: Sequence[Json]) -> Counts:
    usages = [reply["usage"] for reply in replies]
    return Counts(sum(one["completion_tokens"] for one in usages), sum(one["prompt_tokens"] for one in usages))
