"""What the gateway's affinity gains: cache hits of conversations on several replicas, against round robin.

`python -m benchmarks.affinity`. Every two conversations are about the same picture and begin with another question;
each has a second turn. The services are those of a bundle, as processes; the gateway's conductor runs in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import numpy as np
from PIL import Image as Pillow

from benchmarks.machine import Machine
from benchmarks.report import Report, table_of
from gateway.conductor import Conductor, Policy
from gateway.media import RequestLimits
from gateway.replicas import Discovery, HealthPolicy, ReplicaSet, parse_target
from gateway.replicas.routing import Choose, choose
from gateway.retry import Deadline
from gateway.tiers import GrpcDecoderTier, GrpcVisionTier
from serving.bundle import Bundle
from serving.tasks import gather_or_cancel
from serving.transport import ReservedPorts, open_channel, service_options
from triptych.bundles import demo_bundle
from triptych.launcher import Replica
from vlm.v1 import chat_pb2, decoder_pb2_grpc, gateway_pb2, media_pb2, vision_pb2_grpc

S = TypeVar("S")

_HOST = "127.0.0.1"
_ENCODED = re.compile(r'^triptych_features_total\{source="encoder"\} ([\d.]+)', re.MULTILINE)


@dataclass(frozen=True)
class AffinityPlan:
    """The workload.

    Attributes:
        replicas: Replicas of each tier.
        conversations: Conversations of two turns.
        at_once: Conversations at the same time.
        edge: Edge of the square pictures, in pixels.
        new_tokens: Most tokens of an answer.
    """

    replicas: int = 3
    conversations: int = 200
    at_once: int = 12
    edge: int = 224
    new_tokens: int = 8


@dataclass(frozen=True)
class Hits:
    """What the caches had.

    Attributes:
        choice: How replicas were chosen.
        second_turns_cached: Second turns of which the prefix cache had most of the prompt, as a share.
        prompt_tokens_cached: Prompt tokens of second turns that the prefix caches had, as a share.
        second_turns_without_features: Second turns that needed no features, as a share.
        encodes_per_picture: How often a picture was encoded; 1 is the least.
        busiest: Requests of the busiest decoder, as a multiple of the mean.
    """

    choice: str
    second_turns_cached: float
    prompt_tokens_cached: float
    second_turns_without_features: float
    encodes_per_picture: float
    busiest: float


def round_robin() -> Choose:
    """A choice that takes one replica after another."""
    turns = itertools.count()

    def next_one(key: bytes, loads: Mapping[str, float], slack: float, last: str | None) -> str:
        names = sorted(loads)
        return names[next(turns) % len(names)]

    return next_one


class Services:
    """The replicas of both tiers, as processes.

    Args:
        bundle: The model.
        count: Replicas of each.
    """

    def __init__(self, bundle: Path, count: int) -> None:
        ports = ReservedPorts(_HOST)
        self.metrics_ports: list[int] = []

        def tier(module: str) -> list[Replica]:
            made = []
            for _ in range(count):
                port, metrics_port = ports.reserve(), ports.reserve()
                flags = ["--bundle", str(bundle), "--log-level", "error", "--threads", "1"]
                made.append(Replica(module, [*flags, "--metrics-port", str(metrics_port)], port))
                self.metrics_ports.append(metrics_port)
            return made

        self.vision = tier("vision_service")
        self.decoders = tier("decoder_service")
        ports.release()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start them all, and stop them at the end of the block."""
        everything = [*self.vision, *self.decoders]
        try:
            for replica in everything:
                await replica.start()
            await gather_or_cancel(replica.ready() for replica in everything)
            yield
        finally:
            await asyncio.gather(*(replica.stop(5) for replica in everything))

    async def encodes(self) -> float:
        """Media that were encoded so far."""
        pages = [await asyncio.to_thread(_read, f"http://{_HOST}:{port}/metrics") for port in self.metrics_ports]
        return sum(float(number) for page in pages for number in _ENCODED.findall(page))


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as page:  # noqa: S310  # on the loopback
        return str(page.read(), "utf-8")


def _picture(seed: int, edge: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _said(role: chat_pb2.Role.ValueType, *parts: chat_pb2.Part) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=parts)


async def _turn(
    conductor: Conductor, messages: Sequence[chat_pb2.Message], new_tokens: int
) -> tuple[str, chat_pb2.Finished]:
    request = gateway_pb2.ChatRequest(messages=messages)
    request.generation.max_tokens = new_tokens
    words, finished = [], chat_pb2.Finished()
    events = conductor.chat(request, request_id="affinity", deadline=Deadline(600))
    async with contextlib.aclosing(events):
        async for event in events:
            words.append(event.delta.text)
            if event.HasField("finished"):
                finished = event.finished
    return "".join(words), finished


