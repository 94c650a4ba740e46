"""The gateway's own limit: requests and streamed tokens per second of its CPU time, with stubs as the tiers."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.cpu_time import cpu_seconds
from benchmarks.report import Table
from benchmarks.stub_tiers import WORD
from serving.tasks import gather_or_cancel
from serving.transport import ReservedPorts, client_options, open_channel
from triptych.launcher import Replica
from vlm.v1 import chat_pb2, gateway_pb2

_HOST = "127.0.0.1"
_QUESTION = "What is in the picture?"

Ask = Callable[[int], Awaitable[None]]
"""Sends one request for an answer of so many tokens, and checks that it is complete."""


@dataclass(frozen=True)
class GatewayPlan:
    """The workload of the gateway.

    Attributes:
        processes: Numbers of processes of the gateway, one after another.
        decoders: Numbers of stub decoders, one after another.
        new_tokens: Lengths of the answers.
        clients: Concurrent clients, each with a connection of its own and one request at a time.
        seconds: Duration of a measurement.
        repeats: Number of measurements of each.
    """

    processes: tuple[int, ...] = (1,)
    decoders: tuple[int, ...] = (1, 2, 3)
    new_tokens: tuple[int, ...] = (1, 128)
    clients: int = 16
    seconds: float = 3.0
    repeats: int = 3


@dataclass(frozen=True)
class GatewayResult:
    """Medians of the repeats.

    Attributes:
        door: `gRPC`, `HTTP stream` or `HTTP whole`.
        processes: Processes of the gateway.
        decoders: Stub decoders.
        new_tokens: Tokens of each answer.
        requests_per_second: Throughput.
        tokens_per_second: Throughput.
        requests_per_cpu_second: Requests for each second of CPU time of the gateway: its limit with one core.
        tokens_per_cpu_second: Likewise, tokens.
        cores: CPU time of the gateway for each second.
    """

    door: str
    processes: int
    decoders: int
    new_tokens: int
    requests_per_second: float
    tokens_per_second: float
    requests_per_cpu_second: float
    tokens_per_cpu_second: float
    cores: float


async def run(plan: GatewayPlan) -> list[GatewayResult]:
    """Measure.

    Raises:
        LaunchError: A process cannot start.
    """
    results = []
    for processes in plan.processes:
        for decoders in plan.decoders:
            async with _system(processes, decoders) as (gateway, http_port):
                for door, opened in (
                    ("gRPC", _grpc(gateway.address, plan.clients)),
                    ("HTTP stream", _http(http_port, plan.clients, stream=True)),
                    ("HTTP whole", _http(http_port, plan.clients, stream=False)),
                ):
                    async with opened as asks:
                        for new_tokens in plan.new_tokens:
                            measured = [
                                await _measure(asks, gateway.pid, new_tokens, plan.seconds) for _ in range(plan.repeats)
                            ]
                            rate, per_cpu = (median(values) for values in zip(*measured, strict=True))
                            results.append(
                                GatewayResult(
                                    door,
                                    processes,
                                    decoders,
                                    new_tokens,
                                    rate,
                                    rate * new_tokens,
                                    per_cpu,
                                    per_cpu * new_tokens,
                                    rate / per_cpu,
                                )
                            )
    return results


@asynccontextmanager
async def _system(processes: int, decoders: int) -> AsyncIterator[tuple[Replica, int]]:
    """The gateway in front of stubs; its HTTP port."""
    ports = ReservedPorts(_HOST)
    quiet = ["--log-level", "warning"]
    vision = Replica("benchmarks.stub_tiers", ["--tier", "vision", *quiet], ports.reserve())
    stubs = [Replica("benchmarks.stub_tiers", ["--tier", "decoder", *quiet], ports.reserve()) for _ in range(decoders)]
    http_port = ports.reserve()
    flags = ["--vision", vision.address, "--decoder", "ipv4:" + ",".join(stub.address for stub in stubs)]
    if processes > 1:
        flags += ["--processes", str(processes)]
    gateway = Replica("gateway", [*flags, "--http-port", str(http_port), *quiet], ports.reserve())
    ports.release()
    async with AsyncExitStack() as stack:
        for replica in (vision, *stubs, gateway):
            await replica.start()
            stack.push_async_callback(replica.stop, 5.0)
        await gather_or_cancel(replica.ready() for replica in (vision, *stubs, gateway))
        yield gateway, http_port


async def _measure(asks: list[Ask], pid: int, new_tokens: int, seconds: float) -> tuple[float, float]:
    """Requests per second, and per second of the gateway's CPU time. All clients at once; none is cut off."""
    await asyncio.gather(*(ask(new_tokens) for ask in asks))  # warm-up
    began, cpu = time.perf_counter(), cpu_seconds(pid)
    end = began + seconds

    async def repeat(ask: Ask) -> int:
        done = 0
        while time.perf_counter() < end:
            await ask(new_tokens)
            done += 1
        return done

    done = sum(await gather_or_cancel(repeat(ask) for ask in asks))
    return done / (time.perf_counter() - began), done / max(cpu_seconds(pid) - cpu, 0.01)  # a tick of the clock


