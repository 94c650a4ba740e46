"""The outputs in the quick start, from running its commands: `python -m tools.docs --run`.

The answers are those of the demo model, so the page must be written again after a new training.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "quick-start.md"
PICTURE = "demo/examples/scene.png"
QUESTION = "How many shapes are there?"
SCHEMA = {
    "type": "object",
    "properties": {"there_are": {"enum": ["two shapes.", "three shapes.", "four shapes."]}},
    "required": ["there_are"],
    "additionalProperties": False,
}

_READY = re.compile(r"ready grpc=(\S+) http=http://(\S+) model=\S+\n")
_PART = re.compile(r"(<!-- ran: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class _System:
    """The addresses of a running system, and those in the page."""

    grpc: str
    http: str

    def named(self, output: str) -> str:
        """The output with the page's addresses."""
        return output.replace(self.grpc, "127.0.0.1:50051").replace(self.http, "127.0.0.1:8080")


def write() -> None:
    """Run all commands and write the page."""
    parts = run()
    old = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_PART.sub(lambda m: f"{m[1]}\n{parts[m[2]]}\n\n{m[3]}", old), encoding="utf-8")


def shown() -> dict[str, str]:
    """The current parts of the page."""
    page = PAGE.read_text(encoding="utf-8")
    return {m[2]: m[0].removeprefix(m[1]).removesuffix(m[3]).strip() for m in _PART.finditer(page)}


def steady(text: str) -> str:
    """A part without values that vary between runs: ports, times, ids."""
    text = re.sub(r"\d+ ms|127\.0\.0\.1:\d+|chatcmpl-\w+", "…", text)
    return re.sub(r'"created":\d+', '"created":…', text)


def run() -> dict[str, str]:
    """Run the commands of the page; returns each part with its fence."""
    demo = _output("demo")
    with _up() as system:
        asked = _output("ask", QUESTION, "--image", PICTURE, "--address", system.grpc)
        schema = _schema(system)
        printed = {name: system.named(_program(system, name)) for name in ("python", "forms")}
        models = _http(system, "/v1/models")
        answered = _http(system, "/v1/chat/completions", _question())
        refused = _http(system, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "best_of": 2})
    return {
        "demo": f"```console\n$ make demo\n{demo}\n```",
        "ask": f'```console\n$ .venv/bin/triptych ask "{QUESTION}" --image {PICTURE}\n{asked}\n```',
        "schema": schema,
        **{name: f"```text\n{output}\n```" for name, output in printed.items()},
        "http": "\n".join(
            (
                "```console",
                "$ curl -s http://127.0.0.1:8080/v1/models",
                models,
                f"$ IMAGE=$(base64 -w0 {PICTURE})",
                "$ curl -s http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' -d @- <<END",
                '{"messages": [{"role": "user", "content": [',
                '  {"type": "image_url", "image_url": {"url": "data:image/png;base64,$IMAGE"}},',
                f'  {{"type": "text", "text": "{QUESTION}"}}]}}]}}',
                "END",
                answered,
                "```",
            )
        ),
        "refused": f"```text\n{refused}\n```",
    }


@contextlib.contextmanager
def _up() -> Iterator[_System]:
    command = [sys.executable, "-m", "triptych_cli", "up", "--grpc-port", "0", "--http-port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # our own
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            found = _READY.fullmatch(line)
            if found is None:
                raise RuntimeError(f"the system does not start, its output is {line!r}")
            yield _System(found[1], found[2])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _output(*words: str) -> str:
    command = [sys.executable, "-m", "triptych_cli", *words]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()  # noqa: S603


def _schema(system: _System) -> str:
    """The page's command with `--schema`, on a file that exists only here."""
    shown = json.dumps(SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shapes.json"
        file.write_text(shown, encoding="utf-8")
        asked = _output("ask", "--image", PICTURE, QUESTION, "--schema", str(file), "--address", system.grpc)
    command = f'.venv/bin/triptych ask --image {PICTURE} "{QUESTION}" --schema shapes.json'
    return f"```console\n$ cat shapes.json\n{shown}\n$ {command}\n{asked}\n```"


def _program(system: _System, name: str) -> str:
    """The output of the page's Python program before a part."""
    block = r"```python\n((?:(?!```).)*)```\s*<!-- ran: NAME -->".replace("NAME", name)
    found = re.search(block, PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise RuntimeError(f"the page has no Python before {name}")
    program = found[1].replace("127.0.0.1:50051", system.grpc)
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos")))}
    ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return ended.stdout.strip()


def _question() -> dict[str, object]:
    url = f"data:image/png;base64,{base64.b64encode((ROOT / PICTURE).read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": parts}]}


def _http(system: _System, path: str, body: dict[str, object] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{system.http}{path}", data, _JSON)  # our own server
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
