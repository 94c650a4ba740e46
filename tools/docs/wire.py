"""The protocol as a page: services, messages and enums with the comments of the protos."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from tools.docs.tables import table

PROTOS = Path(__file__).parents[2] / "protos"
FILES = ("gateway", "chat", "media", "vision", "decoder", "tensor")
"""The files in the order of the page."""

_PACKAGE = ".vlm.v1."

# Numbers of fields in descriptor.proto: a comment's location is a path of them.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_OF_MESSAGE_FIELDS, _OF_MESSAGE_ONEOFS = 2, 8
_OF_ENUM_VALUES = 2
_OF_SERVICE_METHODS = 2

_Path = tuple[int, ...]


def descriptors() -> FileDescriptorSet:
    """The descriptors of the protos, with comments.

    Raises:
        RuntimeError: They do not compile; protoc has printed the cause on stderr.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]  # noqa: PLC0415  # only needed to write the page

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        known = resources.files("grpc_tools") / "_proto"
        sources = [str(PROTOS / "vlm" / "v1" / f"{name}.proto") for name in FILES]
        flags = [f"-I{PROTOS}", f"-I{known}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *flags, *sources]) != 0:
            raise RuntimeError("the protos do not compile")
        return FileDescriptorSet.FromString(out.read_bytes())


def markdown() -> str:
    """The page's text for all files."""
    files = {Path(file.name).stem: file for file in descriptors().file}
    return "\n\n".join(block for name in FILES for block in _File(files[name]).blocks())


class _File:
    """One proto file.

    Args:
        file: Its descriptor.
    """

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments: dict[_Path, str] = {
            tuple(location.path): location.leading_comments for location in file.source_code_info.location
        }

    def blocks(self) -> Iterator[str]:
        """Headings, paragraphs and tables, in the order of the file: services, messages, enums."""
        yield f"## {Path(self._file.name).name}"
        for index, service in enumerate(self._file.service):
            yield from self._service(service, (_SERVICES, index))
        for index, message in enumerate(self._file.message_type):
            yield from self._message(message, (_MESSAGES, index))
        for index, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, (_ENUMS, index))

    def _comment(self, path: _Path) -> str:
        """A comment as paragraphs, one line each."""
        paragraphs = self._comments.get(path, "").strip().split("\n\n")
        return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

    def _service(self, service: ServiceDescriptorProto, path: _Path) -> Iterator[str]:
        yield f"### service {service.name}"
        yield self._comment(path)
        rows = [
            [f"`{method.name}`", _signature(method), self._comment((*path, _OF_SERVICE_METHODS, index))]
            for index, method in enumerate(service.method)
        ]
        yield table(["Call", "Takes and gives", "Meaning"], rows)

    def _message(self, message: DescriptorProto, path: _Path) -> Iterator[str]:
        yield f"### {message.name}"
        yield self._comment(path)
        if not message.field:
            yield "No fields."
            return
        rows = [
            [
                f"`{field.name}`",
                str(field.number),
                _type(field, message),
                self._comment((*path, _OF_MESSAGE_FIELDS, index)),
            ]
            for index, field in enumerate(message.field)
        ]
        yield table(["Field", "No.", "Type", "Meaning"], rows)
        for index, oneof in enumerate(message.oneof_decl):
            members = [
                f"`{field.name}`"
                for field in message.field
                if field.HasField("oneof_index") and field.oneof_index == index and not field.proto3_optional
            ]
            if members:  # an optional field has an implicit oneof
                comment = self._comment((*path, _OF_MESSAGE_ONEOFS, index))
                yield f"`oneof {oneof.name}`: {', '.join(members)}. {comment}".strip()

    def _enum(self, enum: EnumDescriptorProto, path: _Path) -> Iterator[str]:
        yield f"### {enum.name}"
        yield self._comment(path)
        rows = [
            [f"`{value.name}`", str(value.number), self._comment((*path, _OF_ENUM_VALUES, index))]
            for index, value in enumerate(enum.value)
        ]
        yield table(["Value", "No.", "Meaning"], rows)


def _link(full_name: str) -> str:
    """The name of a type, with a link if it is one of ours."""
    if not full_name.startswith(_PACKAGE):
        return f"`{full_name.removeprefix('.')}`"
    name = full_name.removeprefix(_PACKAGE)
    return f"[{name}](#{name.lower()})"


def _signature(method: MethodDescriptorProto) -> str:
    taken = ("stream of " if method.client_streaming else "") + _link(method.input_type)
    given = ("stream of " if method.server_streaming else "") + _link(method.output_type)
    return f"{taken} → {given}"


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    """A field's type in the form of the proto."""
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    entry = entries.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = entry.field
        return f"map of {_plain(key)} to {_plain(value)}"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {_plain(field)}"
    return f"optional {_plain(field)}" if field.proto3_optional else _plain(field)


def _plain(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
