"""What kilolayer-admin prints: the reply of a server in words, or as a table."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from kilolayer.v1 import admin_pb2 as pb

_COLUMNS = ("POLICY", "LIVE", "PREVIOUS", "LOADED", "WANTED", "FOLLOWING")


def describe(action: str, reply: "Message", *, version: str) -> str:
    """Return the reply to an action in words. Names of files in it may have characters that do not print.

    Args:
        action: of the command.
        reply: from the server.
        version: that the command names; empty: none.
    """
    return _DESCRIPTIONS[action](reply, version)


def _table(reply: "pb.StatusResponse", _version: str) -> str:
    """Return the versions of every policy as a table, and the refused ones below it."""
    rows = [_COLUMNS, *map(_row, reply.policies)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [_canary_line(each) for each in reply.policies if each.HasField("canary")]
    lines += [_shadow_line(each) for each in reply.policies if each.HasField("shadow")]
    lines += [
        f"rolled back: {each.policy} {' '.join(each.rolled_back_versions)}, not taken up by following"
        for each in reply.policies
        if each.rolled_back_versions
    ]
    lines += [
        f"refused: {each.policy} {refused.version} ({refused.reason}): {refused.detail}"
        for each in reply.policies
        for refused in each.refused
    ]
    return "\n".join(lines)


def _row(status: "pb.PolicyStatus") -> tuple[str, ...]:
    previous, loaded = (" ".join(versions) or "-" for versions in (status.previous_versions, status.loaded_versions))
    return (status.policy, status.live_version, previous, loaded, status.wanted, "yes" if status.following else "no")


def _canary_line(status: "pb.PolicyStatus") -> str:
    canary = status.canary
    if canary.loading:
        return (
            f"canary: {status.policy} {canary.version} is being loaded after the restart, then it answers"
            f" {canary.share:g} of the robots"
        )
    line = f"canary: {status.policy} {canary.version} answers {canary.share:g} of the robots"
    if not canary.HasField("rule"):
        return f"{line}, and does not decide"
    return (
        f"{line}; {canary.candidate_episodes} episodes, {canary.live_episodes} of the live version; evidence that it is"
        f" better {canary.better_evidence:.3g} of {1 / canary.rule.false_promotion_rate:.3g}, worse"
        f" {canary.worse_evidence:.3g} of {1 / canary.rule.false_rollback_rate:.3g}"
    )


def _shadow_line(status: "pb.PolicyStatus") -> str:
    use = "is being loaded after the restart, for" if status.shadow.loading else "for"
    return f"shadow: {status.policy} {status.shadow.version} {use} {status.shadow.share:g} of the rows"


def _canary(reply: "pb.CanaryResponse", _version: str) -> str:
    status = reply.policy
    if not status.HasField("canary"):
        unfollowed = "" if status.following else "; new versions are not taken up"
        return f"version {status.live_version} of {status.policy} answers all robots{unfollowed}"
    return f"{_canary_line(status)}; version {status.live_version} answers the others"


def _shadow(reply: "pb.ShadowResponse", _version: str) -> str:
    status = reply.policy
    return _shadow_line(status) if status.HasField("shadow") else f"{status.policy} has no shadow"


def _switched(reply: "pb.SwitchResponse", _version: str) -> str:
    status = reply.policy
    return f"version {status.live_version} of {status.policy} is live; new versions are not taken up"


def _rolled_back(reply: "pb.RollbackResponse", _version: str) -> str:
    status, rolled_back = reply.policy, reply.rolled_back_version
    if reply.ended_canary:
        return (
            f"the canary of {status.policy} has ended: version {status.live_version}, which stays live, answers all"
            f" robots, and version {rolled_back} none; new versions are not taken up"
        )
    return (
        f"version {status.live_version} of {status.policy} is live in place of version {rolled_back}; new versions are"
        " not taken up"
    )


def _loaded(reply: "pb.LoadResponse", version: str) -> str:
    return f"version {version} of {reply.policy.policy} is loaded; version {reply.policy.live_version} is live"


def _unloaded(reply: "pb.UnloadResponse", version: str) -> str:
    return f"version {version} of {reply.policy.policy} is not loaded any more"


def _followed(reply: "pb.FollowResponse", _version: str) -> str:
    status, live, upcoming = reply.policy, reply.policy.live_version, reply.next_version
    if not status.following:
        return f"{status.policy} takes up no new versions; version {live} is live"
    if not upcoming:
        now = f"its versions cannot be read now, see the server's log; version {live} is live"
    elif upcoming == live:
        now = f"version {live}, which is live, is the one that it wants now"
    else:
        now = f"version {upcoming} is taken up now if it passes every check; until then, version {live} is live"
    skipped = f"; rolled back, so not taken up: {' '.join(status.rolled_back_versions)}"
    return (
        f"{status.policy} takes up new versions by the rule {status.wanted}: {now}"
        f"{skipped if status.rolled_back_versions else ''}"
    )


def _drained(_reply: object, _version: str) -> str:
    return "the server refuses new requests, answers those that it has accepted, and exits"


_DESCRIPTIONS: dict[str, Callable[[Any, str], str]] = {
    "status": _table,
    "load": _loaded,
    "unload": _unloaded,
    "switch": _switched,
    "rollback": _rolled_back,
    "follow": _followed,
    "canary": _canary,
    "shadow": _shadow,
    "drain": _drained,
}
