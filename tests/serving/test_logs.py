"""What the log says of exceptions and of refused requests; and it never fails what it tells of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving import logs
from serving.calls import logged
from serving.errors import Reason, invalid, overloaded

PROGRAM = """
import logging, sys
import structlog
from serving import calls, logs
from serving.errors import invalid
from serving.settings import ServerSettings

logs.configure(ServerSettings(log_format=sys.argv[1], log_content=sys.argv[2] == "on"), "test")
log = structlog.get_logger()
try:
    try:
        raise KeyError("the prompt")
    except KeyError as error:
        raise ExceptionGroup("the prompt", [ValueError("the prompt")]) from error
except Exception:
    log.exception("failed")
    logging.getLogger("other").exception("failed")
    log.error("failed", traceback=logs.trace())
log.info("call", **calls.logged(invalid("field", "the prompt")))
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_messages_are_logged_only_on_request(form: str) -> None:
    """Types and lines of code are logged; messages of exceptions and refusals only with `log_content`."""

    def run(content: str) -> str:
        command = [sys.executable, "-c", PROGRAM, form, content]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr

    kept, shown = run("off"), run("on")
    for text in (kept, shown):
        assert text.count("KeyError") >= 3
        assert text.count("ExceptionGroup") >= 3
        assert text.count("ValueError") >= 3
        assert "FIELD_INVALID" in text
        assert "line 14" in text
    assert "the prompt" not in kept
    assert shown.count("the prompt") >= 8


def test_a_trace_ends() -> None:
    """Also if an exception is among its own causes; without an exception it is empty."""
    one, other = ValueError("1"), ValueError("2")
    one.__cause__, other.__cause__ = other, one
    assert logs.trace(one) == "builtins.ValueError\ncaused by\nbuiltins.ValueError"
    assert logs.trace() == ""


def test_the_servers_own_errors_are_logged_with_their_message() -> None:
    """What an operator needs cannot repeat content: a full queue, a lost tier."""
    full = overloaded(Reason.QUEUE_FULL, "16 requests wait", retry_after=1)
    assert logged(full) == {"reason": "QUEUE_FULL", "error": "16 requests wait"}
    assert logged(invalid("field", "the prompt")) == {"reason": "FIELD_INVALID", "message": "field: the prompt"}


FULL_DISK = """
import structlog
from serving import logs
from serving.settings import ServerSettings
logs.configure(ServerSettings(log_format={form!r}), "test")
for _ in range(3):
    structlog.get_logger().info("called", padding="x" * 10_000)
try:
    raise ValueError("of a request")
except ValueError:
    structlog.get_logger().exception("failed")
print("went on")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_log_that_cannot_be_written_fails_nothing(form: str) -> None:
    """On a full disk lines are dropped, and the caller goes on."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK.format(form=form)],
            stdout=subprocess.PIPE, stderr=full, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.stdout == "went on\n"


CALLS = """
import asyncio, sys
import grpc
from grpc._cython.cygrpc import ExecuteBatchError
from serving import logs
from serving.settings import ServerSettings

async def leave(request, context):  # what a write or the status raises where the client's cancellation is not known yet
    raise ExecuteBatchError('Failed "execute_batch": (<SendStatusFromServerOperation>,)')

async def write_twice(request, context):
    await asyncio.gather(context.write(b"1"), context.write(b"2"))

async def main():
    logs.configure(ServerSettings(), "test")
    server = grpc.aio.server()
    handlers = {each.__name__: grpc.unary_stream_rpc_method_handler(each) for each in (leave, write_twice)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream(f"/Test/{sys.argv[1]}")(b"", timeout=2)
        print((await call.code()).name)
    await server.stop(0)

asyncio.run(main())
"""


@pytest.mark.parametrize(("method", "traces"), [("leave", 0), ("write_twice", 1)])
def test_a_client_that_leaves_at_the_end_is_no_traceback(method: str, traces: int) -> None:
    """GRPC logs a batch that failed since the call was over. One that it refuses is a bug, and is logged."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, method], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "DEADLINE_EXCEEDED"  # the handler has run, and no status was sent
    assert done.stderr.count("ExecuteBatchError raised in core") == traces