@asynccontextmanager
async def _grpc(address: str, clients: int) -> AsyncIterator[list[Ask]]:
    """Clients over gRPC. They parse only the last event, so that they take little of a shared processor."""
    # One connection each: channels with equal options share one.
    own = ("grpc.use_local_subchannel_pool", 1)
    async with AsyncExitStack() as stack:
        opened = [open_channel(address, [*client_options(address), own]) for _ in range(clients)]
        asks: list[Ask] = []
        for channel in opened:
            await stack.enter_async_context(channel)
            method: Any = channel.unary_stream(
                "/vlm.v1.Gateway/Chat", request_serializer=gateway_pb2.ChatRequest.SerializeToString
            )
            asks.append(_grpc_ask(method))
        yield asks


def _grpc_ask(method: Any) -> Ask:
    async def ask(new_tokens: int) -> None:
        user = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(text=_QUESTION)])
        generation = chat_pb2.GenerationOptions(max_tokens=new_tokens)
        events, last = 0, b""
        async for event in method(gateway_pb2.ChatRequest(messages=[user], generation=generation)):
            events, last = events + 1, event
        if events != new_tokens + 2 or not chat_pb2.ChatEvent.FromString(last).HasField("finished"):
            raise ValueError(f"{events} events came, not {new_tokens + 2}")

    return ask


@asynccontextmanager
async def _http(port: int, clients: int, *, stream: bool) -> AsyncIterator[list[Ask]]:
    """Clients over HTTP, each on a thread."""
    with ThreadPoolExecutor(clients) as threads:
        connections = [http.client.HTTPConnection(_HOST, port) for _ in range(clients)]
        yield [_http_ask(connection, threads, stream=stream) for connection in connections]
        for connection in connections:
            connection.close()


def _http_ask(connection: http.client.HTTPConnection, threads: ThreadPoolExecutor, *, stream: bool) -> Ask:
    def send(new_tokens: int) -> None:
        messages = [{"role": "user", "content": _QUESTION}]
        body = json.dumps({"messages": messages, "max_tokens": new_tokens, "stream": stream})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse().read()
        if answer.count(WORD.encode()) != new_tokens:
            raise ValueError(f"the answer has not {new_tokens} tokens: {answer[:200]!r}")

    async def ask(new_tokens: int) -> None:
        await asyncio.get_running_loop().run_in_executor(threads, send, new_tokens)

    return ask


def tables(results: list[GatewayResult]) -> list[Table]:
    """The results as a table."""
    head = [
        "door", "processes", "decoders", "tokens", "requests/s", "tokens/s", "requests/CPU s", "tokens/CPU s", "cores",
    ]  # fmt: skip
    rows = [list(vars(result).values()) for result in results]
    return [Table("The gateway in front of stubs", head, rows)]
