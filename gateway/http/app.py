"""The routes of the HTTP API."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.conductor import Conductor
from gateway.http.chat import ChatCompletions
from gateway.http.errors import body_of, response_of
from gateway.http.guard import Guard
from gateway.http.stream import Pace
from gateway.retry import Deadline
from serving.errors import Reason, ServiceError, failure, unexpected


def create_app(
    conductor: Conductor, *, seconds: float, max_body_bytes: int, max_requests: int, pace: Pace | None = None
) -> ASGIApp:
    """The application.

    Args:
        conductor: Does the work.
        seconds: Time for a request.
        max_body_bytes: Longest body.
        max_requests: Most requests at once.
        pace: How long a stream may be silent.
    """

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "serving"})

    async def models(request: Request) -> Response:
        listed = [
            {
                "id": model.id,
                "object": "model",
                "created": 0,
                "owned_by": "triptych",
                "max_model_len": model.context_length,
            }
            for model in await conductor.models(deadline=Deadline(seconds))
        ]
        return JSONResponse({"object": "list", "data": listed})

    completions = ChatCompletions(conductor, seconds=seconds, max_body_bytes=max_body_bytes, pace=pace or Pace())
    routes = [
        Route("/healthz", healthz),
        Route("/v1/models", models),
        Route("/v1/chat/completions", completions, methods=["POST"]),
    ]
    handlers = {ServiceError: _failed, HTTPException: _not_served, Exception: _unexpected}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guard(app, paths={route.path for route in routes}, max_requests=max_requests)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)  # noqa: S101  # what it was registered for
    return response_of(error)


async def _not_served(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)  # noqa: S101
    message = f"{request.method} {request.url.path} is not served here"
    body = body_of(failure(Reason.NOT_SERVED, message))
    return JSONResponse(body, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    # Starlette raises the exception again after this answer: the guard logs it.
    return response_of(unexpected())
