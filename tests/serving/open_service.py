"""A service whose methods need no token."""

from collections.abc import Mapping

from serving.access.roles import Role
from serving.api.rpc import Method, RpcService, StreamMethod, UnaryMethod


def open_service(
    unary: Mapping[str, UnaryMethod], streams: Mapping[str, StreamMethod], *, role: Role = Role.ANYONE
) -> RpcService:
    """The service test.Service; with `role`, its methods need that one."""
    return RpcService(
        "test.Service",
        {name: Method(role, method) for name, method in unary.items()},
        {name: Method(role, method) for name, method in streams.items()},
    )
