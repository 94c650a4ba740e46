"""What a client may do: at once and in a minute, with delays that are true."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.keys.limits import Client, Clients, Limits
from serving.errors import ServiceError
from vlm.v1 import chat_pb2


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


def refused(client: Client) -> ServiceError:
    """How a request is refused."""
    with pytest.raises(ServiceError) as caught, client.request():
        pass
    return caught.value


def test_requests_at_once(clock: Clock) -> None:
    """As many as allowed; the place of one that ends, well or not, is free again."""
    client = Client(Limits(max_requests=2), clock)
    with client.request():
        with contextlib.suppress(KeyError), client.request():
            error = refused(client)
            assert (error.reason, error.retry_after) == ("TOO_MANY_OF_CLIENT", 1.0)
            raise KeyError
        with client.request():
            pass
    assert client.running == 0


@given(per_minute=st.integers(1, 200), burst=st.integers(0, 5))
def test_the_delay_is_true(per_minute: int, burst: int) -> None:
    """A minute's worth may come at once. After the delay one request is taken, a little earlier none."""
    clock = Clock()
    client = Client(Limits(requests_per_minute=per_minute), clock)
    taken = 0
    with contextlib.suppress(ServiceError):
        while taken < per_minute + burst:
            with client.request():
                taken += 1
    if burst:
        assert taken == per_minute
        error = refused(client)
        assert error.reason == "RATE_LIMITED"
        assert error.retry_after == pytest.approx(60 / per_minute)
        clock.now += 0.99 * 60 / per_minute
        refused(client)
        clock.now += 0.02 * 60 / per_minute
        with client.request():
            pass
        refused(client)


async def answer(*events: chat_pb2.ChatEvent) -> AsyncIterator[chat_pb2.ChatEvent]:
    """The events of an answer."""
    for event in events:
        yield event


async def test_tokens_of_prompt_and_answer(clock: Clock) -> None:
    """They are counted as they come, those of tool calls at the end; a debt is paid off before the next request."""
    client = Client(Limits(tokens_per_minute=60), clock)
    events = [
        chat_pb2.ChatEvent(started=chat_pb2.Started(prompt_tokens=40)),
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(token_ids=[1, 2, 3])),
        chat_pb2.ChatEvent(choice=1, delta=chat_pb2.Delta(token_ids=[1] * 7)),
        chat_pb2.ChatEvent(finished=chat_pb2.Finished(usage=chat_pb2.Usage(completion_tokens=13))),
        chat_pb2.ChatEvent(choice=1, finished=chat_pb2.Finished(usage=chat_pb2.Usage(completion_tokens=7))),
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(token_ids=[1] * 9)),
    ]
    with client.request():
        counted = client.metered(answer(*events))  # type: ignore[arg-type]  # an async generator
        left = [client.headers()["x-ratelimit-remaining-tokens"] async for _ in counted]
    assert left == ["20", "17", "10", "0", "0", "0"]
    error = refused(client)
    assert error.reason == "RATE_LIMITED"
    assert error.retry_after == pytest.approx(1 + 9)
    clock.now += 10
    with client.request():
        pass


async def test_without_a_limit_nothing_is_counted(clock: Clock) -> None:
    """The events are the conductor's own: a token costs nothing more."""
    client = Client(Limits(max_requests=1, requests_per_minute=5), clock)
    events = answer()
    assert client.metered(events) is events  # type: ignore[arg-type]
    assert list(client.headers()) == [
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ]


def test_a_refused_request_takes_nothing(clock: Clock) -> None:
    """Neither a place nor a request of the minute, whichever limit refused it."""
    client = Client(Limits(max_requests=1, requests_per_minute=2), clock)
    with client.request():
        for _ in range(5):
            assert refused(client).reason == "TOO_MANY_OF_CLIENT"
    with client.request():
        pass
    assert refused(client).reason == "RATE_LIMITED"
    assert client.running == 0


def test_clients_do_not_share(clock: Clock) -> None:
    """Each has its own counts, and keeps them from request to request; new limits of a key hold at once."""
    clients = Clients(clock)
    limits = Limits(max_requests=1, requests_per_minute=1)
    with clients.get("a", limits).request():
        assert refused(clients.get("a", limits)).reason == "TOO_MANY_OF_CLIENT"
        with clients.get("b", limits).request():
            pass
    assert refused(clients.get("a", limits)).reason == "RATE_LIMITED"
    with clients.get("a", Limits(requests_per_minute=2)).request():
        pass


def test_addresses_do_not_fill_memory(clock: Clock) -> None:
    """Clients that do nothing are forgotten; one with a running request never is."""
    clients = Clients(clock, most=50)
    limits = Limits(max_requests=1, requests_per_minute=1)
    with clients.get("busy", limits).request():
        for number in range(1000):
            with clients.get(str(number), limits).request():
                pass
        assert len(clients) <= 51
        assert refused(clients.get("busy", limits)).reason == "TOO_MANY_OF_CLIENT"
