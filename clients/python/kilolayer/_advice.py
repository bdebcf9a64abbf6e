"""What to do about a failure, by method and reason. The server's message says what happened, and gives no advice."""

from __future__ import annotations

_BY_REASON = {
    "queue_full": "Send the next observation, not this one again; send fewer rows at a time, or raise --max-queue-rows",
    "queue_age": "Send the next observation, not this one again; send fewer requests at a time, or use more servers",
    "deadline_too_short": "Send the next observation, with more time or fewer rows",
    "memory_limit": "Receive the replies of earlier requests before sending more, and send fewer rows at a time",
    "rate_limit": "Make calls less often, or let the server's operator raise the token's rate",
    "draining": "Send the next observation to another server, or in a moment",
    "not_ready": "Use wait_until_ready, or send the next observation in a moment",
    "out_of_range": "Check the sensors and their units",
    "extreme_input": "Check the sensors and their units",
    "internal": "Hold a safe action, then send the next observation",
    "computation_failed": "Hold a safe action, then send the next observation",
    "computation_timeout": "Bring the robot to rest",
    "non_finite_action": "Bring the robot to rest",
}
# Methods without an observation. What they ask for is not outdated by the next one.
_AGAIN = {"Report": "send the report again later", "Describe": "try again in a moment", "List": "try again in a moment"}


def advice(method: str, *, status: str, reason: str) -> str:
    """Return what to do if a call of `method` fails; empty if the status alone says it.

    Args:
        method: of the service.
        status: name of the gRPC status.
        reason: the server's, or empty.
    """
    if method in _AGAIN and reason != "rate_limit":
        return _again(_AGAIN[method], status=status, reason=reason)
    return _BY_REASON.get(reason, "")


def _again(again: str, *, status: str, reason: str) -> str:
    if status == "UNAVAILABLE" and not reason:
        return f"Check the address, or {again}"
    if status == "DEADLINE_EXCEEDED":
        return f"{again.capitalize()}, or allow more time"
    return again.capitalize() if status in ("UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED") else ""
