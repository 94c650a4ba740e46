"""The benchmark of affinity: what it sends and counts, with decoders that only remember what they have seen."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.affinity import AffinityPlan, measure, round_robin
from gateway.replicas.routing import choose
from tests.gateway.fakes import FakeDecoder, FakeVision, GenerateCall, serve


class _Remembering(FakeDecoder):
    """Has the features of every file that it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.hook = self._remember

    async def _remember(self, call: GenerateCall, stage: str) -> None:
        if stage == "start" and call.open is not None:
            self.cached |= {part.image.digest for message in call.open.messages for part in message.parts} - {""}


@pytest.mark.parametrize(("choice", "share"), [(choose, 1.0), (round_robin(), 0.5)])
async def test_second_turns_are_counted(choice: Any, share: float) -> None:
    """One after another, by affinity all second turns find the features; by turns of three replicas only some do."""
    vision, decoders = [FakeVision() for _ in range(3)], [_Remembering() for _ in range(3)]
    for fake in vision:
        fake.layout = _any_file(fake)  # type: ignore[method-assign]
    async with contextlib.AsyncExitStack() as stack:

        async def served(fakes: Any) -> list[Any]:
            return [SimpleNamespace(address=(await stack.enter_async_context(serve(fake)))[0]) for fake in fakes]

        async def encodes() -> float:
            return float(sum(len(fake.calls) for fake in vision))

        services: Any = SimpleNamespace(vision=await served(vision), decoders=await served(decoders), encodes=encodes)
        plan = AffinityPlan(conversations=8, at_once=1, edge=8)
        hits = await measure(services, plan, "this one", (choice, choice), seed=0)
    assert hits.choice == "this one"
    assert sum(len(fake.calls) for fake in decoders) == 16
    if share == 1:
        assert hits.second_turns_without_features == 1
    else:
        assert hits.second_turns_without_features <= share
    assert hits.encodes_per_picture == sum(len(fake.calls) for fake in vision) / 4
    assert hits.busiest >= 1


def _any_file(fake: FakeVision) -> Any:
    """The layout of a file that need not begin as the fake's own do."""
    layout = fake.layout

    def describe(request: Any) -> Any:
        request.data = b"file"
        return layout(request)

    return describe
