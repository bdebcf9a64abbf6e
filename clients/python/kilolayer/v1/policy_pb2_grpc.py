"""Stub and servicer of the service `kilolayer.v1.Policy`, with the names that generated code would have.

They are built from the service's descriptor, because generated code requires the grpcio version of its generator or
newer.
"""
# ruff: noqa: ARG002, N802 - the protocol names the methods, and they have the signatures of servers

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, NoReturn

import grpc
from google.protobuf import message_factory

from kilolayer.v1 import policy_pb2

_SERVICE = policy_pb2.DESCRIPTOR.services_by_name["Policy"]


class _Method(NamedTuple):
    name: str
    request: Any  # message class
    reply: Any  # message class
    kind: str  # as grpc names it, such as unary_unary


def _methods() -> Iterator[_Method]:
    for method in _SERVICE.methods:
        request, reply = (message_factory.GetMessageClass(each) for each in (method.input_type, method.output_type))
        kinds = ("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
        yield _Method(method.name, request, reply, "_".join(kinds))


class PolicyStub:
    """The service's methods on a channel of `grpc` or `grpc.aio`."""

    Act: Any
    ActStream: Any
    Score: Any
    Describe: Any
    List: Any
    Report: Any

    def __init__(self, channel: Any) -> None:
        for method in _methods():
            make: Callable[..., Any] = getattr(channel, method.kind)
            call = make(
                f"/{_SERVICE.full_name}/{method.name}",
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.reply.FromString,
            )
            setattr(self, method.name, call)


class PolicyServicer:
    """A server's methods. Override those that it offers; the others fail with UNIMPLEMENTED."""

    def Act(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        _not_implemented(context)

    def ActStream(self, request_iterator: Any, context: Any) -> Any:
        """Not implemented."""
        _not_implemented(context)

    def Score(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        _not_implemented(context)

    def Describe(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        _not_implemented(context)

    def List(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        _not_implemented(context)

    def Report(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        _not_implemented(context)


def add_PolicyServicer_to_server(servicer: Any, server: Any) -> None:
    """Have `server`, of `grpc` or `grpc.aio`, answer with the methods of `servicer`."""
    handlers: dict[str, Any] = {}
    for method in _methods():
        make: Callable[..., Any] = getattr(grpc, f"{method.kind}_rpc_method_handler")
        handlers[method.name] = make(
            getattr(servicer, method.name),
            request_deserializer=method.request.FromString,
            response_serializer=method.reply.SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers),))


def _not_implemented(context: Any) -> NoReturn:
    context.set_code(grpc.StatusCode.UNIMPLEMENTED)
    context.set_details("Method not implemented!")
    raise NotImplementedError("Method not implemented!")
