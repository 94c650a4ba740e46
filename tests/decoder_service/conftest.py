"""One small checkpoint, exported in fp32, as transformers runs it and as the decoder does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import exporter
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from decoder_service.service import DecoderService
from decoder_service.settings import DecoderSettings
from serving.bundle import Bundle
from serving.server import serve
from serving.transport import open_channel
from tests.checkpoints import make_checkpoint
from tests.decoder_service.cases import TURNS, Case, make_case
from tests.measuring import unmeasured
from tests.reference import Reference
from vlm.v1 import decoder_pb2_grpc


@pytest.fixture(autouse=True, scope="session")
def _unmeasured() -> Iterator[None]:
    """Exports do not measure what the encoder's types cost."""
    with unmeasured():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("decoder") / "checkpoint")


@pytest.fixture(scope="session")
def bundle(checkpoint: Path) -> Bundle:
    """Its bundle, in fp32."""
    return exporter.export(checkpoint, checkpoint.parent / "bundle", precision="fp32", progress=False)


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    """The checkpoint in transformers."""
    return Reference(checkpoint)


@pytest.fixture(scope="session")
def prompts(bundle: Bundle) -> PromptBuilder:
    """Lays prompts out for it."""
    return PromptBuilder.load(bundle.decoder_dir, family_of(bundle))


@pytest.fixture(scope="session")
def cases(reference: Reference) -> dict[str, Case]:
    """Conversations of every kind."""
    return {name: make_case(reference, turns) for name, turns in TURNS.items()}


@dataclass(frozen=True)
class Running:
    """A decoder server on loopback.

    Attributes:
        service: What it runs.
        channel: A channel to it.
        stub: Its Decoder service.
        stop: Ends it like SIGTERM.
        ended: Its task.
    """

    service: DecoderService
    channel: grpc.aio.Channel
    stub: decoder_pb2_grpc.DecoderAsyncStub
    stop: asyncio.Event
    ended: asyncio.Task[None]


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Running]]


@pytest.fixture(scope="session")
def serve_decoder(bundle: Bundle) -> Serve:
    """Runs a real server, with settings of one's choice, for as long as a block runs."""

    @contextlib.asynccontextmanager
    async def running(**options: object) -> AsyncIterator[Running]:
        settings = DecoderSettings(**{"bundle": bundle.root, "port": 0, "threads": 1, **options})  # type: ignore[arg-type]
        service = DecoderService(settings)
        stop = asyncio.Event()
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(service, settings, on_listening=port.set_result, stop=stop))
        await asyncio.wait([port, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        channel = open_channel(f"127.0.0.1:{port.result()}")
        try:
            yield Running(service, channel, decoder_pb2_grpc.DecoderStub(channel), stop, task)  # type: ignore[arg-type]
        finally:
            await channel.close()
            stop.set()
            await task

    return running
