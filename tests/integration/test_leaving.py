"""Clients that leave: what they held is free for the next."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

import pytest

import exporter
from tests.checkpoints import make_checkpoint
from tests.pictures import noise, png
from tests.processes import line, started
from tests.system import triptych_system
from triptych import AsyncClient, Client, Delta, Finished, Image, user

CONTEXT = 32768
ENDLESS = 32000  # at some thousand tokens a second far longer than any of these tests may take


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A system whose model never ends its turn by itself."""
    folder = tmp_path_factory.mktemp("leaving")
    checkpoint = make_checkpoint(folder / "checkpoint", context=CONTEXT)
    config = checkpoint / "generation_config.json"
    config.write_text('{"eos_token_id": [319]}')  # a row of the embedding that stands for no token
    bundle = exporter.export(checkpoint, folder / "bundle", precision="int4")
    with triptych_system(bundle.root, slots=1, max_queue=2) as found:
        yield found


def test_a_killed_client_frees_the_decoder(address: str) -> None:
    """A client process that is killed mid-answer does not keep the next one waiting for the end of its answer."""
    program = textwrap.dedent(
        f"""
        import triptych
        with triptych.Client({address!r}) as client:
            for event in client.chat([triptych.user("hello")], max_tokens={ENDLESS}):
                print(type(event).__name__, flush=True)
        """
    )
    with started([sys.executable, "-c", program]) as process:
        assert line(process.stdout, "the answer's start") == "Started\n"
        assert line(process.stdout, "the answer's first token") == "Delta\n"
        process.kill()
    with Client(address) as client:
        answer = client.answer([user(Image(png(noise(64, 64))), "next")], max_tokens=3, timeout=20)
    assert len(answer.token_ids) == 3


def test_leaving_the_loop_cancels(address: str) -> None:
    """Breaking out of the iteration is enough."""
    with Client(address) as client:
        for event in client.chat([user("hello")], max_tokens=ENDLESS):
            if isinstance(event, Delta):
                break
        assert len(client.answer([user("next")], max_tokens=3, timeout=20).token_ids) == 3


async def test_a_waiting_request_can_leave_the_queue(address: str) -> None:
    """One that waits behind an endless answer leaves; the endless one goes on, and its end lets the third in."""
    async with AsyncClient(address) as client:
        first = client.chat([user("one")], max_tokens=ENDLESS)
        events = aiter(first)
        while not isinstance(await anext(events), Delta):
            pass
        second = client.chat([user("two")], max_tokens=1)
        assert type(await anext(aiter(second))).__name__ == "Started"
        await second.aclose()
        assert isinstance(await anext(events), Delta)
        third = client.chat([user("three")], max_tokens=1, timeout=30)
        assert type(await anext(aiter(third))).__name__ == "Started"
        await first.aclose()
        assert isinstance([event async for event in third][-1], Finished)
