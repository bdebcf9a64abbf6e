"""Refusals: counts and logs the calls that are refused because of who calls, and makes their errors.

The caller gets the same text for every cause; the log names it. A flood of refused calls must not fill the log, so each
cause has at most one line every 10 s, which says how many calls had none.
"""

import enum
import logging
import time
from collections.abc import Callable

from prometheus_client import Counter

from serving.access.tokens import Caller
from serving.errors import PermissionDeniedError, RateLimitError, ServingError, UnauthenticatedError

_LOGGER = logging.getLogger(__name__)

QUIET_S = 10.0
"""Time between two lines about one cause."""


class Cause(enum.StrEnum):
    """Why a call is refused; a metric label."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REMOVED = "removed"
    ROLE = "role"
    RATE_LIMIT = "rate_limit"


_TEXTS = {
    Cause.MISSING: "the call has no token",
    Cause.MALFORMED: "the authorization is not one bearer token",
    Cause.UNKNOWN: "the token is unknown",
    Cause.REMOVED: "the token was removed while the stream was open",
    Cause.ROLE: "the token does not have the role of the method",
    Cause.RATE_LIMIT: "the token makes more calls than its calls_per_second",
}


class Refusals:
    """The refused calls of one server.

    Args:
        counter: returns the counter of a cause.
        clock: monotonic seconds.
    """

    def __init__(self, counter: Callable[[Cause], Counter], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counters = {cause: counter(cause) for cause in Cause}  # shown from the start, with 0
        self._clock = clock
        self._quiet_until_s = dict.fromkeys(Cause, float("-inf"))
        self._silent = dict.fromkeys(Cause, 0)  # calls without a line since the last one

    def refuse(self, cause: Cause, *, method: str, peer: str, caller: Caller | None) -> ServingError:
        """Count and log a refused call, and return its error.

        Args:
            cause: why it is refused.
            method: that it calls, one of the server's.
            peer: its address, as the transport names it.
            caller: whose token it has, if that is known.
        """
        self._counters[cause].inc()
        now_s = self._clock()
        if now_s < self._quiet_until_s[cause]:
            self._silent[cause] += 1
        else:
            self._quiet_until_s[cause] = now_s + QUIET_S
            silent, self._silent[cause] = self._silent[cause], 0
            _log(cause, method=method, peer=peer, name=caller.token.name if caller else "", silent=silent)
        return _error(cause, caller)


def _log(cause: Cause, *, method: str, peer: str, name: str, silent: int) -> None:
    whose = f" with the token {name}" if name else ""
    others = f"; {silent} more calls were refused for this cause since its last line" if silent else ""
    _LOGGER.warning(
        "refused %s from %s%s: %s%s",
        *(method, peer, whose, _TEXTS[cause], others),
        extra={"cause": cause.value, "method": method, "peer": peer, "token_name": name, "more": silent},
    )


def _error(cause: Cause, caller: Caller | None) -> ServingError:
    if cause is Cause.RATE_LIMIT:
        rate = (caller and caller.token.calls_per_second) or 0
        return RateLimitError(f"the token made more calls than its rate of {rate:g} calls per second")
    return PermissionDeniedError() if cause is Cause.ROLE else UnauthenticatedError()
