"""Stubs of the two tiers, each a server of its own: `python -m benchmarks.stub_tiers --tier decoder --port N`.

They speak the protocol and compute nothing, so that the gateway in front of them is the bottleneck: the decoder answers
at once with `max_tokens` deltas of one token, the vision service with features of zeros.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import grpc
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from serving.main import main
from serving.media import media_digest
from serving.server import Service
from serving.settings import ServerSettings
from vlm.v1 import chat_pb2, decoder_pb2, decoder_pb2_grpc, media_pb2, tensor_pb2, vision_pb2, vision_pb2_grpc

MODEL = "stub"
WORD = "word "
"""Text of each token."""

_FINGERPRINT = "0" * 64
_TOKENS, _WIDTH = 4, 16


class StubSettings(ServerSettings):
    """Settings of a stub."""

    model_config = SettingsConfigDict(env_prefix="STUB_")

    tier: Literal["vision", "decoder"] = Field(description="The tier that it stands for.")


class StubVision(vision_pb2_grpc.VisionEncoderServicer):
    """A vision service whose features are zeros."""

    async def Encode(self, request: vision_pb2.EncodeRequest, context: Any) -> AsyncIterator[vision_pb2.EncodeResponse]:
        """A header and one chunk."""
        layout = media_pb2.MediaLayout(
            kind=request.kind,
            digest=media_digest(request.data),
            grid_thw=media_pb2.GridThw(t=1, h=4, w=4),
            token_count=_TOKENS,
        )
        features = tensor_pb2.TensorSpec(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[_TOKENS, _WIDTH])
        header = vision_pb2.EncodeHeader(layout=layout, features=features, encoder_fingerprint=_FINGERPRINT)
        yield vision_pb2.EncodeResponse(header=header)
        yield vision_pb2.EncodeResponse(chunk=tensor_pb2.TensorChunk(data=bytes(_TOKENS * _WIDTH * 4)))

    async def GetEncoder(self, request: vision_pb2.GetEncoderRequest, context: Any) -> vision_pb2.EncoderInfo:
        """What is loaded."""
        budget = media_pb2.MediaOptions(max_pixels=1 << 20, max_video_pixels=1 << 21, max_frames=32)
        return vision_pb2.EncoderInfo(
            model=MODEL,
            encoder_fingerprint=_FINGERPRINT,
            dtype=tensor_pb2.DATA_TYPE_FLOAT32,
            default_media=budget,
            published_media=budget,
            settings_digest="0",
        )


class StubDecoder(decoder_pb2_grpc.DecoderServicer):
    """A decoder that writes the same word over and over."""

    async def Generate(
        self, requests: AsyncIterator[decoder_pb2.GenerateRequest], context: Any
    ) -> AsyncIterator[decoder_pb2.GenerateResponse]:
        """The events of one answer."""
        opening = (await anext(requests)).open
        media = [part for message in opening.messages for part in message.parts if part.WhichOneof("part") == "image"]
        needed = decoder_pb2.MediaNeeded(media_indices=range(len(media)))
        yield decoder_pb2.GenerateResponse(media_needed=needed)
        if media:
            async for _ in requests:  # ends after the last feature
                pass
        tokens = opening.generation.max_tokens
        yield _response(started=chat_pb2.Started(model=MODEL, prompt_tokens=8, max_tokens=tokens))
        delta = _response(delta=chat_pb2.Delta(text=WORD, token_ids=[1]))
        for _ in range(tokens):
            yield delta
        usage = chat_pb2.Usage(prompt_tokens=8, completion_tokens=tokens)
        yield _response(finished=chat_pb2.Finished(reason=chat_pb2.FINISH_REASON_STOP, usage=usage))

    async def GetModel(self, request: decoder_pb2.GetModelRequest, context: Any) -> chat_pb2.Model:
        """What is loaded."""
        return chat_pb2.Model(id=MODEL, encoder_fingerprint=_FINGERPRINT, context_length=1 << 15, images=True)


def _response(**event: Any) -> decoder_pb2.GenerateResponse:
    return decoder_pb2.GenerateResponse(event=chat_pb2.ChatEvent(**event))


class StubService(Service):
    """A stub as a server.

    Args:
        settings: Its settings.
    """

    name = "stub"

    def __init__(self, settings: StubSettings) -> None:
        self._tier = settings.tier
        proto = vision_pb2 if settings.tier == "vision" else decoder_pb2
        self.grpc_names = tuple(service.full_name for service in proto.DESCRIPTOR.services_by_name.values())

    async def start(self, set_serving: Callable[[bool], None]) -> None:
        """Nothing is loaded."""

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        if self._tier == "vision":
            vision_pb2_grpc.add_VisionEncoderServicer_to_server(StubVision(), server)  # type: ignore[abstract]  # the gateway calls no others here
        else:
            decoder_pb2_grpc.add_DecoderServicer_to_server(StubDecoder(), server)  # type: ignore[abstract]  # likewise

    async def stop(self) -> None:
        """Nothing was acquired."""


if __name__ == "__main__":
    sys.exit(main("stub", StubSettings, StubService))
