"""One request over both tiers, in-process and over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import pytest

from gateway.budget import Budget
from gateway.conductor import Conductor, Policy
from gateway.media import RequestLimits
from gateway.retry import Backoff, Deadline
from serving.errors import Code, ServiceError
from serving.media import media_digest
from tests.gateway.fakes import (
    EncodeCall,
    FakeDecoder,
    FakeVision,
    GenerateCall,
    InProcessDecoder,
    InProcessVision,
    down,
)
from tests.gateway.requests import answer, ask, chat, image, kinds, text, user, video
from vlm.v1 import chat_pb2, gateway_pb2, media_pb2, tensor_pb2, vision_pb2

Conduct = Callable[..., Conductor]
EVENTS = ["started", "delta", "delta", "delta", "finished"]


async def test_text_alone_never_touches_the_vision_tier(
    conduct: Conduct, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """A request without media is answered by the decoder alone, and its vision time is 0."""
    events = await chat(conduct(), ask(text("Hello")))
    assert kinds(events) == EVENTS
    assert answer(events) == "A red circle."
    assert vision.calls == []
    assert events[-1].finished.timings.vision_seconds == 0
    assert decoder.calls[0].half_closed


async def test_features_arrive_whole(conduct: Conduct, vision: FakeVision, decoder: FakeDecoder) -> None:
    """Each needed medium's features reach the decoder byte for byte, its header before its chunks."""
    await chat(conduct(), ask(image(b"file one"), text("and"), image(b"file two"), video(b"file three")))
    call = decoder.calls[0]
    assert {number: bytes(features) for number, features in call.features.items()} == {
        number: vision.features(data) for number, data in enumerate((b"file one", b"file two", b"file three"))
    }
    for number in range(3):
        assert [what for what, of in call.order if of == number] == ["header", *["chunk"] * 4]
    assert {call.request.data: call.request.kind for call in vision.calls} == {
        b"file one": media_pb2.MEDIA_KIND_IMAGE,
        b"file two": media_pb2.MEDIA_KIND_IMAGE,
        b"file three": media_pb2.MEDIA_KIND_VIDEO,
    }


async def test_the_decoder_gets_digests_and_everything_else_as_sent(conduct: Conduct, decoder: FakeDecoder) -> None:
    """`open` holds the client's messages, with digests and options in numbers in the place of files."""
    request = ask(
        text("Look: "), image(b"file one"), generation={"top_k": 3, "stop": ["x"]}, media={"max_pixels": 5000}
    )
    request.tools.add(name="f")
    request.tool_choice.required = True
    sent = gateway_pb2.ChatRequest.FromString(request.SerializeToString())
    await chat(conduct(), request)
    assert request == sent
    opening = decoder.calls[0].open
    assert opening is not None
    named = media_pb2.Media(digest=media_digest(b"file one"), options={"max_pixels": 5000})
    assert list(opening.messages) == [user(text("Look: "), chat_pb2.Part(image=named))]
    assert opening.request_id == "r-1"
    assert opening.generation == request.generation
    assert not opening.HasField("media")
    assert opening.encoder_dtype == tensor_pb2.DATA_TYPE_FLOAT32
    assert list(opening.tools) == list(request.tools)
    assert opening.tool_choice == request.tool_choice


async def test_options_that_were_not_sent_stay_unset(conduct: Conduct, decoder: FakeDecoder) -> None:
    """An absent message field of the request is absent in `open`, too."""
    await chat(conduct(), ask(text("Hello")))
    opening = decoder.calls[0].open
    assert opening is not None
    assert not any(opening.HasField(name) for name in ("generation", "media", "tool_choice"))


def options_sent(vision: FakeVision) -> list[media_pb2.MediaOptions]:
    """The options of each medium that was encoded."""
    return [call.request.options for call in vision.calls]


ORIGINAL, HIGH = {"detail": media_pb2.DETAIL_ORIGINAL}, {"detail": media_pb2.DETAIL_HIGH}


