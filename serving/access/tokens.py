"""Tokens: finds the token that a caller presents, in constant time, and limits how often it is used.

A file gives the tokens (`serving.access.token_file`), and may change while the server serves. An open stream keeps its
`Caller`, so it notices when its token is removed or loses its role.
"""

import dataclasses
import hashlib
import hmac
from collections.abc import Iterable

from serving.access.roles import Role

_BURST_S = 1.0  # calls of this time may be made at the same moment
_ROUNDING = 1e-9  # of a call; sums of times are not exact


@dataclasses.dataclass(frozen=True)
class Token:
    """A token and what it allows. The token itself is not kept.

    Args:
        name: for logs.
        digest: its SHA-256, 32 bytes.
        roles: which methods it may call.
        calls_per_second: its rate; None: any.
    """

    name: str
    digest: bytes = dataclasses.field(repr=False)
    roles: frozenset[Role]
    calls_per_second: float | None = None


class Caller:
    """Who uses a token. As long as its file has the token, there is one object for it.

    Args:
        token: what it may do now.
    """

    __slots__ = ("_calls", "_since_s", "is_removed", "token")

    def __init__(self, token: Token) -> None:
        self.token = token
        self.is_removed = False
        """Whether the file does not have the token any more."""
        self._calls = _burst(token)  # that may be made now
        self._since_s: float | None = None  # when that was computed

    def take(self, now_s: float) -> bool:
        """Count a call at the time `now_s`. Return False if the rate does not allow it; then it is not counted."""
        rate = self.token.calls_per_second
        if rate is None:
            return True
        since_s = now_s if self._since_s is None else self._since_s
        self._calls = min(self._calls + (now_s - since_s) * rate, _burst(self.token))
        self._since_s = now_s
        if self._calls < 1 - _ROUNDING:
            return False
        self._calls -= 1
        return True


class Tokens:
    """The tokens that are accepted now."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._callers: tuple[Caller, ...] = ()
        self.replace(tokens)

    def replace(self, tokens: Iterable[Token]) -> None:
        """Accept these tokens from now on, and no others. A token that stays keeps what it has used of its rate."""
        before = {caller.token.digest: caller for caller in self._callers}
        callers: list[Caller] = []
        for token in tokens:
            caller = before.pop(token.digest, None) or Caller(token)
            caller.token = token
            callers.append(caller)
        for caller in before.values():
            caller.is_removed = True
        self._callers = tuple(callers)

    def find(self, presented: bytes) -> Caller | None:
        """Return the caller whose token is `presented`. The time does not depend on which one it is, if any."""
        digest, found = hashlib.sha256(presented).digest(), None
        for caller in self._callers:
            if hmac.compare_digest(caller.token.digest, digest):
                found = caller
        return found

    def __len__(self) -> int:
        return len(self._callers)


def _burst(token: Token) -> float:
    """Return how many calls may be made at the same moment; at least 1."""
    return max((token.calls_per_second or 0) * _BURST_S, 1.0)
