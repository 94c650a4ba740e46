"""Guessed keys, and what one tenant can find out about another's pictures."""

from __future__ import annotations

import collections
import random
import secrets

import grpc
import httpx

from gateway.keys.key import hash_of, new_secret
from serving.media import media_digest
from serving.status import from_rpc_error
from serving.transport import client_options, open_channel
from tests.faults.asking import Gateways, Load
from tests.faults.bench import Bench, Row
from tests.faults.questions import Question
from tests.faults.security import make_keys
from tests.faults.services import Deployment, Plan
from triptych import AsyncClient, Finished
from vlm.v1 import chat_pb2, decoder_pb2, decoder_pb2_grpc, gateway_pb2, gateway_pb2_grpc, media_pb2


def _guesses(real: str, many: int) -> list[str]:
    """Keys that are nearly right, random ones, and texts that are none."""
    order = random.Random(1)
    near = [
        real[:-1],
        real + "a",
        real[:-1] + ("a" if real[-1] != "a" else "b"),
        real.lower(),
        real.upper(),
        "tpk_",
        "",
    ]
    odd = ["null", "undefined", "*", "Bearer", "' or 1=1 --", "a" * 4000, "../../keys.json", hash_of(real)]
    return [*near, *odd, *(new_secret() if order.random() < 0.5 else secrets.token_hex(16) for _ in range(many))]


async def keys(bench: Bench) -> Row:
    """Calls with guessed keys at both doors, and another tenant's digests and caches, beside four honest clients."""
    file = bench.folder("keys") / "keys.json"
    mine, other = make_keys(file, 2, tenants=2)
    plan = Plan(bench.bundle, flags={"gateway": ("--keys-file", str(file))})
    async with bench.own(plan, "keys", keys=[mine]) as deployment:
        seen: collections.Counter[str] = collections.Counter()
        problems: list[str] = []

        async def fault(load: Load) -> None:
            for guess in _guesses(mine, bench.lengths.mutations // 2):
                await _guess(deployment.gateways, guess, seen, problems)
            problems.extend(await _spy(bench, deployment, mine, other))

        row = await bench.under_load("hostile-keys", deployment, fault, clients=4)
        row.figures |= dict(seen)
        row.problems += problems[:5]
        for replica in deployment.replicas:
            log = replica.log.read_text(errors="replace")  # at the end, with nothing beside it
            row.problems += [f"a key is in the log of {replica.name}" for key in (mine, other) if key in log]
        return row


async def _guess(gateways: Gateways, key: str, seen: collections.Counter[str], problems: list[str]) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        said = await client.get(f"{gateways.http[0]}/v1/models", headers={"authorization": f"Bearer {key}".strip()})
    seen[f"http {said.status_code}"] += 1
    if said.status_code != httpx.codes.UNAUTHORIZED:
        problems.append(f"{key[:20]!r}: status {said.status_code} over HTTP")
    async with open_channel(gateways.grpc[0], client_options(gateways.grpc[0])) as channel:
        try:
            await gateway_pb2_grpc.GatewayStub(channel).ListModels(
                gateway_pb2.ListModelsRequest(), timeout=30, metadata=(("x-api-key", key),)
            )
            problems.append(f"{key[:20]!r} was let in over gRPC")
        except grpc.aio.AioRpcError as error:
            seen[f"grpc {from_rpc_error(error).reason}"] += 1
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                problems.append(f"{key[:20]!r}: {error.code().name} over gRPC: {error.details()}")


async def _spy(bench: Bench, deployment: Deployment, mine: str, other: str) -> list[str]:
    """What the other tenant finds of a picture that I have sent: nothing."""
    problems = []
    address = deployment.gateways.grpc[0]
    question = next(q for q in bench.answers if q.picture and not q.fresh)

    async def cached(key: str) -> int:
        async with AsyncClient(address, api_key=key) as client:
            events = [event async for event in client.chat(question.message(), max_tokens=2)]
        assert isinstance(events[-1], Finished)
        return events[-1].usage.cached_tokens

    for _ in range(2 * len(deployment.decoders)):  # on every decoder
        await cached(mine)
    if await cached(other):
        problems.append("cached_tokens tell another tenant what I have sent")
    if not await cached(mine):
        problems.append("my own prompt is not cached: the line above shows nothing")
    problems += [f"a digest alone is answered at {door}" for door in await _digests(deployment, question, other)]
    return problems


async def _digests(deployment: Deployment, question: Question, other: str) -> list[str]:
    """Where a digest alone gets an answer: at the gateway with another key, or at a decoder's own port."""
    answered = []
    digest = media_digest(question.picture)
    message = chat_pb2.Message(
        role=chat_pb2.ROLE_USER,
        parts=[chat_pb2.Part(image=media_pb2.Media(digest=digest)), chat_pb2.Part(text=question.words)],
    )
    address = deployment.gateways.grpc[0]
    async with open_channel(address, client_options(address)) as channel:
        call = gateway_pb2_grpc.GatewayStub(channel).Chat(
            gateway_pb2.ChatRequest(messages=[message]), timeout=30, metadata=(("x-api-key", other),)
        )
        try:
            async for _ in call:
                answered.append("the gateway")
                break
        except grpc.aio.AioRpcError:
            pass
        finally:
            call.cancel()
    for replica in deployment.decoders:
        async with open_channel(replica.address, client_options(replica.address)) as channel:
            opening = decoder_pb2.GenerateOpen(messages=[message])
            generate = decoder_pb2_grpc.DecoderStub(channel).Generate(timeout=30)
            try:
                await generate.write(decoder_pb2.GenerateRequest(open=opening))
                first = await generate.read()
                if not (isinstance(first, decoder_pb2.GenerateResponse) and first.media_needed.media_indices):
                    answered.append(replica.name)
            except grpc.aio.AioRpcError:
                pass
            finally:
                generate.cancel()
    return answered
