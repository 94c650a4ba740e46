"""A picture over the budget: the answer is transformers' own at the same pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import exporter
from tests.checkpoints import make_checkpoint
from tests.pictures import noise, png
from tests.reference import Reference
from tests.system import triptych_system
from triptych import AsyncClient, Client, Delta, Image, Progress, Started, user

TOKENS = 12
BUDGET = 96 * 96
LARGE = png(noise(320, 224, 5))
QUESTION = "Describe."


@dataclass(frozen=True)
class Budgeted:
    """A system whose default budget is small, and transformers with the published limits and with that budget."""

    client: Client
    address: str
    published: Reference
    budgeted: Reference


def expected(reference: Reference, *parts: bytes | str) -> list[int]:
    """The greedy tokens of transformers."""
    return reference.generate(reference.inputs([("user", parts)]), TOKENS)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Budgeted]:
    """A small model in fp32 behind all three services."""
    folder = tmp_path_factory.mktemp("budget")
    checkpoint = make_checkpoint(folder / "checkpoint")
    bundle = exporter.export(checkpoint, folder / "bundle", precision="fp32", progress=False)
    with (
        triptych_system(bundle.root, vision={"default_max_pixels": BUDGET}) as address,
        Client(address) as client,
    ):
        yield Budgeted(client, address, Reference(checkpoint), Reference(checkpoint, max_pixels=BUDGET))


def test_the_default_budget_is_transformers_at_these_pixels(system: Budgeted) -> None:
    """Without an option a large picture has the budget's pixels; with the published budget it has all of them."""
    small, large = (expected(one, LARGE, QUESTION) for one in (system.budgeted, system.published))
    assert small != large  # or this test would tell nothing
    answer = system.client.answer([user(Image(LARGE), QUESTION)], max_tokens=TOKENS)
    assert list(answer.token_ids) == small
    answer = system.client.answer([user(Image(LARGE), QUESTION)], max_tokens=TOKENS, detail="original")
    assert list(answer.token_ids) == large


def test_a_picture_may_differ_from_its_request(system: Budgeted) -> None:
    """The same file, once within the budget and once as published, in one conversation: two media, told apart."""
    answer = system.client.answer(
        [user(Image(LARGE), Image(LARGE, detail="original"), QUESTION)], max_tokens=1, return_prompt_token_ids=True
    )
    within, original = answer.media
    assert within.size_given == original.size_given == (320, 224)
    assert within.size_used[0] * within.size_used[1] <= BUDGET < original.size_used[0] * original.size_used[1]
    assert answer.usage.media_tokens == within.tokens + original.tokens
    counted = system.client.count([user(Image(LARGE), Image(LARGE, detail="original"), QUESTION)])
    assert counted.media == answer.media
    assert counted.prompt_tokens == answer.usage.prompt_tokens == len(answer.prompt_token_ids)


def test_naming_the_default_finds_what_was_kept(system: Budgeted) -> None:
    """A second question that names the default's number costs no encode and no prefill of the picture."""
    shown = ("A long introduction, since short beginnings are not kept. " * 8, Image(png(noise(320, 224, 6))))
    first = system.client.answer([user(*shown, QUESTION)], max_tokens=1)
    second = system.client.answer([user(*shown, "And now?")], max_tokens=1, max_pixels=BUDGET)
    other = system.client.answer([user(*shown, "And now?")], max_tokens=1, max_pixels=64 * 64)
    assert second.timings.vision_seconds == 0
    assert other.timings.vision_seconds > 0
    assert second.usage.cached_tokens >= other.usage.cached_tokens + first.usage.media_tokens


async def test_started_and_progress_reach_the_client(system: Budgeted) -> None:
    """`started` comes first with what the picture became, then where the request is, then the answer."""
    async with AsyncClient(system.address) as client:
        events = [
            event
            async for event in client.chat(
                [user(Image(png(noise(320, 224, 7))), QUESTION)], max_tokens=2, report_progress=True
            )
        ]
    kinds = [type(event) for event in events if not isinstance(event, Delta)]
    started = next(event for event in events if isinstance(event, Started))
    assert kinds.index(Started) < kinds.index(Progress)
    assert started.media[0].size_given == (320, 224)
    progress = [event for event in events if isinstance(event, Progress)]
    assert all(event.done <= event.total for event in progress)
    assert {event.stage for event in progress} <= {"queued", "encoding", "prefill"}
    assert any(event.stage == "queued" for event in progress)
    first_delta = next(number for number, event in enumerate(events) if isinstance(event, Delta))
    assert not any(isinstance(event, Progress) for event in events[first_delta:])