@pytest.mark.parametrize(
    ("sent", "own", "expected"),
    [
        ({}, {}, {"max_pixels": 500}),
        ({"max_pixels": 700}, {}, {"max_pixels": 700}),
        ({"max_pixels": 700}, {"max_pixels": 600}, {"max_pixels": 600}),
        ({"min_pixels": 800}, {}, {"min_pixels": 800, "max_pixels": 800}),
        ({"min_pixels": 300}, {"max_pixels": 200}, {"min_pixels": 200, "max_pixels": 200}),
        (ORIGINAL, {}, {"max_pixels": 4000}),
        ({"max_pixels": 700}, HIGH, {"max_pixels": 500}),
        ({**ORIGINAL, "max_pixels": 900}, {}, {"max_pixels": 900}),
        ({"fps": 3.0, "max_frames": 2}, {}, {"max_pixels": 500}),
    ],
)
def test_a_picture_has_a_budget(sent: dict[str, int], own: dict[str, int], expected: dict[str, int]) -> None:
    """The tier's default, the request's and the medium's own options become numbers."""
    options = Budget(FakeVision().info()).options(
        media_pb2.MEDIA_KIND_IMAGE, media_pb2.MediaOptions(**sent), media_pb2.MediaOptions(**own)
    )
    assert options == media_pb2.MediaOptions(**expected)


async def test_both_tiers_get_the_same_options(conduct: Conduct, vision: FakeVision, decoder: FakeDecoder) -> None:
    """What is encoded with some options is looked up and kept under the same ones."""
    part = chat_pb2.Part(image=media_pb2.Media(data=b"file one", options={"min_pixels": 90}))
    await chat(conduct(), ask(part, image(b"file two"), media={"max_pixels": 700}))
    expected = [media_pb2.MediaOptions(min_pixels=90, max_pixels=700), media_pb2.MediaOptions(max_pixels=700)]
    assert sorted(options_sent(vision), key=lambda options: -options.min_pixels) == expected
    opening = decoder.calls[0].open
    assert opening is not None
    assert [part.image.options for part in opening.messages[0].parts] == expected


async def test_a_video_has_a_budget(conduct: Conduct, vision: FakeVision) -> None:
    """Its own three bounds; those of pictures say nothing about it."""
    await chat(conduct(), ask(video(b"file one"), media={"max_pixels": 9, "fps": 2.0, "max_frames": 20}))
    assert options_sent(vision) == [media_pb2.MediaOptions(max_video_pixels=900, max_frames=20, fps=2.0)]


async def test_a_low_budget_is_never_more_than_the_default(conduct: Conduct, vision: FakeVision) -> None:
    """Where the default is small, `low` is the default."""
    await chat(conduct(), ask(image(b"file one"), video(b"file two"), media={"detail": media_pb2.DETAIL_LOW}))
    by_kind = {call.request.kind: call.request.options for call in vision.calls}
    assert by_kind[media_pb2.MEDIA_KIND_IMAGE] == media_pb2.MediaOptions(max_pixels=500)
    assert by_kind[media_pb2.MEDIA_KIND_VIDEO] == media_pb2.MediaOptions(max_video_pixels=900, max_frames=8)


async def test_the_same_file_with_other_options_is_another_medium(conduct: Conduct, vision: FakeVision) -> None:
    """Once small and once large, a file is encoded twice; twice alike, once."""
    small = chat_pb2.Part(image=media_pb2.Media(data=b"file one", options={"max_pixels": 100}))
    named = chat_pb2.Part(image=media_pb2.Media(data=b"file one", options={"max_pixels": 500}))
    await chat(conduct(), ask(image(b"file one"), small, named))
    assert sorted(options.max_pixels for options in options_sent(vision)) == [100, 500]


async def test_bad_options_are_refused_before_anything_is_sent(conduct: Conduct, vision: FakeVision) -> None:
    """The request's and a medium's own options are checked, and named, by the gateway."""
    for options, own, field in (
        ({"fps": 1000}, {}, "media.fps"),
        ({"detail": 9}, {}, "media.detail"),
        ({}, {"max_pixels": 0}, "messages[0].parts[0].image.options.max_pixels"),
        ({}, {"min_pixels": 9, "max_pixels": 8}, "messages[0].parts[0].image.options.max_pixels"),
    ):
        part = chat_pb2.Part(image=media_pb2.Media(data=b"file one", options=own))
        with pytest.raises(ServiceError) as caught:
            await chat(conduct(), ask(part, media=options))
        assert (caught.value.code, caught.value.violations[0].field) == (Code.INVALID_ARGUMENT, field)
    assert vision.calls == []


