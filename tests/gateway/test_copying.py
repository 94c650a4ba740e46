"""What a client sends reaches the decoder whole, fields that are added to the wire later included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.copying import copy_fields, opening_of
from gateway.media import RequestLimits, collect
from vlm.v1 import chat_pb2, decoder_pb2, gateway_pb2, media_pb2

_VALUES = {
    FieldDescriptor.CPPTYPE_STRING: "x",
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_ENUM: 1,
}


def fill(message: Message) -> None:
    """Set every field of a message and of the messages in it; of a oneof the first."""
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None and oneof.fields[0] is not field:
            continue
        _fill_field(message, field)


def _fill_field(message: Message, field: FieldDescriptor) -> None:
    kind = field.message_type
    value = b"file" if field.type == FieldDescriptor.TYPE_BYTES else _VALUES.get(field.cpp_type, 1)
    if kind is not None and kind.GetOptions().map_entry:
        getattr(message, field.name)[1] = 1
    elif kind is not None and kind.full_name.startswith("google."):  # Struct is recursive; a set one is enough
        getattr(message, field.name).SetInParent()
    elif kind is not None:
        inner = getattr(message, field.name)
        inner = inner.add() if field.is_repeated else inner
        inner.SetInParent()
        fill(inner)
    elif field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


@pytest.fixture
def request_with_everything() -> gateway_pb2.ChatRequest:
    """A request with every field set, and a message with a part of each kind."""
    request = gateway_pb2.ChatRequest()
    fill(request)
    parts = request.messages[0].parts
    first = chat_pb2.Part.DESCRIPTOR.oneofs_by_name["part"].fields[0]
    for field in chat_pb2.Part.DESCRIPTOR.fields:
        if field.containing_oneof is not None and field is not first:
            part = parts.add()
            part.CopyFrom(parts[0])
            _fill_field(part, field)  # takes the place of the first
    return request


def without_sources(messages: list[chat_pb2.Message]) -> Iterator[chat_pb2.Message]:
    """The messages without what names the file of a medium: that alone is replaced."""
    for message in messages:
        copy = chat_pb2.Message()
        copy.CopyFrom(message)
        for part in copy.parts:
            which = part.WhichOneof("part")
            if which in ("image", "video"):
                for source in media_pb2.Media.DESCRIPTOR.oneofs_by_name["source"].fields:
                    getattr(part, which).ClearField(source.name)
        yield copy


async def test_every_field_of_a_chat_reaches_the_decoder(request_with_everything: gateway_pb2.ChatRequest) -> None:
    """The opening has all that the request has, but for the request's id, the files, and the salt of its scope."""
    opening = opening_of(request_with_everything, "id", "scope")
    for field in gateway_pb2.ChatRequest.DESCRIPTOR.fields:
        if field.name not in ("messages", "request_id", "cache_salt"):
            assert getattr(opening, field.name) == getattr(request_with_everything, field.name) != field.default_value
    assert (opening.request_id, opening.cache_scope) == ("id", "scope")
    conversation = await collect(request_with_everything.messages, RequestLimits())
    assert {m.WhichOneof("part") for m in conversation.messages[0].parts} >= {"text", "image", "video", "tool_call"}
    assert list(without_sources(list(conversation.messages))) == list(
        without_sources(list(request_with_everything.messages))
    )


def _lost(sent: Descriptor, taken: Descriptor) -> set[str]:
    """Fields of one message that another one has not, or with another type."""

    def shape(field: FieldDescriptor | None) -> object:
        return field and (field.type, field.is_repeated, field.has_presence, field.message_type, field.enum_type)

    return {field.name for field in sent.fields if shape(field) != shape(taken.fields_by_name.get(field.name))}


def test_the_decoder_takes_every_field_of_a_chat() -> None:
    """A field that is added to ChatRequest alone could not be passed on."""
    assert _lost(gateway_pb2.ChatRequest.DESCRIPTOR, decoder_pb2.GenerateOpen.DESCRIPTOR) == {"cache_salt"}


def test_a_field_that_is_missing_is_found() -> None:
    """Negative control: a count's request has fields that the decoder's has not, and copying one of them fails."""
    sent, taken = gateway_pb2.CountTokensRequest, decoder_pb2.CountPromptTokensRequest
    assert _lost(sent.DESCRIPTOR, taken.DESCRIPTOR) == {"media", "request_id"}
    with pytest.raises(AttributeError):
        copy_fields(sent(request_id="mine"), taken())


def test_fields_that_are_left_out_stay_unset() -> None:
    """Also where unset differs from zero; what is set to zero stays set."""
    copy = chat_pb2.GenerationOptions()
    copy_fields(chat_pb2.GenerationOptions(top_k=0, seed=3), copy, without=("seed",))
    assert copy.HasField("top_k")
    assert not copy.HasField("seed")
    assert not copy.HasField("temperature")
