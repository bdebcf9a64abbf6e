"""Stubs and servicers from a service's descriptor, in place of generated code.

Generated code requires the grpcio version of its generator or newer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, NoReturn

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor


class _Method(NamedTuple):
    name: str
    request: Any  # message class
    reply: Any  # message class
    kind: str  # as grpc names it, such as unary_unary


def _methods(service: ServiceDescriptor) -> Iterator[_Method]:
    for method in service.methods:
        request, reply = (message_factory.GetMessageClass(each) for each in (method.input_type, method.output_type))
        kinds = ("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
        yield _Method(method.name, request, reply, "_".join(kinds))


def add_calls(stub: object, service: ServiceDescriptor, channel: Any) -> None:
    """Give `stub` an attribute for each method of `service`: a call on `channel`, of `grpc` or `grpc.aio`."""
    for method in _methods(service):
        make: Callable[..., Any] = getattr(channel, method.kind)
        call = make(
            f"/{service.full_name}/{method.name}",
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        setattr(stub, method.name, call)


def add_servicer(servicer: Any, service: ServiceDescriptor, server: Any) -> None:
    """Have `server`, of `grpc` or `grpc.aio`, answer calls of `service` with the methods of `servicer`."""
    handlers: dict[str, Any] = {}
    for method in _methods(service):
        make: Callable[..., Any] = getattr(grpc, f"{method.kind}_rpc_method_handler")
        handlers[method.name] = make(
            getattr(servicer, method.name),
            request_deserializer=method.request.FromString,
            response_serializer=method.reply.SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def not_implemented(context: Any) -> NoReturn:
    """End a call with UNIMPLEMENTED."""
    context.set_code(grpc.StatusCode.UNIMPLEMENTED)
    context.set_details("Method not implemented!")
    raise NotImplementedError("Method not implemented!")
