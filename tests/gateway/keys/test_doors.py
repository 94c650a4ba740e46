"""Keys and limits at both doors of a gateway, over sockets, in front of fake tiers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.keys.file import write_keys
from gateway.keys.key import Key, hash_of
from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from serving.errors import ServiceError
from serving.server import StartError
from serving.server import serve as run_server
from serving.status import from_rpc_error
from serving.transport import open_channel
from tests.gateway.fakes import MODEL, FakeDecoder, FakeVision, GenerateCall, serve
from tests.gateway.openai_json import HELLO, PATH, data_url
from tests.gateway.requests import ask, image, kinds, text
from triptych import AsyncClient, Client, TriptychError
from triptych import user as says
from vlm.v1 import gateway_pb2, gateway_pb2_grpc


def key(name: str, **more: Any) -> Key:
    """A key whose secret is its name behind `tpk_`; each is its own tenant."""
    return Key.model_validate({"name": name, "sha256": hash_of(f"tpk_{name}"), "tenant": name, **more})


def bearer(name: str) -> dict[str, str]:
    """The header of a key."""
    return {"authorization": f"Bearer tpk_{name}"}


@dataclass
class Doors:
    """A gateway: its doors, and the file of its keys."""

    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    keys: Path
    address: str

    @property
    def stub(self) -> Any:
        """The gRPC door."""
        return gateway_pb2_grpc.GatewayStub(self.channel)

    async def over_grpc(self, name: str | None = None, request: Any = None) -> ServiceError | list[Any]:
        """The events of a chat, or how it fails."""
        metadata = () if name is None else (("authorization", f"Bearer tpk_{name}"),)
        call = self.stub.Chat(request or ask(text("Hello")), timeout=30, metadata=metadata)
        try:
            return [event async for event in call]
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)

    async def over_http(self, name: str | None = None) -> httpx.Response:
        """The response to a chat."""
        return await self.http.post(PATH, json=HELLO, headers={} if name is None else bearer(name))


@contextlib.asynccontextmanager
async def gateway(
    folder: Path, vision: FakeVision, decoder: FakeDecoder, *keys: Key, **more: Any
) -> AsyncIterator[Doors]:
    """A gateway with these keys; without any, an open one."""
    path = folder / "keys.json"
    if keys:
        write_keys(path, keys)
        more["keys_file"] = path
    async with serve(vision) as (one, _), serve(decoder) as (other, _), contextlib.AsyncExitStack() as stack:
        settings = GatewaySettings(vision=one, decoder=other, port=0, http_port=0, grace_seconds=0, **more)
        service = GatewayService(settings)
        stop, listening = asyncio.Event(), asyncio.get_running_loop().create_future()
        running = asyncio.create_task(run_server(service, settings, on_listening=listening.set_result, stop=stop))
        await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            await running  # raises why it did not start
        address = f"127.0.0.1:{listening.result()}"
        http = httpx.AsyncClient(base_url=f"http://{service.http_address}", timeout=30, trust_env=False)
        try:
            channel = await stack.enter_async_context(open_channel(address))
            yield Doors(channel, await stack.enter_async_context(http), path, address)
        finally:
            stop.set()
            await running


@pytest.fixture
async def doors(tmp_path: Path, vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[Doors]:
    """A gateway with a key for each role."""
    keys = (key("ann"), key("prom", role="metrics"), key("root", role="admin"))
    async with gateway(tmp_path, vision, decoder, *keys, http_metrics=True, cors_origins="http://page") as opened:
        yield opened


async def test_no_key_no_answer(doors: Doors, vision: FakeVision, decoder: FakeDecoder) -> None:
    """Every call of both doors is refused, typed, and reaches no tier; so is a wrong key."""
    decoder.calls.clear()
    calls = [
        *((path, "POST") for path in (PATH, "/v1/completions", "/tokenize", "/detokenize")),
        *((path, "GET") for path in ("/v1/models", f"/v1/models/{MODEL}", "/openapi.json", "/metrics", "/nothing")),
    ]
    for headers, reason in (
        ({}, "KEY_MISSING"),
        (bearer("nobody"), "KEY_INVALID"),
        ({"x-api-key": "é"}, "KEY_INVALID"),
    ):
        for path, method in calls:
            sent = {name: value.encode() for name, value in headers.items()}
            response = await doors.http.request(method, path, json=HELLO if method == "POST" else None, headers=sent)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert "nobody" not in response.text
        if reason == "KEY_MISSING" or headers == bearer("nobody"):
            metadata = tuple(headers.items())
            for call in (
                doors.stub.ListModels(gateway_pb2.ListModelsRequest(), metadata=metadata),
                doors.stub.CountTokens(gateway_pb2.CountTokensRequest(), metadata=metadata),
                doors.channel.unary_unary("/vlm.v1.Gateway/Nothing")(b"", metadata=metadata),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert from_rpc_error(caught.value).reason == reason
            error = await doors.over_grpc(None if not headers else "nobody", ask(image(b"file one")))
            assert isinstance(error, ServiceError)
            assert (error.code.value, error.reason) == ("UNAUTHENTICATED", reason)
    assert not decoder.calls
    assert not vision.calls


async def test_with_a_key(doors: Doors) -> None:
    """Both doors answer, in both headers; the log has the key's name, and no secret."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        assert kinds(await doors.over_grpc("ann"))[-1] == "finished"  # type: ignore[arg-type]  # else it fails
        assert (await doors.over_http("ann")).status_code == 200
        assert (await doors.http.post(PATH, json=HELLO, headers={"x-api-key": "tpk_ann"})).status_code == 200
        assert (await doors.over_http("wrong")).status_code == 401
        metadata = (("x-api-key", "tpk_ann"),)
        models = await doors.stub.ListModels(gateway_pb2.ListModelsRequest(), metadata=metadata)
        assert [model.id for model in models.models] == [MODEL]
    assert "tpk_" not in str(logs)
    assert [line.get("key") for line in logs if line["event"] == "call" and "Gateway/" in line["method"]] == ["ann"] * 2
    assert [line.get("key") for line in logs if line["event"] == "call" and "POST" in line["method"]] == [
        "ann",
        "ann",
        None,
    ]


