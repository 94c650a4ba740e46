"""What a session asks of the engine."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from decoder_service.chat import Medium, Message
from decoder_service.engine import EngineRequest, SamplingParams, TokenDrawn
from decoder_service.request.feature_store import Features, encoder_name, media_key
from decoder_service.request.generation import Generation
from decoder_service.request.opening import Opening
from decoder_service.request.prompt import PromptBuilder
from decoder_service.request.session import open_session
from serving.bundle import Bundle
from tests.decoder_service.cases import Case, named
from tests.decoder_service.scripted import ScriptedEngine, scripted_decoder
from vlm.v1 import tensor_pb2


def with_options(message: Message, options: bytes) -> Message:
    """The message with these options for its media."""
    return Message(
        message.role,
        tuple(
            dataclasses.replace(part, options=options) if isinstance(part, Medium) else part for part in message.parts
        ),
    )


async def asked(bundle: Bundle, prompts: PromptBuilder, case: Case, options: bytes) -> EngineRequest:
    """The request that the engine is given for a conversation whose features the decoder has kept."""
    engine = ScriptedEngine([TokenDrawn(65)])
    decoder = scripted_decoder(bundle, prompts, engine)
    encoder = encoder_name(bundle.encoder_fingerprint, tensor_pb2.DATA_TYPE_UNSPECIFIED)
    for layout, rows in zip(case.layouts, case.features, strict=True):
        known = dataclasses.replace(layout, medium=dataclasses.replace(layout.medium, options=options))
        decoder.features.put(media_key(known.medium, encoder), Features(known, prompts.length(known), rows))
    messages = tuple(with_options(message, options) for message in case.messages)
    opening = Opening("r-1", messages, Generation(SamplingParams()))
    async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
        assert session.intake.needed == ()
        await session.start()
        async for _ in session.events():
            pass
    (request,) = engine.requests
    return request


def keys(request: EngineRequest) -> list[str]:
    """The names of its media."""
    return [span.key for span in request.media]


@pytest.mark.parametrize("name", ["text alone", "two images", "odd video and an image"])
async def test_every_medium_is_named(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case], name: str) -> None:
    """The engine has a name for each image and each frame, all different here, and the features that were kept."""
    case = cases[name]
    request = await asked(bundle, prompts, case, b"")
    expected = case.request(prompts, tokens=1)
    assert named(request).media == expected.media
    assert np.array_equal(request.positions, expected.positions)
    names = keys(request)
    assert len(set(names)) == len(names)
    assert "" not in names
    assert [rows.tolist() for rows in request.features.arrays] == [rows.tolist() for rows in case.features]


async def test_names_are_of_the_content(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """The same conversation has the same names again; with other media options it has none of them."""
    case = cases["odd video and an image"]
    first = await asked(bundle, prompts, case, b"")
    again = await asked(bundle, prompts, case, b"")
    other = await asked(bundle, prompts, case, b"\x08\x01")
    assert keys(first) == keys(again)
    assert not set(keys(first)) & set(keys(other))
    assert first.token_ids.tolist() == other.token_ids.tolist()
    assert np.array_equal(first.positions, other.positions)
