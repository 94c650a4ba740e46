"""Instructor: pydantic models from answers."""

from __future__ import annotations

from importlib.metadata import version

import instructor
import openai
from common import (
    BASE_URL,
    ENDLESS,
    IMAGE_URL,
    KEY,
    MODEL,
    QUESTION,
    RESULT,
    ROOM,
    SEEN,
    cancelled,
    expect,
    image_parts,
    main,
)
from shapes import Answer, Look, Shapes

PICTURE = [{"role": "user", "content": image_parts()}]
OWN = [{"role": "user", "content": [QUESTION, instructor.Image.from_base64(IMAGE_URL)]}]


def client(mode: str = "TOOLS") -> instructor.Instructor:
    """A client, as its users make it."""
    return instructor.from_openai(
        openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0), mode=instructor.Mode[mode]
    )


def image() -> None:
    """A chat about the picture, streamed."""
    stream = client().client.chat.completions.create(
        model=MODEL, messages=PICTURE, stream=True, max_tokens=40, temperature=0
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    expect(SEEN in text.lower(), text)


def schema() -> None:
    """Answers in the form of a model."""
    for mode in ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"):
        for messages in (PICTURE, OWN):
            for model in (Answer, Shapes):
                got = client(mode).chat.completions.create(
                    model=MODEL, messages=messages, response_model=model, max_tokens=ROOM, max_retries=0
                )
                expect(isinstance(got, model), (mode, got))


def tools() -> None:
    """A call that must be made, its result, and the answer."""
    got, raw = client().chat.completions.create_with_completion(
        model=MODEL, messages=PICTURE, response_model=Look, max_tokens=ROOM, max_retries=0
    )
    expect(isinstance(got, Look), got)
    message = raw.choices[0].message.model_dump()
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": RESULT}
    last = client().chat.completions.create(
        model=MODEL, messages=[*PICTURE, message, result], response_model=Answer, max_tokens=ROOM, max_retries=0
    )
    expect(isinstance(last, Answer), last)


def cancel() -> None:
    """A stream that the client leaves in the middle."""
    stream = client().client.chat.completions.create(
        model=MODEL, messages=PICTURE, stream=True, extra_body={"structured_outputs": ENDLESS}
    )
    cancelled(iter(stream), stream.close)


main(version("instructor"), image=image, schema=schema, tools=tools, cancel=cancel)
