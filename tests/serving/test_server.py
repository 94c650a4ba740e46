"""The life of a server, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.errors import Code, Reason, invalid
from serving.server import Service, StartError, serve
from serving.settings import ServerSettings
from serving.status import from_rpc_error
from serving.transport import open_channel, server_options
from tests.processes import PATIENCE, line, rest, started
from vlm.v1 import media_pb2, vision_pb2, vision_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Echo(Service, vision_pb2_grpc.VisionEncoderServicer):
    """A service whose calls end in every way that a call can end."""

    name = "echo"
    grpc_names = ("vlm.v1.VisionEncoder",)

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.stopped = False
        self.drained = False
        self.set_serving: Callable[[bool], None] | None = None

    async def start(self, set_serving: Callable[[bool], None]) -> None:
        self.set_serving = set_serving

    def register(self, server: grpc.aio.Server) -> None:
        vision_pb2_grpc.add_VisionEncoderServicer_to_server(self, server)

    async def drain(self) -> None:
        self.drained = True

    async def stop(self) -> None:
        self.stopped = True

    async def Encode(self, request: vision_pb2.EncodeRequest, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        yield vision_pb2.EncodeResponse()
        self.entered.set()
        if request.request_id == "fail":
            raise invalid("data", "is no image", reason=Reason.IMAGE_UNREADABLE)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        yield vision_pb2.EncodeResponse()

    async def Describe(self, request: vision_pb2.EncodeRequest, context: Any) -> media_pb2.MediaLayout:  # type: ignore[override]
        if request.request_id == "long":
            raise invalid("ö" * 9000, "ü" * 9000)
        if request.request_id == "bug":
            raise KeyError("a secret")
        raise invalid("data", "is no image", reason=Reason.IMAGE_UNREADABLE)

    async def GetEncoder(self, request: vision_pb2.GetEncoderRequest, context: Any) -> vision_pb2.EncoderInfo:  # type: ignore[override]
        return vision_pb2.EncoderInfo(model="echo")


@contextlib.asynccontextmanager
async def running(
    service: Echo, **settings: Any
) -> AsyncIterator[tuple[grpc.aio.Channel, asyncio.Event, asyncio.Task[None]]]:
    """A server on a free port, a channel to it, and what stops it."""
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(service, ServerSettings(**settings), on_listening=port.set_result, stop=stop))
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task  # raises why it did not start
    try:
        async with open_channel(f"127.0.0.1:{port.result()}") as channel:
            yield channel, stop, task
    finally:
        service.release.set()
        stop.set()
        await task


async def test_a_service_error_reaches_the_client_with_its_details() -> None:
    """Code, reason and field arrive, from unary and from streaming calls."""
    async with running(Echo()) as (channel, _, _):
        stub = vision_pb2_grpc.VisionEncoderStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.Describe(vision_pb2.EncodeRequest())
        with pytest.raises(grpc.aio.AioRpcError) as streaming:
            async for _ in stub.Encode(vision_pb2.EncodeRequest(request_id="fail")):
                pass
        for caught in (unary, streaming):
            error = from_rpc_error(caught.value)
            assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "IMAGE_UNREADABLE")
            assert error.violations[0].field == "data"


async def test_an_error_that_repeats_a_long_text_of_the_client_arrives() -> None:
    """It is cut: headers over the limit of a client would make it another error, without details."""
    async with running(Echo()) as (channel, _, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await vision_pb2_grpc.VisionEncoderStub(channel).Describe(vision_pb2.EncodeRequest(request_id="long"))
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "FIELD_INVALID")
    assert error.message.startswith("öö")
    assert error.message.endswith("ö…")
    assert error.violations[0].description.startswith("üü")


async def test_an_unexpected_failure_tells_no_secrets() -> None:
    """A bug is INTERNAL, and the exception's text stays in the log."""
    async with running(Echo()) as (channel, _, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await vision_pb2_grpc.VisionEncoderStub(channel).Describe(vision_pb2.EncodeRequest(request_id="bug"))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (caught.value.details() or "")


async def test_a_client_that_leaves_cancels_the_handler() -> None:
    """The handler sees CancelledError at once, and the server goes on serving."""
    service = Echo()
    async with running(service) as (channel, _, _):
        stub = vision_pb2_grpc.VisionEncoderStub(channel)
        call = stub.Encode(vision_pb2.EncodeRequest())
        await service.entered.wait()
        call.cancel()
        await service.cancelled.wait()
        assert (await stub.GetEncoder(vision_pb2.GetEncoderRequest())).model == "echo"


async def test_drain_lets_a_running_call_finish_and_refuses_new_ones() -> None:
    """After the signal health is NOT_SERVING, the running stream ends whole, a new call is UNAVAILABLE."""
    service = Echo()
    async with running(service) as (channel, stop, task):
        stub = vision_pb2_grpc.VisionEncoderStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        call = stub.Encode(vision_pb2.EncodeRequest())
        await service.entered.wait()
        stop.set()
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetEncoder(vision_pb2.GetEncoderRequest(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        service.release.set()
        assert len([response async for response in call]) == 2
        await task
        assert service.drained
        assert service.stopped


class Waiting(Echo):
    """A service that waits for another in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.starting = asyncio.Event()

    async def start(self, set_serving: Callable[[bool], None]) -> None:
        self.starting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


async def test_a_stop_while_starting_is_a_clean_stop() -> None:
    """A service that is still loading, or waits for another, ends at once when it is told to."""
    service, stop = Waiting(), asyncio.Event()
    task = asyncio.create_task(serve(service, ServerSettings(), stop=stop))
    await service.starting.wait()
    stop.set()
    await task
    assert service.cancelled.is_set()


async def test_a_full_server_says_when_to_come_back() -> None:
    """Calls over the limit are RESOURCE_EXHAUSTED with a delay, and the running one is not harmed."""
    service = Echo()
    async with running(service, max_concurrent_rpcs=1) as (channel, _, _):
        stub = vision_pb2_grpc.VisionEncoderStub(channel)
        call = stub.Encode(vision_pb2.EncodeRequest())
        await service.entered.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetEncoder(vision_pb2.GetEncoderRequest())
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        assert error.retry_after
        service.release.set()
        assert len([response async for response in call]) == 2


async def test_a_service_can_turn_itself_unhealthy_and_back() -> None:
    """`set_serving` reaches those who watch."""
    service = Echo()
    async with running(service) as (channel, _, _):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="vlm.v1.VisionEncoder"))
        assert (await watch.read()).status == SERVING
        assert service.set_serving is not None
        service.set_serving(False)
        assert (await watch.read()).status == NOT_SERVING
        service.set_serving(True)
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_a_taken_port_is_one_sentence() -> None:
    """A server does not share a port that another holds: it says that it is taken."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(StartError, match="taken"):
            await serve(Echo(), ServerSettings(port=held.getsockname()[1]))


PROGRAM = textwrap.dedent(
    """
    import sys
    from serving.server import run
    from serving.settings import ServerSettings
    from tests.serving.test_server import Echo

    class Told(Echo):
        def register(self, server):
            super().register(server)
            print("up", flush=True)

    sys.exit(run(Told(), ServerSettings(_cli_parse_args=sys.argv[1:])))
    """
)


def _python(
    program: str, *arguments: str, before: Path | None = None
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a program; `before` is a directory whose modules take the place of others."""
    root = Path(__file__).parents[2]
    folders = [*([before] if before else []), root, root / "protos"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return started([sys.executable, "-c", program, *arguments], env=environment, cwd=root)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_process_cleanly(number: signal.Signals) -> None:
    """SIGTERM, SIGINT and SIGHUP end it with exit code 0."""
    with _python(PROGRAM) as process:
        assert line(process.stdout, "the server to listen") == "up\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's death")
def test_a_server_does_not_outlive_its_launcher() -> None:
    """A launcher that is killed outright takes its server along."""
    program = textwrap.dedent(
        """
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "--parent-pid", str(os.getpid())])
        print(child.pid, flush=True)
        child.wait()
        """
    )
    with _python(program, PROGRAM) as launcher:
        line(launcher.stdout, "the server's process id")
        assert line(launcher.stdout, "the server to listen") == "up\n"
        launcher.kill()
        launcher.wait()
        assert rest(launcher.stdout, "the end of the server, which holds the same pipe") == ""


LAUNCHER = textwrap.dedent(
    """
    import os, subprocess, sys
    child = subprocess.Popen([sys.executable, "-m", *sys.argv[1:], "--parent-pid", str(os.getpid())])
    child.wait()
    """
)
SERVICES = ("vision_service", "decoder_service", "gateway")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("service", SERVICES)
def test_a_launcher_that_is_killed_early_leaves_nothing(service: str, tmp_path: Path) -> None:
    """The service ends though its imports have not: here the import of gRPC does not return."""
    (tmp_path / "grpc.py").write_text(
        "import os, threading\nos.write(1, b'importing' + os.linesep.encode())\nthreading.Event().wait()\n"
    )
    with _python(LAUNCHER, service, before=tmp_path) as launcher:
        assert line(launcher.stdout, "the import of gRPC") == "importing\n"
        launcher.kill()
        launcher.wait()
        assert rest(launcher.stdout, "the end of the service, which holds the same pipe") == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("service", SERVICES[:2])
def test_a_launcher_that_is_killed_while_a_model_loads_leaves_nothing(service: str, tmp_path: Path) -> None:
    """The service ends though its thread loads on: here bundle.json is a pipe that gives no byte."""
    pipe = tmp_path / "bundle.json"
    os.mkfifo(pipe)
    with _python(LAUNCHER, service, "--bundle", str(tmp_path)) as launcher, pipe.open("wb"):  # opened when it is read
        launcher.kill()
        launcher.wait()
        assert rest(launcher.stdout, "the end of the service, which holds the same pipe") == ""


def test_a_client_may_ping_every_five_seconds() -> None:
    """The least time between pings that a server takes is under what the pages promise: pings come unevenly."""
    options = dict(server_options(max_message_bytes=ServerSettings().max_message_bytes))
    assert options["grpc.http2.min_ping_interval_without_data_ms"] < 5_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
