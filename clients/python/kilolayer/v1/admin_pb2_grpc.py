"""Stub and servicer of the service `kilolayer.v1.PolicyAdmin`, with the names that generated code would have."""
# ruff: noqa: ARG002, N802 - the protocol names the methods, and they have the signatures of servers

from __future__ import annotations

from typing import Any

from kilolayer._internal.grpc_services import add_calls, add_servicer, not_implemented
from kilolayer.v1 import admin_pb2

_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["PolicyAdmin"]


class PolicyAdminStub:
    """The service's methods on a channel of `grpc` or `grpc.aio`."""

    Status: Any
    Load: Any
    Unload: Any
    Switch: Any
    Rollback: Any
    Follow: Any
    Canary: Any
    Shadow: Any
    Drain: Any

    def __init__(self, channel: Any) -> None:
        add_calls(self, _SERVICE, channel)


class PolicyAdminServicer:
    """A server's methods. Override those that it offers; the others fail with UNIMPLEMENTED."""

    def Status(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Load(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Unload(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Switch(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Rollback(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Follow(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Canary(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Shadow(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)

    def Drain(self, request: Any, context: Any) -> Any:
        """Not implemented."""
        not_implemented(context)


def add_PolicyAdminServicer_to_server(servicer: Any, server: Any) -> None:
    """Have `server`, of `grpc` or `grpc.aio`, answer with the methods of `servicer`."""
    add_servicer(servicer, _SERVICE, server)