async def test_settings_that_have_changed_are_learnt_again(conduct: Conduct, vision: FakeVision) -> None:
    """A tier that was started anew with another budget is asked once more, unseen by the client."""
    conductor = conduct()
    await chat(conductor, ask(image(b"file one")))
    vision.max_pixels = 300
    assert answer(await chat(conductor, ask(image(b"file one")))) == "A red circle."
    assert [options.max_pixels for options in options_sent(vision)] == [500, *[500] * 3, 300]  # three attempts


async def test_replicas_that_disagree_are_refused(
    conduct: Conduct, vision: FakeVision, decoder: FakeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where learning again does not help the client is told so, and nothing of an answer has come."""
    conductor = conduct()
    other = FakeVision(max_pixels=300).info()
    monkeypatch.setattr(vision, "info", lambda: other)
    with pytest.raises(ServiceError) as caught:
        await chat(conductor, ask(image(b"file one")))
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "ENCODER_SETTINGS_DIFFER")
    assert not any(call.complete for call in decoder.calls)
    assert answer(await chat(conductor, ask(text("Hello")))) == "A red circle."


async def test_a_replica_that_is_set_otherwise_is_passed_over(decoder: FakeDecoder) -> None:
    """Of two replicas one has another budget, as in the middle of a rollout: the other one encodes, unseen."""
    same, other = FakeVision(max_pixels=500), FakeVision(max_pixels=300)
    tiers = InProcessVision(other, same), InProcessDecoder(decoder)
    conductor = Conductor(*tiers, RequestLimits(), Policy(backoff=Backoff(first=0.0)), encoder=same.info())
    for _ in range(3):
        assert answer(await chat(conductor, ask(image(b"file one")))) == "A red circle."
    assert [options.max_pixels for options in options_sent(same)] == [500] * 3
    assert not any(call.complete for call in other.calls)


async def test_text_alone_needs_no_budget(
    conduct: Conduct, vision: FakeVision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vision tier is not asked for its settings where nothing is shown."""
    monkeypatch.setattr(vision, "info", lambda: pytest.fail("it was asked"))
    assert answer(await chat(conduct(), ask(text("Hello")))) == "A red circle."


async def test_progress_is_relayed(conduct: Conduct, vision: FakeVision, decoder: FakeDecoder) -> None:
    """A client that asks hears of the encoding after `started`; the decoder hears of it whether it is asked or not."""
    told = asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "read" and call.progress:
            told.set()

    async def wait(call: EncodeCall, chunk: int) -> None:
        if chunk == 2:  # the client has had time to hear of what came before
            await told.wait()

    vision.progress, vision.hook, decoder.hook = 5, wait, hook
    decoder.start_early = True
    request = ask(image(b"file one"), report_progress=True)
    events = await chat(conduct(), request)
    progress = [event.progress for event in events if event.HasField("progress")]
    assert [event.WhichOneof("event") for event in events][:2] == ["started", "progress"]
    assert {(one.stage, one.total) for one in progress} == {(chat_pb2.STAGE_ENCODING, 16)}
    assert all(one.done in (0, 5, 16) for one in progress)
    assert kinds(await chat(conduct(), ask(image(b"file one")))) == ["started", "delta", "delta", "delta", "finished"]
    assert decoder.calls[0].open is not None
    assert decoder.calls[0].open.report_progress
    assert all(set(call.progress) == {5} for call in decoder.calls)


async def test_only_needed_media_are_encoded(conduct: Conduct, vision: FakeVision, decoder: FakeDecoder) -> None:
    """What the decoder has cached is not encoded, and of the same file twice only the first is."""
    decoder.cached = {media_digest(b"file old")}
    await chat(conduct(), ask(image(b"file old"), image(b"file new"), image(b"file new")))
    assert [call.request.data for call in vision.calls] == [b"file new"]
    assert set(decoder.calls[0].features) == {1}


async def test_media_are_encoded_in_parallel(conduct: Conduct, vision: FakeVision) -> None:
    """As many encodes run at once as the policy allows, and no more."""
    running, most = 0, 0
    full = asyncio.Event()

    async def hook(call: EncodeCall, chunk: int) -> None:
        nonlocal running, most
        if chunk == -1:
            running += 1
            most = max(most, running)
            if running == 2:
                full.set()
            await full.wait()  # nobody goes on before two are there
        if chunk == vision.chunks - 1:
            running -= 1

    vision.hook = hook
    files = [b"file %d" % i for i in range(5)]
    await chat(conduct(encode_concurrency=2), ask(*map(image, files)))
    assert most == 2
    assert sorted(call.request.data for call in vision.calls) == files


async def test_features_are_relayed_as_they_come(conduct: Conduct, vision: FakeVision, decoder: FakeDecoder) -> None:
    """The decoder has the first chunks of a medium while the encoder has not sent the last."""
    half = asyncio.Event()

    async def encoder(call: EncodeCall, chunk: int) -> None:
        if chunk == 2:
            await half.wait()

    async def engine(call: GenerateCall, stage: str) -> None:
        if stage == "read" and len(call.order) == 3:  # the header and two chunks
            half.set()

    vision.hook, decoder.hook = encoder, engine
    assert kinds(await chat(conduct(), ask(image(b"file one")))) == EVENTS


async def test_a_decoder_that_takes_nothing_stops_the_encoders(vision: FakeVision, decoder: FakeDecoder) -> None:
    """Of feature maps that nobody takes the gateway holds a few chunks, however large they are and however many."""
    vision.chunks = 1000
    reads = asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "read":
            await reads.wait()

    decoder.hook = hook
    conductor = Conductor(
        InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy(encode_concurrency=3)
    )
    asking = asyncio.create_task(chat(conductor, ask(*[image(b"file %d" % i) for i in range(3)])))
    await vision.called.wait()
    for _ in range(1000):  # turns of the loop: enough to send all
        await asyncio.sleep(0)
    # 2 in the queue, 1 with its writer, 1 in the pipe, and 1 with each encode.
    assert sum(call.sent for call in vision.calls) <= 2 + 1 + 1 + 3
    reads.set()
    await asking
    assert all(call.complete for call in vision.calls)


async def test_events_are_relayed_as_they_come(conduct: Conduct, decoder: FakeDecoder) -> None:
    """The client has a delta while the decoder still works on the next."""
    goes_on = asyncio.Semaphore(1)

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "delta":
            await goes_on.acquire()

    decoder.hook = hook
    events = conduct().chat(ask(text("Hello")), request_id="r", deadline=Deadline(30))
    words = []
    async with contextlib.aclosing(events):
        async for event in events:
            if event.WhichOneof("event") == "delta":
                words.append(event.delta.text)
                goes_on.release()
    assert words == list(decoder.words)


async def test_timings_are_filled_in(conduct: Conduct) -> None:
    """The gateway adds what only it has seen, and leaves the decoder's own figures alone."""
    events = await chat(conduct(), ask(image(b"file one")))
    timings = events[-1].finished.timings
    assert timings.queue_seconds == 0.5
    assert 0 < timings.vision_seconds <= timings.time_to_first_token_seconds


async def test_the_deadline_is_passed_on(conduct: Conduct, vision: FakeVision, decoder: FakeDecoder) -> None:
    """Both tiers are told the time that is left."""
    await chat(conduct(), ask(image(b"file one")), seconds=20.0)
    assert 10 < vision.calls[0].seconds < 22  # gRPC rounds a little up
    assert 10 < decoder.calls[0].seconds < 22


async def test_a_client_that_leaves_cancels_both_tiers(
    conduct: Conduct, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """Closing the answer while features are on their way ends the encode and the generation."""
    on_its_way, never = asyncio.Event(), asyncio.Event()

    async def hook(call: EncodeCall, chunk: int) -> None:
        if chunk == 2:
            on_its_way.set()
            await never.wait()

    vision.hook = hook
    asking = asyncio.create_task(chat(conduct(), ask(image(b"file one"), image(b"file two"))))
    await on_its_way.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    for call in (*vision.calls, *decoder.calls):
        await call.ended.wait()
        assert not call.complete


async def test_a_client_that_leaves_midway_cancels_the_decoder(conduct: Conduct, decoder: FakeDecoder) -> None:
    """Closing the answer after a delta ends the generation."""
    never = asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "finish":
            await never.wait()

    decoder.hook = hook
    events = conduct().chat(ask(text("Hello")), request_id="r", deadline=Deadline(30))
    async with contextlib.aclosing(events):
        async for event in events:
            if event.WhichOneof("event") == "delta":
                break
    await decoder.calls[0].ended.wait()
    assert not decoder.calls[0].complete


async def test_a_decoder_that_fails_cancels_the_encodes(
    conduct: Conduct, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """The decoder's own error reaches the client, and no encoder goes on working for it."""
    never = asyncio.Event()

    async def encoder(call: EncodeCall, chunk: int) -> None:
        if chunk == 2:
            await never.wait()

    async def engine(call: GenerateCall, stage: str) -> None:
        if stage == "read" and len(call.order) == 3:
            raise ServiceError(Code.RESOURCE_EXHAUSTED, "FULL", "the decoder is full", retry_after=2.0)

    vision.hook, decoder.hook = encoder, engine
    with pytest.raises(ServiceError, match="the decoder is full") as caught:
        await chat(conduct(), ask(image(b"file one")))
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "FULL")
    assert caught.value.retry_after == 2.0
    await vision.calls[0].ended.wait()
    assert not vision.calls[0].complete
    assert len(decoder.calls) == 1


async def test_a_medium_that_cannot_be_read_cancels_the_decoder(
    conduct: Conduct, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """The vision service's error names the client's field, in the violation and in the message; nothing is retried."""
    with pytest.raises(ServiceError) as caught:
        await chat(conduct(), ask(text("Look: "), image(b"file one"), image(b"rubbish")))
    error = caught.value
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "IMAGE_UNREADABLE")
    assert [violation.field for violation in error.violations] == ["messages[0].parts[2].image"]
    assert error.message == "messages[0].parts[2].image: cannot be read as an image"
    assert len(vision.calls) == 2
    await decoder.calls[0].ended.wait()
    assert not decoder.calls[0].complete
    assert len(decoder.calls) == 1


async def test_an_option_of_the_media_is_named_as_the_client_named_it(conduct: Conduct) -> None:
    """`options.x` of the vision service is `media.x` of the client."""
    with pytest.raises(ServiceError) as caught:
        await chat(conduct(), ask(image(b"file one"), media={"min_pixels": 2000}))
    assert caught.value.violations[0].field == "media.min_pixels"
    assert caught.value.message == "media.min_pixels: is over 1000"
    own = chat_pb2.Part(image=media_pb2.Media(data=b"file one", options={"min_pixels": 2000}))
    with pytest.raises(ServiceError) as caught:
        await chat(conduct(), ask(own, media={"max_pixels": 3000}))
    assert caught.value.violations[0].field == "messages[0].parts[0].image.options.min_pixels"


async def test_another_encoder_is_refused_by_the_decoder(conduct: Conduct, vision: FakeVision) -> None:
    """The decoder's FAILED_PRECONDITION reaches the client, also while chunks are being written."""
    vision.fingerprint = "1" * 64
    vision.chunks, vision.chunk_bytes = 16, 1 << 20
    with pytest.raises(ServiceError) as caught:
        await chat(conduct(), ask(image(b"file one")))
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "ENCODER_MISMATCH")


@pytest.mark.parametrize("chunk", [-1, 0, 2])
async def test_a_lost_encode_is_done_again(
    chunk: int, conduct: Conduct, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """A medium whose encoder goes down is encoded again: its header comes again, and the features are whole."""
    lost = False

    async def hook(call: EncodeCall, at: int) -> None:
        nonlocal lost
        if at == chunk and not lost:
            lost = True
            raise down()

    vision.hook = hook
    events = await chat(conduct(), ask(image(b"file one")))
    assert kinds(events) == EVENTS
    assert len(vision.calls) == 2
    assert bytes(decoder.calls[0].features[0]) == vision.features(b"file one")
    headers = [what for what, _ in decoder.calls[0].order].count("header")
    assert headers == (1 if chunk == -1 else 2)


async def test_a_vision_tier_that_stays_away_is_named(
    conduct: Conduct, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """After the attempts the client gets UNAVAILABLE with the tier's name; the generation is cancelled, not retried."""

    async def hook(call: EncodeCall, chunk: int) -> None:
        raise down()

    vision.hook = hook
    with pytest.raises(ServiceError) as caught:
        await chat(conduct(encode_attempts=2), ask(image(b"file one")))
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "VISION_UNAVAILABLE")
    assert "after 2 attempts: the replica goes down" in caught.value.message
    assert caught.value.retry_after is not None
    assert len(vision.calls) == 2
    await decoder.calls[0].ended.wait()
    assert len(decoder.calls) == 1


@pytest.mark.parametrize("stage", ["open", "read", "start", "delta"])
async def test_a_decoder_lost_before_the_first_token_is_replaced(
    stage: str, conduct: Conduct, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """The request is made again from the start; the client sees one `started` and the whole answer."""
    lost = False

    async def hook(call: GenerateCall, at: str) -> None:
        nonlocal lost
        if at == stage and not lost:
            lost = True
            raise down()

    decoder.hook = hook
    events = await chat(conduct(), ask(image(b"file one")))
    assert kinds(events) == EVENTS
    assert answer(events) == "A red circle."
    assert len(decoder.calls) == 2
    assert bytes(decoder.calls[1].features[0]) == vision.features(b"file one")


async def test_a_decoder_lost_after_the_first_token_is_not_replaced(conduct: Conduct, decoder: FakeDecoder) -> None:
    """The client keeps the tokens so far and gets UNAVAILABLE."""

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "finish":
            raise down()

    decoder.hook = hook
    events = conduct().chat(ask(text("Hello")), request_id="r", deadline=Deadline(30))
    async with contextlib.aclosing(events):
        seen = [await anext(events) for _ in range(4)]
        with pytest.raises(ServiceError) as caught:
            await anext(events)
    assert answer(seen) == "A red circle."
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "DECODER_UNAVAILABLE")
    assert "in the middle of the answer, after 3 tokens" in caught.value.message
    assert len(decoder.calls) == 1


async def test_a_decoder_tier_that_stays_away_is_named(conduct: Conduct, decoder: FakeDecoder) -> None:
    """After the attempts the client gets UNAVAILABLE that names the tier."""

    async def hook(call: GenerateCall, stage: str) -> None:
        raise down()

    decoder.hook = hook
    with pytest.raises(ServiceError) as caught:
        await chat(conduct(decode_attempts=3), ask(text("Hello")))
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "DECODER_UNAVAILABLE")
    assert len(decoder.calls) == 3


@pytest.mark.parametrize("tier", ["vision", "decoder"])
async def test_other_failures_are_not_retried(
    tier: str, conduct: Conduct, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """A tier that is full says so to the client at once, with the time to wait."""

    async def hook(call: object, stage: object) -> None:
        raise ServiceError(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", "the queue is full", retry_after=3.0)

    if tier == "vision":
        vision.hook = hook
    else:
        decoder.hook = hook
    with pytest.raises(ServiceError, match="the queue is full") as caught:
        await chat(conduct(), ask(image(b"file one")))
    assert caught.value.retry_after == 3.0
    assert len(vision.calls if tier == "vision" else decoder.calls) == 1


async def test_no_attempt_is_made_past_the_deadline(conduct: Conduct, decoder: FakeDecoder) -> None:
    """A request that is out of time fails with DEADLINE_EXCEEDED, whatever else would be tried."""
    with pytest.raises(ServiceError, match="within its") as caught:
        await chat(conduct(), ask(text("Hello")), seconds=0.0)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert decoder.calls == []


async def test_features_that_end_early_fail_the_request(conduct: Conduct, vision: FakeVision) -> None:
    """A vision service that sends less than it announced does not leave the decoder waiting, nor blame the client."""
    whole = vision.features
    vision.features = lambda data: whole(data) + bytes(16)  # type: ignore[method-assign]
    with pytest.raises(ServiceError, match="ended before all features had come") as caught:
        await chat(conduct(), ask(image(b"file one")))
    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "DECODER_PROTOCOL")


async def test_a_vision_service_that_breaks_the_protocol(conduct: Conduct, vision: FakeVision) -> None:
    """Chunks without a header are an INTERNAL error that names the tier."""

    async def headless(request: object, seconds: float) -> AsyncGenerator[vision_pb2.EncodeResponse, None]:
        yield vision_pb2.EncodeResponse(chunk={"data": b"x"})

    vision.encode = headless  # type: ignore[method-assign]
    with pytest.raises(ServiceError, match="sent chunk where it must not") as caught:
        await chat(conduct(), ask(image(b"file one")))
    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "VISION_PROTOCOL")


async def test_a_deadline_of_a_service_keeps_its_reason(conduct: Conduct, decoder: FakeDecoder) -> None:
    """A service that waited too long by its own rules says so itself."""

    async def hook(call: GenerateCall, stage: str) -> None:
        raise ServiceError(Code.DEADLINE_EXCEEDED, "MEDIA_TIMEOUT", "the features did not come")

    decoder.hook = hook
    with pytest.raises(ServiceError, match="did not come") as caught:
        await chat(conduct(), ask(text("Hello")))
    assert caught.value.reason == "MEDIA_TIMEOUT"


async def test_a_decoder_that_asks_for_what_is_not_there_fails_the_request(
    conduct: Conduct, decoder: FakeDecoder
) -> None:
    """Numbers of media that the request does not have are an INTERNAL error, not a crash."""
    decoder.needed = lambda opening: [1]  # type: ignore[method-assign]
    with pytest.raises(ServiceError, match="asks for media") as caught:
        await chat(conduct(), ask(image(b"file one")))
    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "DECODER_PROTOCOL")