async def test_health_is_open(doors: Doors) -> None:
    """Whoever watches the gateway needs no key, at both doors; a browser's preflight has none."""
    for path in ("/healthz", "/health"):
        assert (await doors.http.get(path)).status_code == 200
    reply = await health_pb2_grpc.HealthStub(doors.channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[misc]
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    asked = {
        "origin": "http://page",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    preflight = await doors.http.options(PATH, headers=asked)
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = await doors.http.post(PATH, json=HELLO, headers={"origin": "http://page"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "http://page")


async def reflected(doors: Doors, name: str) -> str:
    """What reflection answers to a key: `OK`, or the reason."""
    stub = reflection_pb2_grpc.ServerReflectionStub(doors.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]), metadata=tuple(bearer(name).items()))  # type: ignore[call-arg]
    try:
        replies = [reply async for reply in call]  # type: ignore[attr-defined]
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    assert "vlm.v1.Gateway" in str(replies)
    return "OK"


async def test_roles(doors: Doors) -> None:
    """Metrics are for `metrics` and `admin`, reflection for `admin`, requests for `user` and `admin`."""
    for name, metrics, chat, reflection in (
        ("ann", 403, 200, "KEY_ROLE"),
        ("prom", 200, 403, "KEY_ROLE"),
        ("root", 200, 200, "OK"),
        ("nobody", 401, 401, "KEY_INVALID"),
    ):
        assert (await doors.http.get("/metrics", headers=bearer(name))).status_code == metrics
        assert (await doors.over_http(name)).status_code == chat
        assert isinstance(await doors.over_grpc(name), ServiceError) == (chat != 200)
        assert await reflected(doors, name) == reflection


async def test_revoked_while_it_runs(doors: Doors, decoder: FakeDecoder) -> None:
    """A revoked key fails with the next request, without a restart; what runs is finished. A new key works at once."""
    reached, go = asyncio.Event(), asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "start":
            reached.set()
            await go.wait()

    decoder.hook = hook
    running = asyncio.create_task(doors.over_grpc("ann"))
    await reached.wait()
    decoder.hook = None
    write_keys(doors.keys, [key("bob")])
    assert (await doors.over_http("ann")).status_code == 401
    assert isinstance(await doors.over_grpc("ann"), ServiceError)
    assert (await doors.over_http("bob")).status_code == 200
    go.set()
    assert kinds(await running)[-1] == "finished"  # type: ignore[arg-type]


async def test_the_tiers_get_the_tenants_scope(tmp_path: Path, vision: FakeVision, decoder: FakeDecoder) -> None:
    """Two keys of a tenant have one scope, another tenant or a salt another; both tiers get it with every message."""
    keys = (key("a1", tenant="a"), key("a2", tenant="a"), key("b1", tenant="b"))
    async with gateway(tmp_path, vision, decoder, *keys) as doors:
        for name, salt in (("a1", ""), ("a2", ""), ("b1", ""), ("a1", "s")):
            assert isinstance(await doors.over_grpc(name, ask(image(b"file one"), cache_salt=salt)), list)
        part = {"type": "image_url", "image_url": {"url": data_url(b"file one")}}
        body = {"messages": [{"role": "user", "content": [part]}]}
        for salt in ({}, {"cache_salt": "s"}):
            response = await doors.http.post(PATH, json=body | salt, headers=bearer("a2"))
            assert response.status_code == 200, response.text
        tokenized = await doors.http.post("/tokenize", json=body, headers=bearer("a1"))
        assert tokenized.status_code == 200
    generated = [call.open.cache_scope for call in decoder.calls if call.open is not None]
    a, b, salted = generated[0], generated[2], generated[3]
    assert len({a, b, salted, ""}) == 4
    assert generated == [a, a, b, salted, a, salted]
    assert [call.request.cache_scope for call in vision.calls] == generated
    assert [request.cache_scope for request in vision.described] == [a]


async def test_without_keys_there_is_no_scope(tmp_path: Path, vision: FakeVision, decoder: FakeDecoder) -> None:
    """An open gateway answers everybody, and shares what it keeps. A key that is sent is of no interest."""
    async with gateway(tmp_path, vision, decoder) as doors:
        assert isinstance(await doors.over_grpc("whatever", ask(image(b"file one"))), list)
        assert (await doors.over_http()).status_code == 200
        assert await reflected(doors, "nobody") == "OK"
    assert [call.request.cache_scope for call in vision.calls] == [""]


async def test_one_client_does_not_take_all_places(tmp_path: Path, vision: FakeVision, decoder: FakeDecoder) -> None:
    """While a key has all the requests that it may have, at both doors together, another key is answered."""
    reached, go = asyncio.Semaphore(0), asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "start":
            reached.release()
            await go.wait()

    decoder.hook = hook
    async with gateway(
        tmp_path, vision, decoder, key("ann"), key("bob", max_requests=3), max_concurrent_rpcs=4
    ) as doors:
        running = [asyncio.create_task(doors.over_grpc("ann")), asyncio.create_task(doors.over_http("ann"))]
        for _ in running:
            await reached.acquire()
        decoder.hook = None
        error = await doors.over_grpc("ann")
        assert isinstance(error, ServiceError)
        assert (error.code.value, error.reason, error.retry_after) == ("RESOURCE_EXHAUSTED", "TOO_MANY_OF_CLIENT", 1.0)
        response = await doors.over_http("ann")
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert (await doors.over_http("bob")).status_code == 200
        go.set()
        await asyncio.gather(*running)
        assert (await doors.over_http("ann")).status_code == 200


async def test_rates(tmp_path: Path, vision: FakeVision, decoder: FakeDecoder) -> None:
    """Without keys they are of the address; the delay is the time until the next request is taken. Health is free."""
    limits = {"requests_per_minute_per_client": 2, "tokens_per_minute_per_client": 1_000_000}
    async with gateway(tmp_path, vision, decoder, **limits) as doors:
        first = await doors.over_http()
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-limit-tokens"] == "1000000"
        assert isinstance(await doors.over_grpc(), list)
        error = await doors.over_grpc()
        assert isinstance(error, ServiceError)
        assert (error.reason, error.retry_after is not None and 0 < error.retry_after <= 30) == ("RATE_LIMITED", True)
        third = await doors.over_http()
        assert third.status_code == 429
        assert 0 < int(third.headers["retry-after"]) <= 30
        assert third.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await doors.http.get("/healthz")).status_code == 200


