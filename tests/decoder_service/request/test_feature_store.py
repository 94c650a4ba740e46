"""Features that are kept: what is named alike, what makes room, and what a server then asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from decoder_service.chat import Layout, MediaKind, Medium
from decoder_service.request.feature_store import Features, FeatureStore, encoder_name, media_key
from serving.bundle import Bundle
from serving.errors import Code
from serving.media import media_digest
from tests.decoder_service.cases import Case
from tests.decoder_service.client import (
    Answer,
    done_sending,
    generate,
    open_request,
    opened,
    refused,
    rest_of,
    send,
    still_works,
    until_empty,
)
from tests.decoder_service.client import Features as Sent
from tests.decoder_service.conftest import Running, Serve
from vlm.v1 import chat_pb2, decoder_pb2, media_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEDIUM = Medium(MediaKind.IMAGE, media_digest(b"picture"))


def features(rows: int) -> Features:
    """Features of 4 bytes a row."""
    return Features(Layout(MEDIUM, (1, 2, 2 * rows), rows), rows, np.zeros((rows, 1), np.float32))


async def test_the_least_recently_used_make_room() -> None:
    """What was asked for last stays; the bytes never pass the limit and are those of what is kept."""
    store = FeatureStore(max_bytes=40)
    first, second, third = features(4), features(4), features(5)
    store.put("first", first)
    store.put("second", second)
    assert store.get("first") is first
    store.put("third", third)
    assert [store.get(key) for key in ("first", "second", "third")] == [first, None, third]
    assert store.nbytes == 36
    store.put("fourth", features(10))
    assert [store.get(key) for key in ("first", "third")] == [None, None]
    assert store.nbytes == 40


async def test_features_sent_twice_are_counted_once() -> None:
    """Two requests that sent the same medium at the same time leave one copy."""
    store = FeatureStore(max_bytes=40)
    again = features(6)
    store.put("one", features(6))
    store.put("one", again)
    assert store.get("one") is again
    assert store.nbytes == 24


async def test_what_is_too_large_drives_nothing_out() -> None:
    """Features larger than the store are not kept, and a store of 0 bytes keeps none."""
    store = FeatureStore(max_bytes=20)
    kept = features(5)
    store.put("kept", kept)
    store.put("large", features(6))
    assert store.get("large") is None
    assert store.get("kept") is kept
    nothing = FeatureStore(max_bytes=0)
    nothing.put("kept", kept)
    assert nothing.get("kept") is None


async def test_names_tell_apart_all_that_makes_features() -> None:
    """Another file, kind, option, encoder or scope is another name; the same ones are the same."""
    video = dataclasses.replace(MEDIUM, kind=MediaKind.VIDEO)
    other = dataclasses.replace(MEDIUM, digest=media_digest(b"other"))
    sized = dataclasses.replace(MEDIUM, options=b"\x08\x01")
    named: list[Any] = [(MEDIUM, "f"), (video, "f"), (other, "f"), (sized, "f"), (MEDIUM, "g"), (MEDIUM, "f", "s")]
    assert len({media_key(*names) for names in named}) == len(named)
    assert media_key(*named[0]) == media_key(Medium(MEDIUM.kind, MEDIUM.digest), "f")


async def test_an_encoder_is_its_weights_and_its_type() -> None:
    """Features of another type are never taken for those of this one."""
    named = [("f", 1), ("f", 3), ("g", 1)]
    assert len({encoder_name(*names) for names in named}) == len(named)


@pytest_asyncio.fixture(loop_scope="module")
async def running(serve_decoder: Serve) -> AsyncIterator[Running]:
    """A server that has seen nothing yet."""
    async with serve_decoder() as running:
        yield running


def asked_with(case: Case, **options: int) -> decoder_pb2.GenerateRequest:
    """The opening of a conversation whose media become pixels in another way."""
    request = open_request(case)
    request.open.media.CopyFrom(media_pb2.MediaOptions(**options))
    return request


async def ask(
    running: Running, case: Case, bundle: Bundle, request: decoder_pb2.GenerateRequest | None = None
) -> tuple[list[int], Answer]:
    """Ask and send what is needed: that, and the answer."""
    async with generate(running) as call:
        needed = await opened(call, request or open_request(case))
        await send(call, Sent(case, bundle).all(needed))
        await done_sending(call)
        return needed, Answer(await rest_of(call))


async def test_a_second_question_asks_for_nothing(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """Features that came once are not asked for again, and the answer is what it was."""
    case = cases["odd video and an image"]
    needed, first = await ask(running, case, bundle)
    assert needed == [0, 1]
    needed, second = await ask(running, case, bundle)
    assert needed == []
    assert second.token_ids == first.token_ids
    assert second.started.started.media_tokens == first.started.started.media_tokens


async def test_a_scope_uses_nothing_of_another(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """Features that came for one scope are asked for again by another; text that came is computed again, too."""

    def scoped(case: Case, scope: str) -> decoder_pb2.GenerateRequest:
        request = open_request(case)
        request.open.cache_scope = scope
        return request

    def cached(answer: Answer) -> int:
        return int(answer.finished.finished.usage.cached_tokens)

    seen, words = cases["one image"], cases["text alone"]
    for scope in ("one", "other", ""):
        for again in (False, True):
            needed, answer = await ask(running, seen, bundle, scoped(seen, scope))
            assert (needed == [], cached(answer) > 0) == (again, again)
            _, answer = await ask(running, words, bundle, scoped(words, scope))
            assert (cached(answer) > 0) == again
    error = await refused(running, scoped(seen, "s" * 129))
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "cache_scope")


async def test_only_what_is_new_is_asked_for(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """Of two pictures of which one was seen before the other is asked for, and each has its own features."""
    one, two = cases["one image"], cases["two images"]
    await ask(running, one, bundle)
    needed, got = await ask(running, two, bundle)
    assert needed == [1]
    assert got.token_ids == two.greedy[: len(got.token_ids)]


async def test_other_pixels_are_another_medium(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """The same file with other pixel limits is asked for anew; with the same ones it is not."""
    case = cases["one image"]
    assert (await ask(running, case, bundle))[0] == [0]
    limited = asked_with(case, max_pixels=8192)
    assert (await ask(running, case, bundle, limited))[0] == [0]
    assert (await ask(running, case, bundle, limited))[0] == []
    assert (await ask(running, case, bundle, asked_with(case, max_pixels=8193)))[0] == [0]


async def test_half_of_the_features_are_not_kept(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """A stream that breaks off leaves nothing behind: all of it is asked for again."""
    case = cases["one image"]
    sent = Sent(case, bundle)
    await refused(running, open_request(case), [sent.header(0), *list(sent.chunks(0))[:-1]])
    assert (await ask(running, case, bundle))[0] == [0]


async def test_a_store_that_is_off_asks_every_time(
    serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case]
) -> None:
    """Without room nothing is kept."""
    async with serve_decoder(feature_cache_bytes=0) as running:
        for _ in range(2):
            assert (await ask(running, cases["one image"], bundle))[0] == [0]


async def test_kept_features_count_while_they_are_used(
    serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case]
) -> None:
    """A request holds the bytes of what it was spared to send: they are bounded with all others', and return."""
    case = cases["one image"]
    size = case.features[0].nbytes
    endless = chat_pb2.GenerationOptions(max_tokens=2000, logit_bias=dict.fromkeys(bundle.tokens.eos, -100))
    async with serve_decoder(max_buffered_feature_bytes=2 * size - 1) as running:
        await ask(running, case, bundle)
        async with generate(running) as call:
            assert await opened(call, open_request(case, endless)) == []
            error = await refused(running, open_request(case))
            assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "FEATURE_MEMORY_FULL")
            assert error.retry_after
        await until_empty(running)
        assert (await ask(running, case, bundle))[0] == []
        await still_works(running, cases["text alone"])


