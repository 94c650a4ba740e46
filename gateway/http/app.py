"""The routes of the HTTP API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.conductor import Conductor
from gateway.errors import Tier
from gateway.http.access import METRICS_PATH, KeyCheck
from gateway.http.body import Bodies
from gateway.http.chat import ChatCompletions
from gateway.http.errors import body_of, response_of
from gateway.http.guard import Guard
from gateway.http.ignored import IGNORED_HEADER
from gateway.http.openapi import document
from gateway.http.stream import Pace
from gateway.http.text import TextCompletions
from gateway.http.tokenizing import Detokenize, Tokenize
from gateway.keys.access import Access
from gateway.keys.limits import RATE_HEADERS
from gateway.retry import Deadline
from serving import metrics as server_metrics
from serving.calls import REQUEST_ID_HEADER
from serving.connections import Places
from serving.errors import Reason, ServiceError, failure, unexpected
from vlm.v1 import chat_pb2

_PREFLIGHT_SECONDS = 600

_OPEN_PATHS = ("/healthz", "/health", "/livez")
"""Health: whoever watches the gateway needs no key."""


def create_app(
    conductor: Conductor,
    *,
    seconds: float,
    max_body_bytes: int,
    max_requests: int,
    pace: Pace | None = None,
    cors_origins: Sequence[str] = (),
    metrics: bool = False,
    max_buffered_body_bytes: int = 1 << 30,
    receive_seconds: float = 30.0,
    access: Access | None = None,
) -> ASGIApp:
    """The application.

    Args:
        conductor: Does the work.
        seconds: Time for a request.
        max_body_bytes: Longest body.
        max_requests: Most requests at once, besides those whose body is incomplete, and health checks.
        pace: How long a stream may be silent.
        cors_origins: Origins of web pages that may call the API from a browser; `*` allows all.
        metrics: Whether to serve the Prometheus metrics, too.
        max_buffered_body_bytes: Most bytes of the bodies that are being received.
        receive_seconds: Time for a body, besides the time that its size allows.
        access: Checks keys and limits; None: everybody may do everything.
    """
    places = Places(max_requests)
    bodies = Bodies(limit=max_body_bytes, total=max_buffered_body_bytes, seconds=receive_seconds)

    async def healthz(request: Request) -> Response:
        replicas = conductor.replicas
        serving = replicas[Tier.DECODER].available > 0
        tiers = {tier.value: {"available": n.available, "replicas": n.known} for tier, n in replicas.items()}
        return JSONResponse({"status": "serving" if serving else "unavailable", **tiers}, 200 if serving else 503)

    async def livez(request: Request) -> Response:
        return JSONResponse({"status": "serving"})

    async def models(request: Request) -> Response:
        with places.taken():
            listed = [_described(model) for model in await conductor.models(deadline=Deadline(seconds))]
        return JSONResponse({"object": "list", "data": listed})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        with places.taken():
            for served in await conductor.models(deadline=Deadline(seconds)):
                if served.id == name:
                    return JSONResponse(_described(served))
        raise failure(Reason.MODEL_NOT_FOUND, f"model {name!r} is not served here; /v1/models lists those that are")

    async def prometheus(request: Request) -> Response:
        return Response(generate_latest(server_metrics.served()), media_type=CONTENT_TYPE_LATEST)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document())

    pace = pace or Pace()
    chat = ChatCompletions(conductor, seconds=seconds, bodies=bodies, places=places, pace=pace)
    text = TextCompletions(conductor, seconds=seconds, bodies=bodies, places=places, pace=pace)
    tokenize = Tokenize(conductor, seconds=seconds, bodies=bodies, places=places)
    detokenize = Detokenize(conductor, seconds=seconds, bodies=bodies, places=places)
    routes = [
        Route("/healthz", healthz),
        Route("/health", healthz),
        Route("/livez", livez),
        Route("/openapi.json", openapi),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", text, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]
    if metrics:
        routes.append(Route(METRICS_PATH, prometheus))
    handlers = {ServiceError: _failed, HTTPException: _not_served, Exception: _unexpected}
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    app = KeyCheck(app, access or Access(), open_paths=_OPEN_PATHS)
    if cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, IGNORED_HEADER, "retry-after", "www-authenticate", *RATE_HEADERS],
            max_age=_PREFLIGHT_SECONDS,
        )
    return Guard(app, paths={route.path for route in routes}, quiet={*_OPEN_PATHS, METRICS_PATH})


def _described(model: chat_pb2.Model) -> dict[str, Any]:
    sampling = model.recommended_sampling
    values = json_format.MessageToDict(
        sampling, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "triptych",
        "max_model_len": model.context_length,
        "input_modalities": ["text", *(["image"] if model.images else []), *(["video"] if model.video else [])],
        "thinks": model.thinks,
        "thinking_optional": model.thinking_optional,
        "recommended_sampling": {name: values[name] for name in sampling.DESCRIPTOR.fields_by_name},
    }


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)  # noqa: S101  # registered for this type
    return response_of(error)


async def _not_served(request: Request, error: Exception) -> Response:
    """Answer an unknown path or method."""
    assert isinstance(error, HTTPException)  # noqa: S101
    message = f"{request.method} {request.scope['path']} is not served here"
    body = body_of(failure(Reason.NOT_SERVED, message))
    return JSONResponse(body, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    # Starlette raises the exception again after this response; the guard logs it.
    return response_of(unexpected())