async def _conversation(conductor: Conductor, number: int, seed: int, plan: AffinityPlan) -> chat_pb2.Finished:
    """Two turns; returns the end of the second."""
    image = media_pb2.Media(data=_picture(seed + number // 2, plan.edge))
    question = chat_pb2.Part(text=f"Question {number}: what is in the picture?")
    first = _said(chat_pb2.ROLE_USER, chat_pb2.Part(image=image), question)
    answer, _ = await _turn(conductor, [first], plan.new_tokens)
    said = _said(chat_pb2.ROLE_ASSISTANT, chat_pb2.Part(text=answer or "."))
    second = _said(chat_pb2.ROLE_USER, chat_pb2.Part(text="What colour is it?"))
    _, finished = await _turn(conductor, [first, said, second], plan.new_tokens)
    return finished


async def measure(services: Services, plan: AffinityPlan, name: str, choices: tuple[Choose, Choose], seed: int) -> Hits:
    """Measure one way to choose replicas.

    Args:
        services: The running services.
        plan: The workload.
        name: Name of the choice.
        choices: The choice of a vision service, and of a decoder.
        seed: Number of the first picture.
    """
    chosen: list[str] = []

    def counting(key: bytes, loads: Mapping[str, float], slack: float, last: str | None) -> str:
        chosen.append(choices[1](key, loads, slack, last))
        return chosen[-1]

    def connect(address: str, authority: str) -> grpc.aio.Channel:
        return open_channel(address, service_options(authority=authority))

    def replicas(
        tier: str, processes: list[Replica], stub: Callable[[grpc.aio.Channel], S], by: Choose
    ) -> ReplicaSet[S]:
        found = Discovery(parse_target(",".join(process.address for process in processes)))
        return ReplicaSet(tier, found, connect, stub, health=HealthPolicy(lost=60), choose=by)

    before = await services.encodes()
    async with (
        replicas("vision", services.vision, vision_pb2_grpc.VisionEncoderStub, choices[0]) as vision,
        replicas("decoder", services.decoders, decoder_pb2_grpc.DecoderStub, counting) as decoders,
    ):
        while {vision.count.available, decoders.count.available} != {plan.replicas}:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.05)
        conductor = Conductor(GrpcVisionTier(vision), GrpcDecoderTier(decoders), RequestLimits(), Policy())
        places = asyncio.Semaphore(plan.at_once)

        async def one(number: int) -> chat_pb2.Finished:
            async with places:
                return await _conversation(conductor, number, seed, plan)

        ends = await gather_or_cancel(one(number) for number in range(plan.conversations))
    after = await services.encodes()
    prompt = sum(end.usage.prompt_tokens for end in ends)
    counts = [chosen.count(name) for name in set(chosen)]
    return Hits(
        choice=name,
        second_turns_cached=sum(2 * end.usage.cached_tokens > end.usage.prompt_tokens for end in ends) / len(ends),
        prompt_tokens_cached=sum(end.usage.cached_tokens for end in ends) / prompt,
        second_turns_without_features=sum(end.timings.vision_seconds == 0 for end in ends) / len(ends),
        encodes_per_picture=2 * (after - before) / plan.conversations,
        busiest=max(counts) * len(counts) / sum(counts),
    )


async def run(bundle: Bundle, plan: AffinityPlan) -> list[Hits]:
    """Measure both choices, each with pictures of its own.

    Args:
        bundle: The model.
        plan: The workload.
    """
    services = Services(bundle.root, plan.replicas)
    async with services.running():
        return [
            await measure(services, plan, "round robin", (round_robin(), round_robin()), seed=0),
            await measure(services, plan, "affinity", (choose, choose), seed=plan.conversations),
        ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.affinity", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="the model (default: the demo model)")
    parser.add_argument("--replicas", type=int, default=AffinityPlan.replicas, help="replicas of each tier")
    parser.add_argument("--conversations", type=int, default=AffinityPlan.conversations)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle or demo_bundle())
    plan = AffinityPlan(replicas=options.replicas, conversations=options.conversations)
    machine = Machine.here()
    hits = asyncio.run(run(bundle, plan))
    report = Report("affinity", {"model": bundle.model.id}, plan, hits, [table_of("Cache hits", hits)])
    print(json.dumps(report.document(machine)) if options.json else report.text(machine))


if __name__ == "__main__":
    main()
