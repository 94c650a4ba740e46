"""A gRPC channel whose new calls use the newest credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from serving.tls import ClientTls


class _Generation:
    """One channel and the number of its running calls."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.running = 0


class RenewedChannel(grpc.aio.Channel):
    """Opens another channel when its credentials have changed. A channel that is replaced ends after its last call.

    gRPC cannot change the credentials of an open channel, which reconnects with those that it was opened with.

    Args:
        tls: The credentials.
        connect: Opens a channel with them.
    """

    def __init__(self, tls: ClientTls, connect: Callable[[grpc.ChannelCredentials], grpc.aio.Channel]) -> None:
        self._tls = tls
        self._connect = connect
        self._credentials = tls.current()
        self._newest = _Generation(connect(self._credentials))
        self._generations = {self._newest}
        self._closing: set[asyncio.Task[None]] = set()

    def newest(self) -> _Generation:
        """The channel for a new call."""
        credentials = self._tls.current()
        if credentials is not self._credentials:
            self._credentials = credentials
            previous, self._newest = self._newest, _Generation(self._connect(credentials))
            self._generations.add(self._newest)
            self._close_unused(previous)
        return self._newest

    def ended(self, generation: _Generation) -> None:
        """Note that a call has ended."""
        generation.running -= 1
        self._close_unused(generation)

    def _close_unused(self, generation: _Generation) -> None:
        if generation is not self._newest and not generation.running and generation in self._generations:
            self._generations.remove(generation)
            task = asyncio.ensure_future(generation.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """A method with one request and one response."""
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """A method with one request and a stream of responses."""
        return _Method(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """A method with a stream of requests and one response."""
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """A method with a stream of requests and a stream of responses."""
        return _Method(self, "stream_stream", arguments, options)

    async def close(self, grace: float | None = None) -> None:
        """Close all channels."""
        generations = list(self._generations)
        self._generations.clear()
        await asyncio.gather(*(generation.channel.close(grace) for generation in generations), *self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """State of the newest channel."""
        return self.newest().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait for another state of the newest channel."""
        await self.newest().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the newest channel is connected."""
        await self.newest().channel.channel_ready()

    async def __aenter__(self) -> RenewedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Method:
    """A method of a `RenewedChannel`: starts each call on its newest channel."""

    def __init__(self, channel: RenewedChannel, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._channel = channel
        self._make = (kind, arguments, options)
        self._generation: _Generation | None = None
        self._method: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        generation = self._channel.newest()
        if generation is not self._generation:
            kind, given, named = self._make
            self._generation, self._method = generation, getattr(generation.channel, kind)(*given, **named)
        call = self._method(*arguments, **options)
        generation.running += 1
        call.add_done_callback(lambda _: self._channel.ended(generation))
        return call
