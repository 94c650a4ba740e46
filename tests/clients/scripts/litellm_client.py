"""LiteLLM, which other frameworks call models with."""

from __future__ import annotations

import json
import os
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list of prices
import litellm
from common import (
    BASE_URL,
    COLOURS,
    ENDLESS,
    KEY,
    MODEL,
    RESULT,
    ROOM,
    SEEN,
    TOOL,
    cancelled,
    expect,
    image_parts,
    main,
)
from shapes import Answer, Look, Shapes

WHERE = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY, "num_retries": 0, "max_retries": 0}
PICTURE = [{"role": "user", "content": image_parts()}]


def image() -> None:
    """A chat about the picture, streamed."""
    stream = litellm.completion(
        **WHERE, messages=PICTURE, stream=True, stream_options={"include_usage": True}, max_tokens=40, temperature=0
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    expect(SEEN in text.lower(), text)


def schema() -> None:
    """Answers in the form of a model."""
    for model in (Answer, Shapes):
        done = litellm.completion(**WHERE, messages=PICTURE, response_format=model, max_tokens=ROOM)
        model.model_validate_json(done.choices[0].message.content)


def tools() -> None:
    """A call that must be made, its result, and the answer."""
    function = {"name": TOOL, "description": Look.__doc__, "parameters": Look.model_json_schema()}
    definitions = [{"type": "function", "function": function}]
    for choice in ("required", {"type": "function", "function": {"name": TOOL}}):
        first = litellm.completion(
            **WHERE, messages=PICTURE, tools=definitions, tool_choice=choice, parallel_tool_calls=False, max_tokens=ROOM
        )
        message = first.choices[0].message
        call = message.tool_calls[0]
        expect(json.loads(call.function.arguments)["colour"] in COLOURS, first)
        result = {"role": "tool", "tool_call_id": call.id, "name": TOOL, "content": RESULT}
        last = litellm.completion(
            **WHERE,
            messages=[*PICTURE, message, result],
            tools=definitions,
            tool_choice="none",
            max_tokens=60,
        )
        expect(last.choices[0].message.content, last)


def cancel() -> None:
    """A stream that the client leaves in the middle."""
    stream = litellm.completion(**WHERE, messages=PICTURE, stream=True, extra_body={"structured_outputs": ENDLESS})
    cancelled(iter(stream), stream.completion_stream.close)


main(version("litellm"), image=image, schema=schema, tools=tools, cancel=cancel)
