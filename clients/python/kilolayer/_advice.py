"""What to do about a failure, by the server's reason. The server's message says what happened, and gives no advice."""

from __future__ import annotations

_BY_REASON = {
    "queue_full": "Send the next observation, not this one again; send fewer rows at a time, or raise --max-queue-rows",
    "queue_age": "Send the next observation, not this one again; send fewer requests at a time, or use more servers",
    "deadline_too_short": "Send the next observation, with more time or fewer rows",
    "memory_limit": "Receive the replies of earlier requests before sending more, and send fewer rows at a time",
    "rate_limit": "Send observations less often, or let the server's operator raise the token's rate",
    "draining": "Send the next observation to another server, or in a moment",
    "not_ready": "Use wait_until_ready, or send the next observation in a moment",
    "out_of_range": "Check the sensors and their units",
    "extreme_input": "Check the sensors and their units",
    "internal": "Hold a safe action, then send the next observation",
    "computation_failed": "Hold a safe action, then send the next observation",
    "computation_timeout": "Bring the robot to rest",
    "non_finite_action": "Bring the robot to rest",
}
_REPORT_AGAIN = "Send the report again later"


def advice(method: str, reason: str) -> str:
    """Return what to do if a call of `method` fails for `reason`; empty if the status alone says it."""
    if method == "Report" and reason in ("not_ready", "draining"):
        return _REPORT_AGAIN
    return _BY_REASON.get(reason, "")
