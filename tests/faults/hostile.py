"""What an attacker sends: bytes that are no messages, tensors that do not fit, bombs, and tricks with HTTP."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import io
import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from grpc._cython.cygrpc import InternalError  # type: ignore[import-not-found]  # see `raw_call`
from PIL import Image

from serving.errors import Reason
from serving.status import from_rpc_error
from serving.transport import client_options, open_channel
from vlm.v1 import chat_pb2, decoder_pb2, gateway_pb2, media_pb2, vision_pb2, vision_pb2_grpc

MIB = 1 << 20
_SECONDS = 20.0
_MOST_MESSAGES = 30

_OF_A_SERVER = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "ABORTED"}
"""Codes that say that something was wrong with the server. No request may cause them."""

_OF_THE_CALLER = {Reason.FEATURES_NOT_FINITE.name}
"""Its code says that a service is at fault: the vision service, in whose place the attacker calls."""

_REASONS = {reason.name for reason in Reason}


@dataclass
class Round:
    """What came back from one kind of attack.

    Attributes:
        seen: Number of answers by reason; an accepted request is "answered".
        faults: Sentences about what should not have come back.
    """

    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, sentence: str) -> None:
        """Note what should not have been."""
        self.seen["FAULT"] += 1
        self.faults.append(sentence[:400])


async def raw_call(channel: grpc.aio.Channel, method: str, messages: Sequence[bytes], found: Round) -> None:
    """Send bytes to a method, whatever kind it is, and note what comes back.

    Args:
        channel: To the service.
        method: Its full name.
        messages: The bytes of each message.
        found: Where it is noted.
    """
    call: Any = channel.stream_stream(method)(timeout=_SECONDS)
    try:
        # Written below `call.write`, which replaces the status of a call that ends during a write by an INTERNAL of its
        # own (github.com/grpc/grpc/issues/36066).
        with contextlib.suppress(InternalError, asyncio.InvalidStateError, grpc.RpcError):
            await call.wait_for_connection()
            for message in messages:
                await call._cython_call.send_serialized_message(message)
            await call.done_writing()
        number = 0
        async for _ in call:
            number += 1
            if number == _MOST_MESSAGES:
                break
        found.seen["answered"] += 1
    except grpc.aio.AioRpcError as error:
        failure = from_rpc_error(error)
        code = error.code().name
        unknown = failure.reason not in _REASONS and code != "UNIMPLEMENTED"
        if unknown or (code in _OF_A_SERVER and failure.reason not in _OF_THE_CALLER):
            found.fault(f"{method}: {code} {failure.reason}: {error.details()}")
        else:
            found.seen[failure.reason] += 1
    finally:
        call.cancel()


def flipped(message: bytes, order: random.Random) -> bytes:
    """The bytes with some changed, cut off, doubled, or replaced by noise."""
    match order.randrange(4):
        case 0:
            return order.randbytes(order.randrange(1, 200))
        case 1:
            return message[: order.randrange(len(message) + 1)]
        case 2:
            at = order.randrange(len(message) + 1)
            return message[:at] + order.randbytes(order.randrange(1, 9)) + message[at:]
    changed = bytearray(message)
    for _ in range(order.randrange(1, 9)):
        changed[order.randrange(len(changed))] = order.randrange(256)
    return bytes(changed)


def _user(*parts: chat_pb2.Part) -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=parts)


def _options() -> chat_pb2.GenerationOptions:
    return chat_pb2.GenerationOptions(max_tokens=4)


def gateway_calls(picture: bytes) -> dict[str, bytes]:
    """A valid message for each method of the gateway."""
    message = _user(chat_pb2.Part(text="x"), chat_pb2.Part(image=media_pb2.Media(data=picture)))
    return {
        "/vlm.v1.Gateway/Chat": gateway_pb2.ChatRequest(messages=[message], generation=_options()).SerializeToString(),
        "/vlm.v1.Gateway/CountTokens": gateway_pb2.CountTokensRequest(messages=[message]).SerializeToString(),
        "/vlm.v1.Gateway/Detokenize": chat_pb2.DetokenizeRequest(token_ids=[1, 2, 3]).SerializeToString(),
        "/vlm.v1.Gateway/ListModels": gateway_pb2.ListModelsRequest().SerializeToString() + b"\x0a\x00",
        "/vlm.v1.Gateway/UploadMedia": gateway_pb2.UploadMediaRequest(
            kind=media_pb2.MEDIA_KIND_IMAGE
        ).SerializeToString(),
    }


def vision_calls(picture: bytes) -> dict[str, bytes]:
    """The same for the vision service."""
    request = vision_pb2.EncodeRequest(kind=media_pb2.MEDIA_KIND_IMAGE, data=picture).SerializeToString()
    return {"/vlm.v1.VisionEncoder/Encode": request, "/vlm.v1.VisionEncoder/Describe": request}


def decoder_calls() -> dict[str, bytes]:
    """The same for the decoder."""
    message = _user(chat_pb2.Part(text="x"))
    opening = decoder_pb2.GenerateOpen(messages=[message], generation=_options())
    counted = decoder_pb2.CountPromptTokensRequest(messages=[message])
    return {
        "/vlm.v1.Decoder/Generate": decoder_pb2.GenerateRequest(open=opening).SerializeToString(),
        "/vlm.v1.Decoder/CountPromptTokens": counted.SerializeToString(),
        "/vlm.v1.Decoder/Detokenize": chat_pb2.DetokenizeRequest(token_ids=[1, 2, 3]).SerializeToString(),
    }


async def mutated(address: str, calls: dict[str, bytes], many: int, *, seed: int = 0) -> Round:
    """Send bytes that were valid messages before they were changed, to every method of a service."""
    order, found = random.Random(seed), Round()
    async with open_channel(address, client_options(address)) as channel:
        for number in range(many):
            method, message = list(calls.items())[number % len(calls)]
            await raw_call(channel, method, [flipped(message, order)], found)
    return found


async def oversized(address: str, method: str, limit: int) -> Round:
    """Messages over the limit: as they are, and as a few kilobytes that gzip makes them from."""
    found = Round()
    options = [*client_options(address), ("grpc.max_send_message_length", -1)]
    async with open_channel(address, options) as channel:
        await raw_call(channel, method, [bytes(limit + MIB)], found)
    async with grpc.aio.insecure_channel(address, options, compression=grpc.Compression.Gzip) as channel:
        await raw_call(channel, method, [bytes(limit + MIB)], found)
        await raw_call(channel, method, [bytes(limit - MIB)], found)  # allowed, and no message
    return found


def bombs() -> dict[str, bytes]:
    """Files that are small, and pictures that are not."""

    def header(width: int, height: int) -> bytes:
        body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    endless = zlib.compressobj(9)
    zeros = b"".join([*(endless.compress(bytes(MIB)) for _ in range(512)), endless.flush()])
    still = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(still, "PNG", optimize=True)
    moving = io.BytesIO()
    frames = [Image.new("P", (64, 64), number % 2) for number in range(2_000)]
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:], duration=10)
    text = chunk(b"zTXt", b"Comment\0\0" + zeros)
    return {
        "a header of 60,000 x 60,000": header(60_000, 60_000),
        "512 MiB of zeros behind a header of 8 x 8": header(8, 8) + chunk(b"IDAT", zeros) + chunk(b"IEND", b""),
        "512 MiB of zeros in a comment": header(8, 8)
        + text
        + chunk(b"IDAT", zlib.compress(bytes(200)))
        + chunk(b"IEND", b""),
        "30,000 x 30,000 pixels of one bit": still.getvalue(),
        "a GIF of 2,000 frames": moving.getvalue(),
    }


async def bombed(address: str, files: dict[str, bytes], *, gateway: bool) -> Round:
    """Send decompression bombs, as pictures and as clips."""
    found = Round()
    async with open_channel(address, client_options(address)) as channel:
        for data in files.values():
            for kind in ("image", "video"):
                if gateway:
                    part = chat_pb2.Part(**{kind: media_pb2.Media(data=data)})  # type: ignore[arg-type]  # one of two names
                    request = gateway_pb2.ChatRequest(messages=[_user(part)], generation=_options())
                    await raw_call(channel, "/vlm.v1.Gateway/Chat", [request.SerializeToString()], found)
                else:
                    value = media_pb2.MediaKind.Value(f"MEDIA_KIND_{kind.upper()}")
                    encode = vision_pb2.EncodeRequest(kind=value, data=data)
                    await raw_call(channel, "/vlm.v1.VisionEncoder/Encode", [encode.SerializeToString()], found)
    return found


async def malformed_tensors(vision: str, decoder: str, picture: bytes) -> Round:
    """Whole features, and then such that do not fit what they are announced as, sent to the decoder's own port."""
    async with open_channel(vision, client_options(vision)) as channel:
        stub = vision_pb2_grpc.VisionEncoderStub(channel)
        request = vision_pb2.EncodeRequest(kind=media_pb2.MEDIA_KIND_IMAGE, data=picture)
        received = [part async for part in stub.Encode(request, timeout=_SECONDS)]
    header = next(part.header for part in received if part.WhichOneof("payload") == "header")
    chunks = [part.chunk for part in received if part.WhichOneof("payload") == "chunk"]
    found = Round()
    async with open_channel(decoder, client_options(decoder)) as channel:
        for number, (head, body) in enumerate(_malformed(header, chunks)):
            # Another digest each time: features that were accepted once would be asked for no more.
            digest = f"sha256:{number:064x}"
            head.layout.digest = digest
            part = chat_pb2.Part(image=media_pb2.Media(digest=digest))
            opening = decoder_pb2.GenerateOpen(messages=[_user(part)], generation=_options())
            messages = [
                decoder_pb2.GenerateRequest(open=opening),
                decoder_pb2.GenerateRequest(header=decoder_pb2.FeatureHeader(media_index=0, header=head)),
                *(
                    decoder_pb2.GenerateRequest(chunk=decoder_pb2.FeatureChunk(media_index=0, chunk=each))
                    for each in body
                ),
            ]
            before = found.seen["answered"]
            await raw_call(channel, "/vlm.v1.Decoder/Generate", [each.SerializeToString() for each in messages], found)
            accepted = found.seen["answered"] > before
            if accepted != (number == 0):
                found.fault(f"features {number} (0 is whole): accepted {accepted}")
    return found


