"""Sends a request to a door, and fails where what comes back is no answer and no typed error."""

from __future__ import annotations

import json
from typing import Any

import grpc
import httpx
from grpc_status import rpc_status

from serving.errors import Reason
from serving.status import from_proto
from vlm.v1 import gateway_pb2, gateway_pb2_grpc

SECONDS = 150.0  # more than a machine that is busy with something else takes
_EVENTS = 40  # of an answer; then the client leaves, so that a request for thousands of tokens takes no longer

_TYPED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""What a request alone can be told: with any other code something was wrong with the server."""

_REASONS = {reason.name for reason in Reason}


def ask_grpc(stub: gateway_pb2_grpc.GatewayStub, request: gateway_pb2.ChatRequest) -> str:
    """Send a request; returns the reason of its error, or "" where it is answered."""
    call = stub.Chat(request, timeout=SECONDS)
    try:
        for number, _ in enumerate(call):
            if number == _EVENTS:
                break
    except grpc.RpcError as error:
        return _reason(error)
    finally:
        call.cancel()
    return ""


def _reason(error: Any) -> str:
    assert error.code() in _TYPED, f"{error.code()}: {error.details()}"
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} without details: {error.details()}"
    failure = from_proto(status)
    assert failure.reason in _REASONS, failure
    return str(failure.reason)


def ask_http(client: httpx.Client, body: bytes) -> str:
    """Send a request; returns the code of its error, or "" where it is answered."""
    headers = {"content-type": "application/json"}
    with client.stream("POST", "/v1/chat/completions", content=body, headers=headers, timeout=SECONDS) as response:
        if response.headers["content-type"].startswith("text/event-stream"):
            assert response.status_code == httpx.codes.OK
            for number, line in enumerate(response.iter_lines()):
                if line.startswith("data: {") and "error" in (said := json.loads(line[6:])):
                    return _checked(httpx.codes.BAD_REQUEST, said)
                if number == _EVENTS:
                    break
            return ""
        answer = json.loads(response.read())
        if response.status_code == httpx.codes.OK:
            assert answer["choices"], answer
            return ""
        return _checked(response.status_code, answer)


def _checked(status: int, answer: Any) -> str:
    assert 400 <= status < 500, f"{status}: {answer}"
    error = answer["error"]
    assert error["type"] != "server_error", error
    assert error["message"], error
    return str(error["code"])
