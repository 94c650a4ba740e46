"""Copies messages without some fields, by descriptor, so that new fields are always copied."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.message import Message

from vlm.v1 import decoder_pb2, gateway_pb2


def copy_fields(source: Message, target: Message, *, without: Collection[str] = ()) -> None:
    """Copy every set field to the field of the same name of another message, possibly of another type.

    Args:
        source: The source message.
        target: The target message.
        without: Fields that are neither copied nor read: reading a field of bytes copies it.

    Raises:
        AttributeError: `target` has no field of that name.
    """
    for field in source.DESCRIPTOR.fields:
        if field.name in without or (field.has_presence and not source.HasField(field.name)):
            continue
        value = getattr(source, field.name)
        if field.is_repeated:
            getattr(target, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def opening_of(request: gateway_pb2.ChatRequest, request_id: str, cache_scope: str) -> decoder_pb2.GenerateOpen:
    """The decoder's opening for a client's request, without its messages.

    Args:
        request: The client's message.
        request_id: The request's id, checked.
        cache_scope: As in `GenerateOpen`.
    """
    opening = decoder_pb2.GenerateOpen(request_id=request_id, cache_scope=cache_scope)
    copy_fields(request, opening, without=("messages", "request_id", "cache_salt"))
    return opening
