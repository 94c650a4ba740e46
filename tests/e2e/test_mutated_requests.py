"""Changed at random, a request gets an answer or a typed error, and the system goes on; `tests/fuzz/run` sends more."""

from __future__ import annotations

import json
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.e2e.conftest import Up
from tests.fuzz.doors import ask_grpc, ask_http
from tests.fuzz.requests import VALID_BODIES, VALID_CHATS, bodies, chats
from vlm.v1 import gateway_pb2, gateway_pb2_grpc

pytestmark = pytest.mark.e2e

_few = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def test_requests_over_grpc(int4_system: Up) -> None:
    """ChatRequests with fields of every type changed; all kinds of them, unchanged, are answered before and after."""
    with grpc.insecure_channel(int4_system.grpc) as channel:
        stub = gateway_pb2_grpc.GatewayStub(channel)
        assert [ask_grpc(stub, request) for request in VALID_CHATS] == [""] * len(VALID_CHATS)
        reasons = set()

        @_few
        @given(chats())
        def each(request: gateway_pb2.ChatRequest) -> None:
            reasons.add(ask_grpc(stub, request))

        each()
        assert {"", "FIELD_INVALID"} <= reasons
        assert [ask_grpc(stub, request) for request in VALID_CHATS] == [""] * len(VALID_CHATS)


def test_requests_over_http(int4_system: Up) -> None:
    """The same in JSON, with the fields that the API's own description names."""
    with httpx.Client(base_url=int4_system.http) as client:
        described = client.get("/openapi.json").json()["components"]["schemas"]
        valid = [json.dumps(body).encode() for body in VALID_BODIES]
        assert [ask_http(client, body) for body in valid] == [""] * len(valid)
        codes = set()

        @_few
        @given(bodies(described))
        def each(body: Any) -> None:
            codes.add(ask_http(client, json.dumps(body).encode()))

        each()
        assert {"", "field_invalid"} <= codes
        assert [ask_http(client, body) for body in valid] == [""] * len(valid)
