"""Requests that no client would send, for both doors: valid ones in which something was changed at random."""

from __future__ import annotations

import base64
import copy
import functools
import struct
from pathlib import Path
from typing import Any

from google.protobuf import descriptor as descriptors
from google.protobuf.message import Message
from hypothesis import strategies as st

from vlm.v1 import chat_pb2, gateway_pb2, media_pb2

Field = descriptors.FieldDescriptor

_EXAMPLES = Path(__file__).parents[2] / "demo" / "examples"
PICTURE = (_EXAMPLES / "scene.png").read_bytes()
FILM = (_EXAMPLES / "clip.mp4").read_bytes()

_SCHEMA = '{"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": false}'
_WORDS = (
    "",
    " ",
    "\0",
    "\ufeff",
    "\U0001f600" * 3,
    "<|im_end|>",
    "<|image_pad|>",
    "<tool_call>",
    "</think>",
    "{}",
    "[",
    "null",
    _SCHEMA,
    '{"$ref": "#"}',
    '{"type": "string", "pattern": "(?<=a)b"}',
    '{"not": {}}',
    "(",
    "a{99999}",
    "start: start",
    'start: "a"',
    "data:,",
    "https://example.com/a.png",
    "../../etc/passwd",
    "0" * 64,
    "a" * 5000,
)
_INTEGERS = (0, 1, 2, 7, 127, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e-40, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))

words = st.sampled_from(_WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file: random bytes, or a picture or a clip that is whole, cut short, or changed in some places."""
    whole = draw(st.sampled_from((PICTURE, FILM)))
    match draw(st.integers(0, 3)):
        case 0:
            return draw(st.binary(max_size=200))
        case 1:
            return whole[: draw(st.integers(0, len(whole)))]
        case 2:
            return whole
    changed = bytearray(whole)
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8)):
        changed[place] = value
    return bytes(changed)


def _numbers(least: int, bits: int) -> st.SearchStrategy[int]:
    most = least + (1 << bits) - 1
    return st.sampled_from([number for number in _INTEGERS if number <= most]) | st.integers(least, most)


_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    Field.TYPE_BOOL: st.booleans(),
    Field.TYPE_BYTES: files(),
    Field.TYPE_DOUBLE: st.sampled_from(_FLOATS) | st.floats(),
    Field.TYPE_FLOAT: st.sampled_from([struct.unpack("f", struct.pack("f", x))[0] for x in _FLOATS if abs(x) < 3e38])
    | st.floats(width=32),
    Field.TYPE_INT32: _numbers(-(1 << 31), 32),
    Field.TYPE_INT64: _numbers(-(1 << 63), 64),
    Field.TYPE_STRING: words,
    Field.TYPE_UINT32: _numbers(0, 32),
    Field.TYPE_UINT64: _numbers(0, 64),
    Field.TYPE_ENUM: st.integers(0, 8) | st.sampled_from((99, -1, (1 << 31) - 1)),  # also values that there are not
}


def _is_map(field: descriptors.FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _change(draw: st.DrawFn, message: Message, depth: int) -> None:
    """Change one field of a message, or of a message inside it."""
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    if draw(st.integers(0, 9)) == 0:
        message.ClearField(field.name)
    elif _is_map(field):
        keys, values = field.message_type.fields
        entry = draw(_SCALARS[keys.type]), draw(_SCALARS[values.type])
        getattr(message, field.name)[entry[0]] = entry[1]
    elif field.is_repeated:
        inside = getattr(message, field.name)
        if field.message_type is None:
            inside.extend(draw(st.lists(_SCALARS[field.type], max_size=3)))
            return
        if not inside or draw(st.booleans()):
            inside.add()
        _change_inside(draw, inside[draw(st.integers(0, len(inside) - 1))], depth)
    elif field.message_type is not None:
        inside = getattr(message, field.name)
        inside.SetInParent()
        _change_inside(draw, inside, depth)
    else:
        setattr(message, field.name, draw(_SCALARS[field.type]))


def _change_inside(draw: st.DrawFn, message: Message, depth: int) -> None:
    for _ in range(draw(st.integers(0 if depth < 5 else 1, 2))):
        if depth < 6:
            _change(draw, message, depth + 1)


def _part(**kind: Any) -> chat_pb2.Part:
    return chat_pb2.Part(**kind)


def _valid_chats() -> list[gateway_pb2.ChatRequest]:
    """Requests that are answered, with the features that a request can have."""

    def chat(*parts: chat_pb2.Part, **more: Any) -> gateway_pb2.ChatRequest:
        messages = [chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(text="What is it?"), *parts])]
        return gateway_pb2.ChatRequest(messages=messages, generation=chat_pb2.GenerationOptions(max_tokens=8), **more)

    tool = chat_pb2.Tool(name="look", description="Looks.", parameters=_SCHEMA)
    called = chat(tools=[tool], tool_choice=chat_pb2.ToolChoice(required=True))
    called.messages.add(role=chat_pb2.ROLE_ASSISTANT).parts.add().tool_call.MergeFrom(
        chat_pb2.ToolCall(id="1", name="look", arguments="{}")
    )
    called.messages.add(role=chat_pb2.ROLE_TOOL, tool_call_id="1").parts.add(text="A circle.")
    formed = chat()
    formed.generation.response_format.json_schema = _SCHEMA
    return [
        chat(),
        chat(chat_pb2.Part(image=media_pb2.Media(data=PICTURE))),
        chat(chat_pb2.Part(video=media_pb2.Media(data=FILM, options=media_pb2.MediaOptions(max_frames=4)))),
        called,
        formed,
    ]


VALID_CHATS = _valid_chats()


@st.composite
def chats(draw: st.DrawFn) -> gateway_pb2.ChatRequest:
    """A ChatRequest in which up to four fields and a file were changed; rarely one that is random throughout."""
    request = gateway_pb2.ChatRequest()
    if draw(st.integers(0, 9)):
        request.CopyFrom(draw(st.sampled_from(VALID_CHATS)))
    media = [getattr(part, kind) for part in _parts(request) if (kind := part.WhichOneof("part")) in ("image", "video")]
    if media and draw(st.booleans()):
        media[0].data = draw(files())
    for _ in range(draw(st.integers(0 if media else 1, 4))):
        _change(draw, request, 0)
    return request


def _parts(request: gateway_pb2.ChatRequest) -> list[chat_pb2.Part]:
    return [part for message in request.messages for part in message.parts]


_NUMBERS = (*_INTEGERS, -1, -(1 << 63), 1 << 70, 0.5, 1.5, 16.0, 1e300, -1e-300)
_jsons = st.recursive(
    st.none() | st.booleans() | words | st.sampled_from(_NUMBERS) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


def data_url(data: bytes, kind: str) -> str:
    """A file as a data: URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _valid_bodies() -> list[dict[str, Any]]:
    """The same in JSON."""

    def body(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
        content = [{"type": "text", "text": "What is it?"}, *parts]
        return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}

    function = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    called = body(tools=[{"type": "function", "function": function}], tool_choice="required")
    called["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "A circle."},
    ]
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [1, 2]}, "strict": True}}
    return [
        body(stream=True, stream_options={"include_usage": True}),
        body({"type": "image_url", "image_url": {"url": data_url(PICTURE, "image/png")}}),
        body({"type": "video_url", "video_url": {"url": data_url(FILM, "video/mp4")}}, mm_processor_kwargs={"fps": 1}),
        called,
        body(response_format=form, temperature=1, top_p=0.5, seed=1, logprobs=True, top_logprobs=2, stop=["a"]),
    ]


