"""kilolayer-admin: the command of an operator, which shows and changes the versions that a running server serves.

    kilolayer-admin status
    kilolayer-admin switch point_u_maze 2000 --port 50051

Exit codes: 0 when it is done; 1 if the server refuses it or cannot be reached; 2 for wrong usage.
"""

import argparse
import json
import math
import os
import pwd
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

try:
    from serving import admin_channel
    from serving.admin_channel import ChannelError
    from serving.admin_replies import describe
    from serving.sockets import MAX_PORT, Address, AddressError, TcpAddress, parse_address
    from serving.user_folders import find_admin_address
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"error: {error}: run make install and use .venv/bin/python, or install with"
        " pip install -e clients/python -e '.[serve]'"
    )

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from kilolayer.v1 import admin_pb2 as pb

_INSTALL = "pip install -e clients/python -e '.[serve]'"
_PORT = 50051  # of the server's --listen
_MAX_NUMBER = 10**9
_LOAD_S, _OTHER_S = 600.0, 10.0  # most seconds to wait; a deep version may compile for minutes
_USER_KEY = "kilolayer-admin-user"
_ACTIONS = {
    "status": ("[POLICY]", "show which versions are served"),
    "load": ("[POLICY] VERSION", "load a version: it answers requests that name it, and is not live"),
    "unload": ("[POLICY] VERSION", "unload a version that is not live"),
    "switch": ("[POLICY] VERSION", "make a version live, and load it first if needed; turns following off"),
    "rollback": ("[POLICY]", "make the version live that was live before, or end a canary; turns following off"),
    "follow": ("[POLICY] [--off]", "take up new versions, or stop doing so"),
    "canary": ("[POLICY] VERSION", "let a version answer a share of the robots; --off ends that; turns following off"),
    "shadow": ("[POLICY] VERSION", "compare a version with the live one, for a share of its rows; --off ends that"),
    "drain": ("", "stop the server: it answers the requests that it has accepted, and exits"),
}
_TRIALS = frozenset({"canary", "shadow"})
_NAME_VERSION = frozenset({"load", "unload", "switch"}) | _TRIALS
_MAY_LOAD = frozenset({"load", "switch"}) | _TRIALS
_MAY_BE_OFF = frozenset({"follow"}) | _TRIALS
_HANGS = "the server is stopped, blocked or overloaded, see its log and /healthz"
_AFTER_NO_ANSWER = {  # by whether the command only asks
    True: f"{_HANGS}; or use a longer --timeout-s",
    False: f"a change that has begun goes on, and kilolayer-admin status shows the result; if it does not, {_HANGS}",
}
_SHARE = 0.1
_RULE = ("false_promotion_rate", "false_rollback_rate", "margin", "min_episodes")


class _FailedError(Exception):
    """The command has failed. The message is one line."""


