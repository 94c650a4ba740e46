"""OpenAI's client for Python."""

from __future__ import annotations

import json
from importlib.metadata import version

import openai
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

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
PICTURE = [{"role": "user", "content": image_parts()}]


def image() -> None:
    """A chat about the picture, streamed."""
    stream = client.chat.completions.create(
        model=MODEL,
        messages=PICTURE,
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=40,
        temperature=0,
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    expect(SEEN in text.lower(), text)
    expect(chunks[-1].usage and chunks[-1].usage.completion_tokens > 3, chunks[-1])


def schema() -> None:
    """Answers in the form of a model."""
    done = client.chat.completions.parse(model=MODEL, messages=PICTURE, response_format=Answer, max_tokens=ROOM)
    expect(isinstance(done.choices[0].message.parsed, Answer), done)
    done = client.chat.completions.parse(model=MODEL, messages=PICTURE, response_format=Shapes, max_tokens=ROOM)
    expect(isinstance(done.choices[0].message.parsed, Shapes), done)
    with client.chat.completions.stream(
        model=MODEL, messages=PICTURE, response_format=Answer, max_tokens=ROOM
    ) as streamed:
        expect(streamed.get_final_completion().choices[0].message.parsed, "nothing parsed from a stream")
    plain = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Answer in JSON."}],
        response_format={"type": "json_object"},
        max_tokens=ROOM,
        stop="}",
    )
    expect((plain.choices[0].message.content or "").lstrip().startswith("{"), plain)


def tools() -> None:
    """A call that must be made, its result, and the answer."""
    tool = openai.pydantic_function_tool(Look, name=TOOL)
    named = {"type": "function", "function": {"name": TOOL}}
    for choice, parallel in (("required", False), (named, True)):
        first = client.chat.completions.create(
            model=MODEL,
            messages=PICTURE,
            tools=[tool],
            tool_choice=choice,
            parallel_tool_calls=parallel,
            max_tokens=ROOM,
        )
        message = first.choices[0].message
        expect(message.tool_calls, first)
        call = message.tool_calls[0]
        expect(call.function.name == TOOL and json.loads(call.function.arguments)["colour"] in COLOURS, call)
        last = client.chat.completions.create(
            model=MODEL,
            messages=[*PICTURE, message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}],
            tools=[tool],
            tool_choice="none",
            max_tokens=60,
        )
        expect(last.choices[0].message.content, last)
    with client.chat.completions.stream(
        model=MODEL, messages=PICTURE, tools=[tool], tool_choice="required", max_tokens=ROOM
    ) as streamed:
        calls = streamed.get_final_completion().choices[0].message.tool_calls
    expect(calls and isinstance(calls[0].function.parsed_arguments, Look), calls)


def cancel() -> None:
    """A stream that the client leaves in the middle."""
    stream = client.chat.completions.create(
        model=MODEL, messages=PICTURE, stream=True, extra_body={"structured_outputs": ENDLESS}
    )
    cancelled(iter(stream), stream.close)


main(version("openai"), image=image, schema=schema, tools=tools, cancel=cancel)
