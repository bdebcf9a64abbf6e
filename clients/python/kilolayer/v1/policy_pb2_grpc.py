"""Stub and servicer of the service `kilolayer.v1.Policy`, with the names that generated code would have."""
# ruff: noqa: ARG002, N802 - the protocol names the methods, and they have the signatures of servers

from __future__ import annotations

from typing import Any

from kilolayer._internal.grpc_services import add_calls, add_servicer, not_implemented
from kilolayer.v1 import policy_pb2

_SERVICE = policy_pb2.DESCRIPTOR.services_by_name["Policy"]


class PolicyStub:
    """The service's methods on a channel of `grpc` or `grpc.aio`."""

    Act: Any
    ActStream: Any
    Score: Any
    Describe: Any
    List: Any
    Report: Any

    def __init__(self, channel: Any) -> None:
        add_calls(self, _SERVICE, channel)


class PolicyServicer:
    """A server's methods. Override those that it offers; the others fail with UNIMPLEMENTED."""

    def Act(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def ActStream(self, request_iterator: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Score(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Describe(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def List(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Report(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)


def add_PolicyServicer_to_server(servicer: Any, server: Any) -> None:
    """Have `server`, of `grpc` or `grpc.aio`, answer with the methods of `servicer`."""
    add_servicer(servicer, _SERVICE, server)
