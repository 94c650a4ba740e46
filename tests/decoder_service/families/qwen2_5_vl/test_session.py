"""What a session of this family asks of the engine, and what it refuses."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

import exporter
from decoder_service.engine import EngineInfo, EngineRequest, SamplingParams, TokenDrawn
from decoder_service.families.registry import family_of
from decoder_service.request.feature_store import Features, encoder_name, media_key
from decoder_service.request.generation import Generation
from decoder_service.request.opening import Opening
from decoder_service.request.prompt import PromptBuilder
from decoder_service.request.session import open_session
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from tests.checkpoints import make_qwen2_5_vl
from tests.decoder_service.cases import TURNS, Case, make_case
from tests.decoder_service.scripted import ScriptedEngine, scripted_decoder
from tests.reference import Reference
from vlm.v1 import tensor_pb2

VIDEO = "odd video and an image"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A bundle, and conversations as transformers has them."""

    bundle: Bundle
    prompts: PromptBuilder
    reference: Reference

    def case(self, name: str) -> Case:
        """One conversation."""
        return make_case(self.reference, TURNS[name])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A small checkpoint whose videos use positions fast."""
    folder: Path = tmp_path_factory.mktemp("qwen2_5_vl")
    checkpoint = make_qwen2_5_vl(folder / "checkpoint", tokens_per_second=41)
    bundle = exporter.export(checkpoint, folder / "bundle", precision="fp32", progress=False)
    return Prepared(bundle, PromptBuilder.load(bundle.decoder_dir, family_of(bundle)), Reference(checkpoint))


async def asked(prepared: Prepared, case: Case, engine: ScriptedEngine, **limits: int) -> EngineRequest:
    """The request that the engine is given for a conversation whose features the decoder has kept."""
    decoder = scripted_decoder(prepared.bundle, prepared.prompts, engine, **limits)
    encoder = encoder_name(prepared.bundle.encoder_fingerprint, tensor_pb2.DATA_TYPE_UNSPECIFIED)
    for layout, rows in zip(case.layouts, case.features, strict=True):
        decoder.features.put(media_key(layout.medium, encoder), Features(layout, prepared.prompts.length(layout), rows))
    opening = Opening("r-1", case.messages, Generation(SamplingParams()))
    async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
        await session.start()
        async for _ in session.events():
            pass
    (request,) = engine.requests
    return request


@pytest.mark.parametrize("name", TURNS)
async def test_ids_and_positions_are_transformers(prepared: Prepared, name: str) -> None:
    """Of every conversation, with a name for each medium."""
    case = prepared.case(name)
    request = await asked(prepared, case, ScriptedEngine([TokenDrawn(65)]))
    expected = case.inputs.input_ids[0].numpy()
    tokens = prepared.bundle.media_tokens
    assert np.array_equal(request.token_ids, np.where(expected == tokens.video, tokens.image, expected))
    assert np.array_equal(request.positions[:, :-1], prepared.reference.positions(case.inputs).numpy())
    names = [span.key for span in request.media]
    assert len(set(names)) == len(names) == len(case.layouts)
    assert "" not in names


async def test_an_engine_with_positions_of_its_own_takes_pictures_alone(prepared: Prepared) -> None:
    """A video is refused, since the answer would be another one; a picture is answered."""

    class Own(ScriptedEngine):
        info = EngineInfo("own", "none", 1, 1, own_positions=True)

    with pytest.raises(ServiceError, match="--engine batch") as caught:
        await asked(prepared, prepared.case(VIDEO), Own([TokenDrawn(65)]))
    assert (caught.value.code, caught.value.reason) == (Code.UNIMPLEMENTED, "FIELD_UNIMPLEMENTED")
    request = await asked(prepared, prepared.case("two images"), Own([TokenDrawn(65)]))
    assert request.inputs["image_grid_thw"].shape == (2, 3)


async def test_a_video_may_use_up_the_positions(prepared: Prepared) -> None:
    """It reaches further than its tokens: what the model has no position for is refused in words."""
    case = prepared.case(VIDEO)
    reached = int(prepared.reference.positions(case.inputs).max())
    assert reached > case.inputs.input_ids.shape[1]
    await asked(prepared, case, ScriptedEngine([TokenDrawn(65)]), positions=reached + 1)
    with pytest.raises(ServiceError, match=f"position {reached} of the model's {reached}") as caught:
        await asked(prepared, case, ScriptedEngine([TokenDrawn(65)]), positions=reached)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "PROMPT_TOO_LONG")
