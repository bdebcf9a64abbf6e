"""Guard: decides whether a call may go on, by its metadata alone, before a transport reads its request.

Every transport asks it once for a call, with the role that the method declares, and with the metadata as pairs of keys
and values. HTTP headers with lower-case names are such pairs, too. A stream also asks for each of its messages: whether
its token is still accepted, and whether the token's rate allows one more.
"""

import functools
import re
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from serving.access.refusals import Cause, Refusals
from serving.access.roles import Role
from serving.access.tokens import Caller, Tokens
from serving.errors import ServingError

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

_KEY = "authorization"
_BEARER = re.compile(r"bearer +([!-~]+)", re.IGNORECASE | re.ASCII)


class _Found(NamedTuple):
    cause: Cause | None  # why the call may not go on
    caller: Caller | None  # who makes it, if that is known


class Guard:
    """The check of one server.

    Args:
        tokens: those that are accepted.
        refusals: count and log the refused calls.
        clock: monotonic seconds.
    """

    def __init__(self, tokens: Tokens, refusals: Refusals, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._refusals = refusals
        self._clock = clock

    def check(self, role: Role, metadata: Metadata) -> Caller | None:
        """Return who makes a call, and count the call for the rate of the token. None: `admit` refuses it."""
        cause, caller = self._take(self._find(role, metadata))
        return None if cause else caller

    def admit(self, role: Role, metadata: Metadata, *, method: str, peer: str) -> Caller:
        """Return who makes a call, and count the call for the rate of the token.

        Args:
            role: that the method needs; not ANYONE.
            metadata: its keys and values.
            method: for the log; one of the server's, such as "/kilolayer.v1.Policy/Act".
            peer: for the log, its address.

        Raises:
            ServingError: the call is refused. That is counted, and logged unless there are many such calls.
        """
        return self._accepted(self._take(self._find(role, metadata)), method=method, peer=peer)

    def open_stream(self, role: Role, metadata: Metadata, *, method: str, peer: str) -> "StreamAccess":
        """Return what checks the messages of a stream; the stream itself does not count. As `admit` otherwise."""
        caller = self._accepted(self._find(role, metadata), method=method, peer=peer)
        refuse = functools.partial(self._refusals.refuse, method=method, peer=peer, caller=caller)
        return StreamAccess(caller, role, refuse=refuse, clock=self._clock)

    def _find(self, role: Role, metadata: Metadata) -> _Found:
        presented: str | bytes | None = None
        for key, value in metadata:
            if key == _KEY:
                if presented is not None:
                    return _Found(Cause.MALFORMED, None)
                presented = value
        if presented is None:
            return _Found(Cause.MISSING, None)
        bearer = _BEARER.fullmatch(presented) if isinstance(presented, str) else None
        if bearer is None:
            return _Found(Cause.MALFORMED, None)
        caller = self._tokens.find(bearer[1].encode())
        return _with_role(caller, role) if caller else _Found(Cause.UNKNOWN, None)

    def _take(self, found: _Found) -> _Found:
        if found.cause or not found.caller or found.caller.take(self._clock()):
            return found
        return found._replace(cause=Cause.RATE_LIMIT)

    def _accepted(self, found: _Found, *, method: str, peer: str) -> Caller:
        if found.cause:
            raise self._refusals.refuse(found.cause, method=method, peer=peer, caller=found.caller)
        assert found.caller
        return found.caller


class StreamAccess:
    """The access of an open stream.

    Args:
        caller: who opened it.
        role: that its method needs.
        refuse: counts and logs a message that is refused, and returns its error.
        clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_refuse", "_role", "caller")

    def __init__(
        self, caller: Caller, role: Role, *, refuse: Callable[[Cause], ServingError], clock: Callable[[], float]
    ) -> None:
        self.caller = caller
        self._role = role
        self._refuse = refuse
        self._clock = clock

    def check(self) -> None:
        """Check a message that has arrived, before it is parsed.

        Raises:
            AccessError: the token was removed, or has lost the role. The stream ends.
        """
        if self.caller.is_removed:
            raise self._refuse(Cause.REMOVED)
        if self._role not in self.caller.token.roles:
            raise self._refuse(Cause.ROLE)

    def count(self) -> None:
        """Count a message for the rate of the token.

        Raises:
            RateLimitError: there are too many. The stream goes on.
        """
        if not self.caller.take(self._clock()):
            raise self._refuse(Cause.RATE_LIMIT)


def _with_role(caller: Caller, role: Role) -> _Found:
    return _Found(None if role in caller.token.roles else Cause.ROLE, caller)
