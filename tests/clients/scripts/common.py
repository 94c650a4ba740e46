"""What the scripts of the Python clients share; in an environment of any client, with the standard library alone.

A script makes one function a check and passes them to `main`, which runs each and prints one line of JSON for it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BASE_URL = os.environ["CLIENTS_BASE_URL"]
MODEL = os.environ["CLIENTS_MODEL"]
METRICS = os.environ["CLIENTS_METRICS"]
KEY = os.environ["CLIENTS_KEY"]

IMAGE_URL = "data:image/png;base64," + base64.b64encode(Path(os.environ["CLIENTS_PICTURE"]).read_bytes()).decode()
QUESTION = "What is in the picture?"
SEEN = "a red circle, a blue square and a yellow star"  # is in it
COLOURS = ("red", "blue", "yellow")
TOOL = "look_up"
RESULT = "There are two shapes."

ROOM = 1500
"""Tokens for an answer in JSON: the demo model writes long numbers and strings where the schema allows them."""

ENDLESS = {"regex": "[ab]{8000}"}
"""vLLM's `structured_outputs`: an answer that goes on until it is cancelled; each letter must be drawn."""

_PATIENCE = 60.0


def expect(holds: object, seen: object) -> None:
    """Fail where it does not hold; says what was seen."""
    if not holds:
        raise AssertionError(f"saw {seen!r}")


def image_parts() -> list[dict[str, Any]]:
    """OpenAI's parts of a question about the picture."""
    return [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": IMAGE_URL}}]


def metric(name: str) -> float:
    """Sum of a metric of the decoder over its labels."""
    with urllib.request.urlopen(METRICS, timeout=_PATIENCE) as response:  # noqa: S310  # our own address
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


def running() -> float:
    """Requests inside the decoder."""
    return metric("triptych_requests")


def cancelled(stream: Iterator[Any], leave: Callable[[], Any], *, pieces: int = 3) -> None:
    """Take some pieces of an endless answer, leave, and wait until the decoder has no request left.

    Args:
        stream: What the answer comes from, piece by piece.
        leave: Ends it, as a user of this client does.
        pieces: How many to take.
    """
    for _ in range(pieces):
        next(stream)
    expect(running() == 1, f"{running():g} running in the middle of the answer")
    leave()
    all_gone()


def all_gone() -> None:
    """Wait until the decoder has no request left."""
    since = time.monotonic()
    while (count := running()) and time.monotonic() - since < _PATIENCE:
        time.sleep(0.05)
    expect(count == 0, f"{count:g} running after the client left")


def main(version: str, **checks: Callable[[], None]) -> None:
    """Run the checks and print what came of each: a line of JSON with `check`, `ok` and `detail`.

    Args:
        version: Of the client.
        checks: By their names.
    """
    print(json.dumps({"version": version}), flush=True)  # noqa: T201  # the runner reads it
    for name, check in checks.items():
        line: dict[str, Any] = {"check": name, "ok": True, "detail": ""}
        try:
            check()
        except Exception as error:  # noqa: BLE001  # whatever a client raises is the result
            traceback.print_exc(file=sys.stderr)
            line = {"check": name, "ok": False, "detail": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(line), flush=True)  # noqa: T201  # the runner reads it
