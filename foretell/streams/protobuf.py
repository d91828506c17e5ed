"""Protobuf messages by a schema file: a descriptor set, as `protoc --descriptor_set_out` writes it, or a .proto."""

import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from foretell.core.errors import ConfigError, InvalidInput, did_you_mean


class ProtobufFormat:
    """One message of type `name` each; the only one of the file where `name` is ""."""

    def __init__(self, schema: Path, name: str = "") -> None:
        files = _descriptors(schema)
        pool = descriptor_pool.DescriptorPool()
        try:
            for file in files.file:
                pool.Add(file)
        except TypeError as error:
            raise ConfigError(f'"{schema}" is no complete descriptor set: {error}. Pass --include_imports') from None
        known = [f"{file.package}.{m.name}".lstrip(".") for file in files.file[-1:] for m in file.message_type]
        if not name and len(known) == 1:
            name = known[0]
        if name not in known:
            asked = f'no message "{name}"' if name else f"{len(known)} messages"
            raise ConfigError(f'"{schema}" has {asked}; write FILE#MESSAGE. {did_you_mean(name, known)}')
        descriptor = pool.FindMessageTypeByName(name)
        self._class = message_factory.GetMessageClass(descriptor)
        self._repeated = {f.name for f in descriptor.fields if f.is_repeated}
        self.fields = tuple(field.name for field in descriptor.fields)

    def decode(self, value: bytes) -> Any:
        try:
            return self._class.FromString(value)
        except Exception as error:  # DecodeError, whose class differs between implementations
            raise InvalidInput(f"not the Protobuf message that the schema describes: {error}") from None

    def column(self, rows: Sequence[Any], name: str) -> list[Any]:
        values = map(attrgetter(name), rows)
        return list(map(list, values)) if name in self._repeated else list(values)

    def event(self, row: Any) -> Mapping[str, Any]:
        return _fields(row)


def _fields(message: Message) -> dict[str, Any]:
    """Values as they are in columns; what is not set has its default, or is left out where the schema tells that."""
    return {
        field.name: _plain(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _plain(field: FieldDescriptor, value: Any) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        of = kind.fields_by_name["value"]
        return {key: _one(of, each) for key, each in value.items()}
    return [_one(field, each) for each in value] if field.is_repeated else _one(field, value)


def _one(field: FieldDescriptor, value: Any) -> Any:
    kind = field.message_type
    if kind is None:
        return value
    if kind.file.name == "google/protobuf/wrappers.proto":
        return value.value
    if kind.file.package != "google.protobuf":
        return _fields(value)
    try:
        return json_format.MessageToDict(value)  # a Timestamp is ISO 8601, a Struct a dict
    except Exception as error:  # what is out of range, or of a type that nobody described
        raise InvalidInput(f'field "{field.name}" is no {kind.name}: {error}') from None


def _descriptors(schema: Path) -> descriptor_pb2.FileDescriptorSet:
    try:
        raw = _compiled(schema) if schema.suffix == ".proto" else schema.read_bytes()
        files = descriptor_pb2.FileDescriptorSet.FromString(raw)
    except OSError as error:
        raise ConfigError(f'"{schema}" cannot be read: {error.strerror}') from None
    except Exception as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f'"{schema}" is no descriptor set: {error}. Make it: protoc --descriptor_set_out') from None
    if not files.file:
        raise ConfigError(f'"{schema}" describes no messages')
    return files


def _compiled(schema: Path) -> bytes:
    if find_spec("grpc_tools") is None:
        raise ConfigError(
            f'"{schema}" has to be compiled: pip install grpcio-tools, or name what'
            " protoc --include_imports --descriptor_set_out=FILE makes of it"
        )
    protoc = import_module("grpc_tools.protoc")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "set")
        common = Path(str(protoc.__file__)).with_name("_proto")  # timestamps, wrappers and the like
        folders = [f"-I{schema.parent}", f"-I{common}"]
        if protoc.main(["protoc", *folders, "--include_imports", f"--descriptor_set_out={out}", str(schema)]):
            raise ConfigError(f'"{schema}" does not compile; what is wrong stands above')
        return out.read_bytes()
