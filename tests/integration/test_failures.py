"""What goes wrong is said in a typed error that names the field, and harms nobody else."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import exporter
from serving.errors import Code
from serving.status import from_rpc_error
from tests.checkpoints import make_checkpoint
from tests.pictures import noise, png, video
from tests.system import triptych_system
from vlm.v1 import chat_pb2, gateway_pb2, gateway_pb2_grpc, media_pb2

CONTEXT = 512
IMAGE = "messages[0].parts[1].image"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateway_pb2_grpc.GatewayStub]:
    """A gateway with a model of a short context behind it."""
    folder: Path = tmp_path_factory.mktemp("failures")
    checkpoint = make_checkpoint(folder / "checkpoint", context=CONTEXT)
    bundle = exporter.export(checkpoint, folder / "bundle", precision="int4")
    options = [("grpc.max_receive_message_length", 1 << 27), ("grpc.max_send_message_length", 1 << 27)]
    with triptych_system(bundle.root) as address, grpc.insecure_channel(address, options=options) as channel:
        yield gateway_pb2_grpc.GatewayStub(channel)


def _jpeg() -> bytes:
    out = io.BytesIO()
    noise(256, 256).save(out, "JPEG")
    return out.getvalue()


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def _image(data: bytes) -> dict[str, object]:
    return {"messages": [{"role": chat_pb2.ROLE_USER, "parts": [{"text": "x"}, {"image": {"data": data}}]}]}


def _message(**fields: object) -> dict[str, object]:
    return {"messages": [fields]}


def _text(text: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": chat_pb2.ROLE_USER, "parts": [{"text": text}]}], **more}


def _clip() -> bytes:
    return video([noise(64, 64, seed) for seed in range(8)], 4)


CASES: dict[str, tuple[dict[str, object], Code, str]] = {
    "a truncated JPEG": (_image(_jpeg()[:-2000]), Code.INVALID_ARGUMENT, IMAGE),
    "a text file named .png": (_image(b"this is text"), Code.INVALID_ARGUMENT, IMAGE),
    "a 60,000 x 60,000 PNG header": (
        _image(_png_header(60000, 60000)),
        Code.RESOURCE_EXHAUSTED,
        IMAGE,
    ),
    "an empty file": (_image(b""), Code.INVALID_ARGUMENT, IMAGE),
    "an image 300 times as wide as high": (
        _image(png(noise(3000, 10))),
        Code.INVALID_ARGUMENT,
        IMAGE,
    ),
    "half a video": (
        {"messages": [{"role": chat_pb2.ROLE_USER, "parts": [{"video": {"data": _clip()[:300]}}]}]},
        Code.INVALID_ARGUMENT,
        "messages[0].parts[0].video",
    ),
    "no messages": ({"messages": []}, Code.INVALID_ARGUMENT, "messages"),
    "a role that is not set": (_message(parts=[{"text": "x"}]), Code.INVALID_ARGUMENT, "messages[0].role"),
    "an unknown role": (
        {"messages": [{"role": 77, "parts": [{"text": "x"}]}]},
        Code.INVALID_ARGUMENT,
        "messages[0].role",
    ),
    "no parts": (_message(role=chat_pb2.ROLE_USER), Code.INVALID_ARGUMENT, "messages[0].parts"),
    "an empty part": (
        {"messages": [{"role": chat_pb2.ROLE_USER, "parts": [{}]}]},
        Code.INVALID_ARGUMENT,
        "messages[0].parts[0]",
    ),
    "a prompt longer than the context": (_text("word " * 2000), Code.RESOURCE_EXHAUSTED, "messages"),
    "more tokens than there is room for": (
        _text("x", generation={"max_tokens": CONTEXT}),
        Code.INVALID_ARGUMENT,
        "generation.max_tokens",
    ),
    "a temperature too high": (
        _text("x", generation={"temperature": 3}),
        Code.INVALID_ARGUMENT,
        "generation.temperature",
    ),
    "a temperature that is no number": (
        _text("x", generation={"temperature": float("nan")}),
        Code.INVALID_ARGUMENT,
        "generation.temperature",
    ),
    "media options out of range": (
        {**_image(png(noise(64, 64))), "media": {"min_pixels": 5, "max_pixels": 4}},
        Code.INVALID_ARGUMENT,
        "media.max_pixels",
    ),
    "an image by URL": (
        {"messages": [{"role": chat_pb2.ROLE_USER, "parts": [{"image": {"url": "http://example.com/a.png"}}]}]},
        Code.UNIMPLEMENTED,
        "messages[0].parts[0].image.url",
    ),
    "a tool's name": (_text("x", tools=[{"name": "a b"}]), Code.INVALID_ARGUMENT, "tools[0].name"),
    "too many alternatives": (_text("x", generation={"logprobs": 21}), Code.INVALID_ARGUMENT, "generation.logprobs"),
    "a response format": (
        _text("x", generation={"response_format": {"regex": "(a"}}),
        Code.INVALID_ARGUMENT,
        "generation.response_format.regex",
    ),
    "a bias out of range": (
        _text("x", generation={"logit_bias": {3: 101.0}}),
        Code.INVALID_ARGUMENT,
        "generation.logit_bias[3]",
    ),
    "a bias of no token": (
        _text("x", generation={"logit_bias": {1 << 20: 1.0}}),
        Code.INVALID_ARGUMENT,
        f"generation.logit_bias[{1 << 20}]",
    ),
    "a penalty out of range": (
        _text("x", generation={"presence_penalty": 2.5}),
        Code.INVALID_ARGUMENT,
        "generation.presence_penalty",
    ),
    "a repetition penalty of 0": (
        _text("x", generation={"repetition_penalty": 0}),
        Code.INVALID_ARGUMENT,
        "generation.repetition_penalty",
    ),
    "a min_p over 1": (_text("x", generation={"min_p": 1.5}), Code.INVALID_ARGUMENT, "generation.min_p"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_is_named_and_harms_nobody(gateway: gateway_pb2_grpc.GatewayStub, name: str) -> None:
    """The code, the field and a sentence that names it; and the next request is answered."""
    request, code, field = CASES[name]
    with pytest.raises(grpc.RpcError) as caught:
        list(gateway.Chat(gateway_pb2.ChatRequest(**request), timeout=60))  # type: ignore[arg-type]
    error = from_rpc_error(caught.value)
    assert (error.code, error.violations[0].field) == (code, field), error.message
    assert field in error.message
    assert error.reason
    good = gateway_pb2.ChatRequest(**_text("hello", generation={"max_tokens": 2}))  # type: ignore[arg-type]
    events = list(gateway.Chat(good, timeout=60))
    assert events[-1].WhichOneof("event") == "finished"


def test_reasons_tell_the_media_failures_apart(gateway: gateway_pb2_grpc.GatewayStub) -> None:
    """Truncated, unreadable, too large and too long are reasons of their own."""
    reasons = set()
    names = (
        "a truncated JPEG",
        "a text file named .png",
        "a 60,000 x 60,000 PNG header",
        "an image 300 times as wide as high",
    )
    for name in names:
        with pytest.raises(grpc.RpcError) as caught:
            list(gateway.Chat(gateway_pb2.ChatRequest(**CASES[name][0]), timeout=60))  # type: ignore[arg-type]
        reasons.add(from_rpc_error(caught.value).reason)
    assert len(reasons) == len(names)


def test_an_unknown_model_is_not_found(gateway: gateway_pb2_grpc.GatewayStub) -> None:
    """Another name than the served one is NOT_FOUND, and ListModels tells the right one."""
    with pytest.raises(grpc.RpcError) as caught:
        list(gateway.Chat(gateway_pb2.ChatRequest(**_text("x", model="gpt")), timeout=60))  # type: ignore[arg-type]
    assert from_rpc_error(caught.value).code is Code.NOT_FOUND
    (model,) = gateway.ListModels(gateway_pb2.ListModelsRequest()).models
    assert (model.context_length, model.precision, model.family) == (CONTEXT, "int4", "qwen3_vl")
    assert list(gateway.Chat(gateway_pb2.ChatRequest(**_text("x", model=model.id, generation={"max_tokens": 1}))))  # type: ignore[arg-type]


def test_uploads_are_not_there_yet(gateway: gateway_pb2_grpc.GatewayStub) -> None:
    """UploadMedia is UNIMPLEMENTED, by name."""
    with pytest.raises(grpc.RpcError) as caught:
        gateway.UploadMedia(iter([gateway_pb2.UploadMediaRequest(kind=media_pb2.MEDIA_KIND_IMAGE)]))
    assert from_rpc_error(caught.value).code is Code.UNIMPLEMENTED
