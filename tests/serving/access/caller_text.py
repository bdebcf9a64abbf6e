"""Requests of every method, with a text of the caller in every field that can hold one."""

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from kilolayer.v1 import admin_pb2, policy_pb2
from serving.api.open_inference import open_inference_pb2

MARK = "a-text-of-the-caller"


def methods() -> dict[str, MethodDescriptor]:
    """Every method of the protocols, by its path."""
    files = (policy_pb2, admin_pb2, health_pb2, open_inference_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}


def request(path: str, text: str) -> bytes:
    """A request of this method that holds `text` wherever it can."""
    return _filled(methods()[path].input_type, text).SerializeToString()


def raw_request(path: str, text: bytes) -> bytes:
    """As `request`, of a caller that writes any bytes into its strings; at most as many as MARK has."""
    mark = MARK.encode()
    assert len(text) <= len(mark)
    return request(path, MARK).replace(mark, text.ljust(len(mark), b"-"))


def _filled(kind: Descriptor, text: str) -> Message:
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
            getattr(message, field.name).append(text)
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, text)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            _fill_message(message, field, text)
    return message


def _fill_message(message: Message, field: FieldDescriptor, text: str) -> None:
    kind = field.message_type
    assert kind
    values = getattr(message, field.name)
    if kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"]
        if value.message_type:
            values[text].CopyFrom(_filled(value.message_type, text))
        else:
            values[text] = text
    elif field.is_repeated:
        values.append(_filled(kind, text))
    else:
        values.CopyFrom(_filled(kind, text))