async def test_the_decoder_judges_the_messages(conduct: Conduct) -> None:
    """What the decoder says about the client's fields is passed on as it is."""
    with pytest.raises(ServiceError) as caught:
        await chat(conduct(), gateway_pb2.ChatRequest())
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "messages"


async def test_count_tokens(conduct: Conduct, vision: FakeVision, decoder: FakeDecoder) -> None:
    """Every medium is laid out, the same file once, and the decoder counts with a layout for each."""
    request = gateway_pb2.CountTokensRequest(
        messages=[user(image(b"file one"), text("x"), video(b"file three"), image(b"file one"))],
        media={"max_pixels": 5000},
        return_token_ids=True,
        model="m",
    )
    counted = await conduct().count_tokens(request, request_id="r", deadline=Deadline(30))
    assert (counted.prompt_tokens, counted.media_tokens, list(counted.token_ids)) == (10 + 26, 26, [1, 2, 3])
    assert sorted(described.data for described in vision.described) == [b"file one", b"file three"]
    assert {described.data: described.options for described in vision.described} == {
        b"file one": media_pb2.MediaOptions(max_pixels=5000),
        b"file three": media_pb2.MediaOptions(max_video_pixels=900, max_frames=8),
    }
    assert list(counted.media) == list(decoder.counted[0].layouts)
    question = decoder.counted[0]
    assert [layout.digest for layout in question.layouts] == [
        media_digest(data) for data in (b"file one", b"file three", b"file one")
    ]
    assert question.messages[0].parts[0].image.digest == media_digest(b"file one")
    assert question.model == "m"
    assert vision.calls == []


async def test_count_tokens_names_the_clients_field(conduct: Conduct) -> None:
    """A medium that cannot be laid out is named as the client named it."""
    request = gateway_pb2.CountTokensRequest(messages=[user(text("x")), user(image(b"rubbish"))])
    with pytest.raises(ServiceError) as caught:
        await conduct().count_tokens(request, request_id="r", deadline=Deadline(30))
    assert caught.value.violations[0].field == "messages[1].parts[0].image"


async def test_count_tokens_checks_what_the_decoder_is_not_shown(conduct: Conduct) -> None:
    """Options of media, also where there are no media."""
    request = gateway_pb2.CountTokensRequest(messages=[user(text("x"))], media={"fps": 1000})
    with pytest.raises(ServiceError) as caught:
        await conduct().count_tokens(request, request_id="r", deadline=Deadline(30))
    assert (caught.value.code, caught.value.violations[0].field) == (Code.INVALID_ARGUMENT, "media.fps")


async def test_models(conduct: Conduct, decoder: FakeDecoder) -> None:
    """What is served is what the decoder has loaded."""
    assert await conduct().models(deadline=Deadline(30)) == [decoder.model()]