def _malformed(
    header: vision_pb2.EncodeHeader, chunks: list[Any]
) -> Iterator[tuple[vision_pb2.EncodeHeader, list[Any]]]:
    def copy() -> tuple[vision_pb2.EncodeHeader, list[Any]]:
        head = vision_pb2.EncodeHeader()
        head.CopyFrom(header)
        body = []
        for chunk in chunks:
            same = type(chunk)()
            same.CopyFrom(chunk)
            body.append(same)
        return head, body

    yield copy()
    for shape in (
        [],
        [0],
        [1 << 40, 1 << 40],
        [2**63, 4],
        [*header.features.shape, 1],
        list(header.features.shape)[::-1],
    ):
        head, body = copy()
        del head.features.shape[:]
        head.features.shape.extend(shape)
        yield head, body
    for dtype in (0, 4, 99):
        head, body = copy()
        head.features.dtype = dtype  # type: ignore[assignment]  # not of the enumeration
        yield head, body
    for grid in ((0, 0, 0), (1, 1 << 16, 1 << 16), (1, 3, 5)):
        head, body = copy()
        head.layout.grid_thw.t, head.layout.grid_thw.h, head.layout.grid_thw.w = grid
        yield head, body
    for tokens in (0, 1, 1 << 31):
        head, body = copy()
        head.layout.token_count = tokens
        yield head, body
    head, body = copy()
    head.encoder_fingerprint = "0" * 64
    yield head, body
    for value in (np.nan, np.inf, -np.inf):
        head, body = copy()
        rows = np.frombuffer(body[0].data, np.float32).copy()
        rows[len(rows) // 2] = value
        body[0].data = rows.tobytes()
        yield head, body
    for offset in (1, 1 << 20, (1 << 64) - 1):
        head, body = copy()
        body[0].offset = offset
        yield head, body
    head, body = copy()
    body[0].data = body[0].data + b"\0" * 4096
    yield head, body
    head, body = copy()
    body[-1].data = body[-1].data[:-3]
    yield head, body
    head, _ = copy()
    yield head, []


def http_tricks() -> list[bytes]:
    """Requests that are not what HTTP says, and paths and headers that someone may take for others."""
    ok = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}'

    def post(path: str = "/v1/chat/completions", *headers: str, body: bytes = ok, length: str | None = "") -> bytes:
        lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers, "Connection: close"]
        if length is not None:
            lines.append(f"Content-Length: {length or len(body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + body

    def get(path: str, *headers: str) -> bytes:
        return ("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "Connection: close"]) + "\r\n\r\n").encode(
            "latin-1"
        )

    return [
        get("/../../etc/passwd"),
        get("/v1/models/../../etc/passwd"),
        get("/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
        get("/v1/models/" + "a" * 60_000),
        get("//metrics"),
        get("/metrics;/healthz"),
        get("/%00"),
        get("/healthz?" + "a=b&" * 10_000),
        get("http://169.254.169.254/latest/meta-data"),
        get("/v1/models", *(f"X-{number}: y" for number in range(5_000))),
        get("/v1/models", "X-Big: " + "a" * 200_000),
        get("/v1/models", "X-Request-Id: a\x01b"),
        get("/v1/models", "X-Request-Id: " + "a" * 500),
        get("/v1/models", "Content-Length: 5"),
        get("/v1/models", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"),
        get("/v1/models", "X-Forwarded-For: 127.0.0.1", "Host: evil"),
        post(length="-1"),
        post(length="1e3"),
        post(length="99999999999999999999"),
        post("/v1/chat/completions", "Transfer-Encoding: chunked", body=b"5\r\n{}", length="4"),
        post("/v1/chat/completions", "Transfer-Encoding: chunked", body=b"ffffffffffffffff\r\nx", length=None),
        post("/v1/chat/completions", "Transfer-Encoding: chunked", body=b"-1\r\nx", length=None),
        post("/v1/chat/completions", "Transfer-Encoding: gzip", length=None),
        post("/v1/chat/completions", "Content-Encoding: gzip", body=zlib.compress(ok)),
        post("/v1/chat/completions", "Expect: 200-maybe"),
        post("/v1/chat/completions", "Content-Type: text/plain"),
        post(body=b"\xff\xfe{}"),
        post(body=b"[" * 100_000),
        post(body=b'{"a":' * 50_000),
        post(body=b'{"max_tokens": ' + b"9" * 100_000 + b"}"),
        post(body=ok + ok),
        post(body=b""),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\r\n" * 1000,
        b"A" * 100_000,
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"DELETE /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]


async def http_tricked(url: str) -> Round:
    """Send them, each on a connection of its own. A status from 500 on, but 501 and 505, is a fault of the server."""
    found = Round()
    host, _, port = url.removeprefix("http://").rpartition(":")
    for trick in http_tricks():
        status = await _status(host, int(port), trick)
        if status.startswith("5") and status not in ("501", "505"):
            found.fault(f"status {status} for {trick[:80]!r}")
        else:
            found.seen[status or "closed"] += 1
    return found


async def _status(host: str, port: int, data: bytes) -> str:
    """Status of the answer to some bytes; empty where the connection is closed without one."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(data)
            await writer.drain()
            line = (await reader.readline()).split()
    except TimeoutError:
        return "waits"
    except OSError:
        return ""
    finally:
        if writer is not None:
            writer.close()
    return line[1].decode("latin-1") if len(line) > 1 else ""
