"""What Open WebUI sends, replayed: the whole of it, with its database and models, is too large to install for a check.

Its server calls `/models`, and then `/chat/completions` with the fields that its page and the model's settings give.
Custom parameters, such as `response_format`, are passed on as they were entered.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

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

HEADERS = {
    "Authorization": f"Bearer {KEY}",
    "Content-Type": "application/json",
    "X-OpenWebUI-User-Name": "Ada",
    "X-OpenWebUI-User-Id": "0f6c",
    "X-OpenWebUI-User-Email": "ada@example.com",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "5d1e",
}
MESSAGES = [
    {"role": "system", "content": "You describe pictures."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": image_parts()},
]
SETTINGS = {
    "temperature": 0.0,
    "top_p": 0.9,
    "max_tokens": ROOM,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "seed": 0,
    "stop": ["</stop>"],
    "logit_bias": {},
    "top_k": 40,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "num_ctx": 4096,
    "keep_alive": "5m",
    "user": {"name": "Ada", "id": "0f6c", "email": "ada@example.com", "role": "admin"},
}
LOOK = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": list(COLOURS), "description": "which"}},
    "required": ["colour"],
    "additionalProperties": False,
}
DEFINITION = {"type": "function", "function": {"name": TOOL, "description": "Look up a colour.", "parameters": LOOK}}


def call(method: str, path: str, body: object = None) -> http.client.HTTPResponse:
    """One call, on a connection of its own."""
    address = urllib.parse.urlsplit(BASE_URL)
    connection = http.client.HTTPConnection(address.netloc, timeout=60)
    connection.request(method, address.path + path, None if body is None else json.dumps(body), HEADERS)
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK:
        raise AssertionError(f"{response.status}: {response.read().decode()}")
    return response


def chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each event of a stream."""
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


def chat(**fields: object) -> Iterator[dict[str, Any]]:
    """A chat, as the page asks for it: always streamed."""
    body = {"stream": True, "model": MODEL, "messages": MESSAGES, **SETTINGS, **fields}
    return chunks(call("POST", "/chat/completions", body))


def text_of(answer: Iterator[dict[str, Any]]) -> str:
    """The text of a streamed answer."""
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in answer if chunk["choices"])


def image() -> None:
    """A chat about the picture, streamed."""
    listed = json.load(call("GET", "/models"))
    expect(listed["data"][0]["id"] == MODEL, listed)
    text = text_of(chat(messages=MESSAGES[-1:], stream_options={"include_usage": True}))
    expect(SEEN in text.lower(), text)
    expect(text_of(chat()), "no answer with a history")
    title = {"model": MODEL, "messages": MESSAGES[1:3], "stream": False, "max_completion_tokens": 20}
    expect(json.load(call("POST", "/chat/completions", title))["choices"][0]["message"]["content"], "no title")


def schema() -> None:
    """Answers in the form of a model."""
    form = {"type": "json_schema", "json_schema": {"name": "look", "strict": True, "schema": LOOK}}
    text = text_of(chat(response_format=form))
    expect(json.loads(text)["colour"] in COLOURS, text)


def tools() -> None:
    """A call that must be made, its result, and the answer."""
    calls: list[dict[str, Any]] = []
    for chunk in chat(tools=[DEFINITION], tool_choice="required"):
        # Open WebUI adds the pieces up in the first delta of a call, which keeps its `index`.
        for delta in chunk["choices"][0]["delta"].get("tool_calls", ()) if chunk["choices"] else ():
            if delta["index"] == len(calls):
                calls.append(delta)
            else:
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    expect(calls and json.loads(calls[0]["function"]["arguments"])["colour"] in COLOURS, calls)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": RESULT} for call in calls]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    text = text_of(chat(messages=[*MESSAGES, said, *results], tools=[DEFINITION], tool_choice="none"))
    expect(text, "no answer after the call")


def cancel() -> None:
    """A stream that the client leaves in the middle."""
    body = {"stream": True, "model": MODEL, "messages": MESSAGES, "structured_outputs": ENDLESS}
    response = call("POST", "/chat/completions", body)
    cancelled(chunks(response), response.close)


main("replay", image=image, schema=schema, tools=tools, cancel=cancel)
