"""All three services in this process, on real sockets, for tests that look at what passes between them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from decoder_service.service import DecoderService
from decoder_service.settings import DecoderSettings
from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from serving.bundle import Bundle
from serving.server import Service, serve
from serving.settings import ServerSettings
from vision_service.service import VisionService
from vision_service.settings import VisionSettings

T = TypeVar("T")


class Servers:
    """Servers on an event loop of their own, in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="servers", daemon=True)
        self._thread.start()
        self._running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    def start(self, service: Service, settings: ServerSettings) -> str:
        """Start one; returns its address when it is SERVING."""
        return self._result(self._start(service, settings), 120, f"the start of {service.name}")

    def stop_last(self) -> None:
        """Stop the one that was started last."""
        self._result(self._stop(*self._running.pop()), 60, "the end of a server")

    def close(self) -> None:
        """Stop them all, the last started first; one that does not end does not keep the others."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            for _ in self._running:
                stack.callback(self.stop_last)

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def _result(self, coroutine: Coroutine[Any, Any, T], seconds: float, awaited: str) -> T:
        """What a coroutine on the loop comes to; one that takes longer is cancelled."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        done, _ = concurrent.futures.wait([future], seconds)
        if not done:
            future.cancel()
        assert done, f"waited {seconds:g} s for {awaited}"
        return future.result()

    async def _start(self, service: Service, settings: ServerSettings) -> str:
        stop = asyncio.Event()
        port: asyncio.Future[int] = self.loop.create_future()
        task = asyncio.create_task(serve(service, settings, on_listening=port.set_result, stop=stop))
        self._running.append((stop, task))
        await asyncio.wait((task, port), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            self._running.pop()
            task.result()
        return f"127.0.0.1:{port.result()}"

    @staticmethod
    async def _stop(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        stop.set()
        await task


class Address(str):
    """A gateway's gRPC address; `http` is that of its HTTP door."""

    http: str


@contextlib.contextmanager
def triptych_system(
    bundle: Path,
    *,
    vision_bundle: Path | None = None,
    vision: Mapping[str, Any] | None = None,
    gateway: Mapping[str, Any] | None = None,
    **decoder: object,
) -> Iterator[Address]:
    """A vision service, a decoder service and a gateway on free ports. The encoder computes in float32.

    A model that takes text only has no vision service.

    Args:
        bundle: The model.
        vision_bundle: Another bundle for the vision service alone.
        vision: More settings of the vision service.
        gateway: More settings of the gateway.
        decoder: More settings of the decoder service.

    Yields:
        The gateway's addresses.
    """
    servers = Servers()
    try:
        vision_address = "off"
        if Bundle.open(vision_bundle or bundle).has_encoder:
            encoding = VisionSettings(
                bundle=vision_bundle or bundle, port=0, grace_seconds=5, **{"dtype": "float32", **(vision or {})}
            )
            vision_address = servers.start(VisionService(encoding), encoding)
        decoding = DecoderSettings(bundle=bundle, port=0, grace_seconds=5, **decoder)  # type: ignore[arg-type]
        decoder_address = servers.start(DecoderService(decoding), decoding)
        conducting = GatewaySettings(
            vision=vision_address, decoder=decoder_address, port=0, http_port=0, grace_seconds=5, **(gateway or {})
        )
        conductor = GatewayService(conducting)
        address = Address(servers.start(conductor, conducting))
        address.http = f"http://{conductor.http_address}"
        yield address
    finally:
        servers.close()