VALID_BODIES = _valid_bodies()


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON value that is inside something else."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in ((*place, key), *_places(item, (*place, key)))]


def _fitting(schema: dict[str, Any], schemas: dict[str, Any]) -> st.SearchStrategy[Any]:  # noqa: PLR0911  # one a type
    """Values that a schema of the API's description allows, as far as its types, bounds and names go."""
    inner = functools.partial(_fitting, schemas=schemas)
    match schema:
        case {"$ref": str() as name}:
            return st.deferred(lambda: inner(schemas[name.rpartition("/")[2]]))
        case {"anyOf": choices} | {"oneOf": choices}:
            return st.one_of(map(inner, choices))
        case {"const": value}:
            return st.just(value)
        case {"enum": values}:
            return st.sampled_from(values)
        case {"type": "object", "properties": dict() as properties}:
            required = {name: inner(properties[name]) for name in schema.get("required", ())}
            return st.fixed_dictionaries(
                required, optional={name: inner(of) for name, of in properties.items() if name not in required}
            )
        case {"type": "object"}:
            return st.dictionaries(
                words | st.integers(0, 300).map(str), inner(schema["additionalProperties"]), max_size=3
            )
        case {"type": "array"}:
            return st.lists(inner(schema["items"]), max_size=3)
        case {"type": "string"}:
            return words | files().map(lambda data: data_url(data, "image/png"))
        case {"type": "integer"}:
            least, end = schema.get("minimum", -(1 << 63)), schema.get("exclusiveMaximum", 1 << 63)
            return (
                st.sampled_from([least, end - 1]) | st.integers(least, min(end - 1, 64)) | st.integers(least, end - 1)
            )
        case {"type": "number"}:
            return st.floats(0, 2) | st.floats(allow_nan=False, allow_infinity=False)
        case {"type": "boolean"}:
            return st.booleans()
        case {"type": "null"}:
            return st.none()
    return _jsons


def bodies(schemas: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A request's JSON in which up to four things were changed.

    Args:
        schemas: Of the API's description.
    """
    request = schemas["CompletionRequest"]["properties"]
    fields = {name: _fitting(schema, schemas) for name, schema in request.items()}

    @st.composite
    def changed(draw: st.DrawFn) -> Any:
        body = copy.deepcopy(draw(st.sampled_from(VALID_BODIES)))
        for _ in range(draw(st.integers(1, 4))):
            places = _places(body)
            if not places or draw(st.integers(0, 2)):
                name = draw(st.sampled_from(sorted(fields)))
                body[name] = draw(fields[name] if draw(st.integers(0, 4)) else _jsons)
                continue
            *way, last = draw(st.sampled_from(places))
            inside: Any = body
            for step in way:
                inside = inside[step]
            match draw(st.integers(0, 3)):
                case 0:
                    del inside[last]
                case 1:
                    inside[last] = data_url(draw(files()), "image/png")
                case 2:
                    inside[last] = [inside[last]]
                case _:
                    inside[last] = draw(_jsons)
        return body

    return changed()