async def test_tokens_are_charged_at_both_doors(tmp_path: Path, vision: FakeVision, decoder: FakeDecoder) -> None:
    """An answer that was longer than the minute's tokens is paid for by the next requests, streamed or not."""
    for door in ("grpc", "http"):
        async with gateway(tmp_path, vision, decoder, key("ann", tokens_per_minute=1)) as doors:
            if door == "grpc":
                assert isinstance(await doors.over_grpc("ann"), list)
            else:
                assert (await doors.over_http("ann")).status_code == 200
            refused = await doors.over_http("ann")
            assert refused.json()["error"]["code"] == "rate_limited"
            assert int(refused.headers["retry-after"]) >= 60  # more than one token is owed


async def test_the_python_clients(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `api_key` or the environment's key they are answered; without they get the typed error, not retried."""
    async with AsyncClient(doors.address, api_key="tpk_ann") as client:
        assert (await client.answer([says("Hello")])).text
        assert await client.models() == [MODEL]

    def blocking() -> str:
        with Client(doors.address) as client:
            return client.answer([says("Hello")]).text

    with pytest.raises(TriptychError) as caught:
        await asyncio.to_thread(blocking)
    assert (caught.value.code.value, caught.value.reason) == ("UNAUTHENTICATED", "KEY_MISSING")
    monkeypatch.setenv("TRIPTYCH_API_KEY", "tpk_ann")
    assert await asyncio.to_thread(blocking)
    for wrong in ("two words", "new\nline", "é"):
        with pytest.raises(ValueError, match="printable ASCII") as refused:
            AsyncClient(doors.address, api_key=wrong)
        assert wrong not in str(refused.value)


async def test_a_gateway_without_its_file_does_not_start(
    tmp_path: Path, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """It would be open to everybody, or to nobody; the message says what to do."""
    for content in (None, "{"):
        if content is not None:
            (tmp_path / "keys.json").write_text(content)
        with pytest.raises(StartError, match="triptych key new"):
            async with gateway(tmp_path, vision, decoder, keys_file=tmp_path / "keys.json"):
                pass
