"""The description of the HTTP API that `/openapi.json` serves, in OpenAPI 3.1.

Requests are described by the schema that reads them. Its objects may have other fields too: gateway.http.unserved.
"""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from gateway.http.schema import CompletionRequest, DetokenizeRequest, TextCompletionRequest, TokenizeRequest

_SCHEMAS = "#/components/schemas/"
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


_REPLICAS = _object({"available": _COUNT, "replicas": _COUNT})


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _named(name: str) -> dict[str, Any]:
    return {"$ref": _SCHEMAS + name}


_ANSWERS = {
    "Status": _object({"status": _TEXT}),
    "Health": _object({"status": {"enum": ["serving", "unavailable"]}, "decoder": _REPLICAS}, vision=_REPLICAS),
    "Model": _object(
        {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT, "max_model_len": _COUNT},
        input_modalities=_list({"enum": ["text", "image", "video"]}),
        thinks={"type": "boolean"},
        thinking_optional={"type": "boolean"},
        recommended_sampling={"type": "object"},
    ),
    "Models": _object({"object": {"const": "list"}, "data": _list(_named("Model"))}),
    "ToolCall": _object(
        {"id": _TEXT, "type": {"const": "function"}, "function": _object({"name": _TEXT, "arguments": _TEXT})}
    ),
    "Choice": _object(
        {
            "index": _COUNT,
            "message": _object(
                {"role": {"const": "assistant"}, "content": _TEXT_OR_NULL},
                refusal=_TEXT_OR_NULL,
                reasoning_content=_TEXT,
                tool_calls=_list(_named("ToolCall")),
            ),
            "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
        },
        logprobs={"type": ["object", "null"]},
    ),
    "Completion": _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(_named("Choice")),
            "usage": _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT)),
        },
        media=_list({"type": "object"}),
    ),
    "TextCompletion": _object(
        {
            "id": _TEXT,
            "object": {"const": "text_completion"},
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {"index": _COUNT, "text": _TEXT, "finish_reason": {"enum": ["stop", "length"]}},
                    logprobs={"type": ["object", "null"]},
                )
            ),
            "usage": _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT)),
        }
    ),
    "Tokens": _object(
        {"count": _COUNT, "max_model_len": _COUNT, "tokens": _list(_COUNT)},
        token_strs={"type": ["array", "null"], "items": _TEXT},
    ),
    "Text": _object({"prompt": _TEXT}),
    "Error": _object(
        {"error": _object({"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL})}
    ),
}


def _operation(name: str, summary: str, answer: str, *, body: str = "", **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _named(answer)}}
    if body:
        more["requestBody"] = {"required": True, "content": {"application/json": {"schema": _named(body)}}}
    if body in ("CompletionRequest", "TextCompletionRequest"):
        content["text/event-stream"] = {"schema": {"type": "string", "description": "With `stream`: its chunks."}}
    failed = {"description": "What is wrong.", "content": {"application/json": {"schema": _named("Error")}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "The answer.", "content": content}, "4XX": failed, "5XX": failed},
        **more,
    }


def _health(name: str, summary: str) -> dict[str, Any]:
    operation = _operation(name, summary, "Health")
    content = {"application/json": {"schema": _named("Health")}}
    operation["responses"]["503"] = {"description": "No decoder is available.", "content": content}
    return operation


def _paths() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    return {
        "/healthz": {"get": _health("healthz", "Whether requests can be served: a decoder is available")},
        "/health": {"get": _health("health", "The same")},
        "/livez": {"get": _operation("livez", "Whether the gateway answers", "Status")},
        "/v1/models": {"get": _operation("models", "The model that is served", "Models")},
        "/v1/models/{name}": {"get": _operation("model", "A model by its name", "Model", parameters=[name])},
        "/v1/chat/completions": {
            "post": _operation("chat", "An answer to a conversation", "Completion", body="CompletionRequest")
        },
        "/v1/completions": {
            "post": _operation("complete", "What follows a prompt", "TextCompletion", body="TextCompletionRequest")
        },
        "/tokenize": {"post": _operation("tokenize", "The tokens of a prompt", "Tokens", body="TokenizeRequest")},
        "/detokenize": {"post": _operation("detokenize", "The text of tokens", "Text", body="DetokenizeRequest")},
    }


@functools.cache
def document() -> dict[str, Any]:
    """The whole description. It names every path but its own."""
    _, schema = models_json_schema(
        [
            (body, "validation")
            for body in (CompletionRequest, TextCompletionRequest, TokenizeRequest, DetokenizeRequest)
        ],
        ref_template=_SCHEMAS + "{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Triptych", "version": version("triptych")},
        "paths": _paths(),
        # Where the gateway has keys; health never needs one.
        "security": [{"key": []}, {}],
        "components": {
            "schemas": {**_ANSWERS, **schema["$defs"]},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