class UsageError(_FailedError):
    """Wrong usage. The message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help describes the usage")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. `arguments` default to those of the process."""
    try:
        return _run(parse(sys.argv[1:] if arguments is None else arguments))
    except _FailedError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except ModuleNotFoundError as error:
        print(f"error: {error}: install with {_INSTALL}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped waiting; a change that has begun goes on", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    actions = "\n".join(f"  {name} {words}".ljust(28) + text for name, (words, text) in _ACTIONS.items())
    made = _Parser(
        prog="kilolayer-admin",
        usage="%(prog)s ACTION [POLICY] [VERSION] [--port PORT | --admin ADDRESS] [OPTIONS]",
        description="Show and change the versions that a running server serves.",
        epilog=f"actions:\n{actions}\n\nPOLICY may be left out if the server has only one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("action", choices=_ACTIONS, metavar="ACTION", help="one of the actions below")
    made.add_argument("names", nargs="*", metavar="POLICY, VERSION", help="what it is about")
    made.add_argument("--port", type=int, default=_PORT, help=f"the server's port for gRPC (default: {_PORT})")
    made.add_argument(
        "--admin",
        metavar="ADDRESS",
        help="unix:PATH or HOST:PORT instead of --port, as the server's ready line shows it after admin=",
    )
    admin_channel.add_options(made)
    made.add_argument("--off", action="store_true", help="with follow, canary or shadow: end it")
    made.add_argument(
        "--share", type=float, metavar="S", help=f"of robots or rows, with canary or shadow (default: {_SHARE:g})"
    )
    made.add_argument(
        "--decide", action="store_true", help="with canary: let reports make the version live or roll it back"
    )
    made.add_argument("--false-promotion-rate", type=float, metavar="P", help="with --decide (default: 0.05)")
    made.add_argument("--false-rollback-rate", type=float, metavar="P", help="with --decide (default: 0.05)")
    made.add_argument(
        "--margin", type=float, metavar="D", help="with --decide: a difference that does not matter (default: 0)"
    )
    made.add_argument(
        "--min-episodes", type=int, metavar="N", help="with --decide: of each version, before a decision (default: 30)"
    )
    timeouts = f"{_LOAD_S:g} where a version may be loaded, {_OTHER_S:g} otherwise"
    made.add_argument("--timeout-s", type=float, metavar="S", help=f"most seconds to wait (default: {timeouts})")
    made.add_argument("--json", action="store_true", help="print the server's reply as JSON")
    return made


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `policy`, `version` and `address` are set in what is returned.

    Raises:
        UsageError: an argument is missing, unknown or not allowed.
    """
    parsed = parser().parse_intermixed_args(arguments)
    action, names = parsed.action, list(parsed.names)
    most = 2 if action in _NAME_VERSION else int(action != "drain")
    if len(names) > most:
        words = _ACTIONS[action][0] or "alone"
        raise UsageError(f"{names[most]!r} is one word too many, the usage is {action} {words}; --help has more")
    names_version = action in _NAME_VERSION and not parsed.off
    parsed.version = names.pop() if names_version and names else ""
    parsed.policy = names.pop() if names else ""
    if names_version and not (parsed.version.isascii() and parsed.version.isdigit()):
        raise UsageError(
            f"{action} needs a version, which is a number, got {parsed.version!r}; such as kilolayer-admin {action}"
            " point_u_maze 2000"
        )
    if parsed.off and action not in _MAY_BE_OFF:
        raise UsageError(f"--off goes with follow, canary or shadow, got {action}")
    _check_trial(parsed)
    if parsed.timeout_s is None:
        parsed.timeout_s = _LOAD_S if action in _MAY_LOAD else _OTHER_S
    if not (math.isfinite(parsed.timeout_s) and parsed.timeout_s > 0):
        raise UsageError(f"--timeout-s must be a positive number of seconds, got {parsed.timeout_s:g}")
    parsed.address = _address(parsed)
    try:
        admin_channel.check(parsed, parsed.address)
    except ChannelError as error:
        raise UsageError(str(error)) from error
    return parsed


def _check_trial(parsed: argparse.Namespace) -> None:
    """Refuse options of a canary or a shadow that have no effect."""
    begins = parsed.action in _TRIALS and not parsed.off
    if parsed.share is not None and not begins:
        raise UsageError("--share goes with canary VERSION or shadow VERSION")
    if parsed.decide and not (begins and parsed.action == "canary"):
        raise UsageError("--decide goes with canary VERSION")
    given = [name for name in _RULE if getattr(parsed, name) is not None]
    if given and not parsed.decide:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with --decide")
    for name in given:  # 0 would mean the default
        if name != "margin" and not 0 < getattr(parsed, name) <= _MAX_NUMBER:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0, got {getattr(parsed, name)}")


def _address(parsed: argparse.Namespace) -> Address:
    if not 1 <= parsed.port <= MAX_PORT:
        raise UsageError(f"--port must be from 1 to {MAX_PORT}, got {parsed.port}")
    if parsed.admin is None:
        return find_admin_address(TcpAddress("localhost", parsed.port))
    try:
        return parse_address(parsed.admin)
    except AddressError as error:
        raise UsageError(f"--admin {error}") from error


def _run(parsed: argparse.Namespace) -> int:
    from google.protobuf.json_format import MessageToDict

    reply = _call(parsed)
    if parsed.json:
        fields = MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps(fields))
    else:
        print(_printable(describe(parsed.action, reply, version=parsed.version)))
    return 0


def _call(parsed: argparse.Namespace) -> "Message":
    """Send the request of the command, and return the server's reply."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC reads it when it is imported; our errors say more
    import grpc

    from kilolayer.v1 import admin_pb2 as pb
    from kilolayer.v1.admin_pb2_grpc import PolicyAdminStub

    requests: dict[str, Callable[[], Message]] = {
        "status": lambda: pb.StatusRequest(policy=parsed.policy),
        "load": lambda: pb.LoadRequest(policy=parsed.policy, version=parsed.version),
        "unload": lambda: pb.UnloadRequest(policy=parsed.policy, version=parsed.version),
        "switch": lambda: pb.SwitchRequest(policy=parsed.policy, version=parsed.version),
        "rollback": lambda: pb.RollbackRequest(policy=parsed.policy),
        "follow": lambda: pb.FollowRequest(policy=parsed.policy, off=parsed.off),
        "canary": lambda: pb.CanaryRequest(
            policy=parsed.policy, version=parsed.version, share=_share(parsed), rule=_rule(parsed), off=parsed.off
        ),
        "shadow": lambda: pb.ShadowRequest(
            policy=parsed.policy, version=parsed.version, share=_share(parsed), off=parsed.off
        ),
        "drain": pb.DrainRequest,
    }
    try:
        channel, token = admin_channel.connect(parsed), admin_channel.metadata(parsed)
    except ChannelError as error:
        raise _FailedError(str(error)) from error
    with channel:
        method = getattr(PolicyAdminStub(channel), parsed.action.capitalize())
        try:
            return method(requests[parsed.action](), timeout=parsed.timeout_s, metadata=((_USER_KEY, _user()), *token))
        except grpc.RpcError as error:
            raise _failure(error, parsed) from error


def _share(parsed: argparse.Namespace) -> float:
    return _SHARE if parsed.share is None else parsed.share


def _rule(parsed: argparse.Namespace) -> "pb.CanaryRule | None":
    """Return when the canary ends by itself, as the server takes it: what is not given has its default there."""
    from kilolayer.v1 import admin_pb2 as pb

    given = {name: getattr(parsed, name) for name in _RULE if getattr(parsed, name) is not None}
    return pb.CanaryRule(**given) if parsed.decide else None


def _failure(error: Any, parsed: argparse.Namespace) -> _FailedError:
    """Return the error for a call that failed."""
    import grpc

    if dict(error.trailing_metadata() or ()).get("kilolayer-reason"):  # the server's own words
        kind = UsageError if error.code() is grpc.StatusCode.INVALID_ARGUMENT else _FailedError
        return kind(error.details())
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _FailedError(f"no answer within {parsed.timeout_s:g} s; {_AFTER_NO_ANSWER[parsed.action == 'status']}")
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return _FailedError(
            f"{parsed.address} does not take this command: it is the address for robots, or that of another program;"
            " the server's ready line has the address for --admin after admin="
        )
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return _FailedError(f"the server failed with {error.code().name}: {error.details()}")
    return _FailedError(_unreachable(parsed.address, error.details()))


def _unreachable(address: Address, details: str) -> str:
    """Return why the server at `address` cannot be reached; `details` are gRPC's."""
    if isinstance(address, TcpAddress):
        return f"cannot connect to {address}: {admin_channel.cause(details)}"
    if _is_there(address.path):
        return f"cannot connect to {address}: its server has ended or is still starting, or it is another user's"
    return (
        f"there is no server at {address}, or it is still starting; its ready line has the address for --admin, and the"
        " port for --port"
    )


def _is_there(path: Path) -> bool:
    """Return whether `path` exists, as far as this user may know."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _user() -> str:
    """Return who runs the command, for the server's log, in ASCII."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container
        name = f"uid {os.getuid()}"
    before = os.environ.get("SUDO_USER")
    return ascii(f"{name} (sudo of {before})" if before else name)[1:-1]


def _printable(text: str) -> str:
    """Return `text` without characters that a terminal takes as commands: names of files are in it."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


if __name__ == "__main__":
    sys.exit(main())
