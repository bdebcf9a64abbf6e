"""UnreadCallCheck: under overload, rejects calls before they are read and parsed."""

from collections.abc import Collection

from serving.api.handlers import RpcHandlers
from serving.api.rpc import RpcContext
from serving.policies.registry import PolicyRegistry


class UnreadCallCheck:
    """The `OverloadCheck` of a service.

    Args:
        methods: names of the unary methods that compute.
        policies: say whether they are overloaded.
        handlers: count the rejected calls, and say whether the server shuts down.
    """

    def __init__(self, *methods: str, policies: PolicyRegistry, handlers: RpcHandlers) -> None:
        self.methods: Collection[str] = methods
        self._policies = policies
        self._handlers = handlers

    def is_active(self) -> bool:
        """Return whether every policy is overloaded. A server that shuts down refuses calls for that reason instead."""
        return self._policies.is_overloaded() and not self._handlers.draining

    def check(self, context: RpcContext) -> None:
        """Reject a call that no policy would admit, and count it.

        Raises:
            OverloadedError: the call is rejected.
        """
        if rejection := self._policies.reject_unread(context.deadline_s, connection=context.connection):
            self._handlers.count_unread(rejection.reason, context)
            raise rejection.error()