async def test_kept_features_are_within_a_requests_own_bytes(
    serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case]
) -> None:
    """Two pictures that were seen one by one may be too much together: that is said when the request opens."""
    both = cases["two images"]
    (message,) = both.messages
    one, other = (
        dataclasses.replace(
            both,
            messages=(dataclasses.replace(message, parts=(part,)),),
            layouts=both.layouts[n : n + 1],
            features=both.features[n : n + 1],
        )
        for n, part in enumerate(part for part in message.parts if isinstance(part, Medium))
    )
    async with serve_decoder(max_feature_bytes=max(rows.nbytes for rows in both.features)) as running:
        for case in (one, other):
            assert (await ask(running, case, bundle))[0] == [0]
        error = await refused(running, open_request(both))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "FEATURES_TOO_LARGE")
        assert error.violations[0].field == "messages"


async def test_a_prompt_that_is_too_long_is_refused_when_it_opens(
    serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case]
) -> None:
    """What is known of kept media is checked at once: the context, and the tokens that are asked for."""
    case = cases["one image"]
    async with serve_decoder(context_length=200) as running:
        await ask(running, case, bundle)
        long = open_request(case, chat_pb2.GenerationOptions(max_tokens=200 - len(case.features[0])))
        error = await refused(running, long)
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "MAX_TOKENS_TOO_LARGE")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(np.nan, "FEATURES_NOT_FINITE"), (np.inf, "FEATURES_NOT_FINITE"), (3e38, "LOGITS_NOT_FINITE")],
)
async def test_bad_features_poison_no_cache(
    running: Running, bundle: Bundle, cases: dict[str, Case], number: float, reason: str
) -> None:
    """Features that are not finite are not kept, nor those whose logits are not: good ones then give the right answer.

    3e38 is finite itself: the sums of the first layer are not.
    """
    case = cases["one image"]
    bad = Sent(case, bundle)
    bad.rows[0] = np.full_like(bad.rows[0], number)
    error = await refused(running, open_request(case), bad.all([0]))
    assert (error.code, error.reason) == (Code.INTERNAL, reason)
    assert len(running.service.decoder.features) == 0
    await until_empty(running)
    async with generate(running) as call:
        assert await opened(call, open_request(case)) == [0]
        await send(call, Sent(case, bundle).all([0]))
        got = Answer(await rest_of(call))
    assert got.token_ids == case.greedy[: len(got.token_ids)]
    assert got.finished.finished.usage.cached_tokens == 0
