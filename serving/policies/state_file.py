"""StateFile: the decisions of an operator about live versions, in a file that a restarted server reads.

The file also has the flags that each decision was made under. A start with the same flags takes the decision. A start
with other flags takes the flags: the operator has decided anew.
"""

import asyncio
import dataclasses
import fcntl
import json
import logging
import os
import stat
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from policy import whole_file
from policy.verified_folder import MALFORMED, malformation
from serving.errors import StartupError
from serving.policies.canary import check_share
from serving.policies.sequential_test import DecisionRule

_LOGGER = logging.getLogger(__name__)
_FORMAT = 1
_NAME = "state.json"
_MAX_PID_BYTES = 20
_MAX_BYTES = 1 << 20  # a few hundred are usual; a damaged file must not fill the memory


@dataclasses.dataclass(frozen=True)
class VersionRule:
    """The flags about the versions of one policy."""

    wanted: str  # of --versions: latest, best, or a version
    follow: bool  # of --follow


@dataclasses.dataclass(frozen=True)
class CanaryState:
    """A canary. ValueError if the share is out of range."""

    version: int
    share: float  # of the robots, above 0 and at most 1
    rule: DecisionRule | None  # when it decides by itself; None: it does not

    def __post_init__(self) -> None:
        check_share(self.share, of="a canary")


@dataclasses.dataclass(frozen=True)
class ShadowState:
    """A shadow. ValueError if the share is out of range."""

    version: int
    share: float  # of the rows, above 0 and at most 1

    def __post_init__(self) -> None:
        check_share(self.share, of="a shadow")


@dataclasses.dataclass(frozen=True)
class PolicyState:
    """The decision about one policy, and the flags that it was made under."""

    rule: VersionRule
    live: int
    previous: tuple[int, ...]  # live before, and still loaded; the most recent first
    following: bool
    rolled_back: tuple[int, ...] = ()  # not taken up again by following
    canary: CanaryState | None = None
    shadow: ShadowState | None = None


@dataclasses.dataclass(frozen=True)
class State:
    """The decisions of a server, by policy."""

    policies: Mapping[str, PolicyState]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The decisions that a start takes over, by policy, and a line for the log that says so."""

    kept: Mapping[str, PolicyState]
    line: str


class StateFile:
    """The state in `folder`, which one server uses at a time: see `lock`. It is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _NAME
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")  # one, so states keep their order

    def problem(self) -> str:
        """Try to write to the folder. Return what a server logs if that fails, on one line; empty if it works."""
        probe = self._beside("probe")
        try:
            self._make_folder()
            probe.write_bytes(b"\n")
            probe.unlink()
        except OSError as error:
            return (
                f"decisions about live versions do not survive a restart, because {self.path.parent} cannot be written"
                f" ({error.strerror}); choose another folder with --state-dir"
            )
        return ""

    def lock(self) -> None:
        """Keep other servers out of the folder until this object or its process ends, however it ends.

        If it cannot be locked, as on a file system without locks, the log says so. The workers of a server do not
        inherit the lock.

        Raises:
            StartupError: another server uses the folder.
        """
        path = self._beside("lock")
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            weakref.finalize(self, os.close, descriptor)  # which ends the lock
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            process = os.read(descriptor, _MAX_PID_BYTES).strip()  # empty for a moment after it was locked
            server = f"the server with process number {int(process)}" if process.isdigit() else "another server"
            raise StartupError(
                f"{server} keeps its decisions in {path.parent}; stop it first, or choose another folder with"
                " --state-dir"
            ) from error
        except OSError as error:
            _LOGGER.warning(
                "%s cannot be locked (%s); no other server may use it: choose another folder for each with --state-dir",
                path.parent,
                error.strerror,
            )
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())

    def read(self) -> State | None:
        """Return the state; None: there is none. A damaged file is renamed, with a warning in the log."""
        try:
            mode = self.path.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # to open a pipe would block
                self._set_aside("it is not a plain file")
                return None
            with self.path.open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            _LOGGER.warning("cannot read %s (%s); the flags decide which versions are live", self.path, error.strerror)
            return None
        try:
            return _decode(raw)
        except MALFORMED as error:
            self._set_aside(malformation(error))
            return None

    async def save(self, state: State) -> None:
        """Replace the state. A failure is logged.

        It is written in another thread: a disk may take tens of milliseconds, and robots are answered meanwhile.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self.write, state)
        except OSError as error:
            _LOGGER.error("this decision does not survive a restart: %s", error.strerror)

    def write(self, state: State) -> None:
        """Replace the state. A process that is killed meanwhile leaves the earlier one or this one.

        Raises:
            OSError: the folder cannot be written, or its disk is full. The earlier state is still there.
        """
        with whole_file.named_errors(self.path):
            self._make_folder()
        whole_file.write(self.path, json.dumps(_encode(state), indent=2) + "\n")

    def _make_folder(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f".{_NAME}.{suffix}")

    def _set_aside(self, problem: str) -> None:
        aside = self.path.with_name(f"{_NAME}.damaged")
        try:
            self.path.replace(aside)
            kept = f"it is now {aside.name}"
        except OSError as error:
            kept = f"it cannot be renamed ({error.strerror})"
        _LOGGER.warning(
            "%s cannot be used: %.200s; %s, and the flags decide which versions are live", self.path, problem, kept
        )


def choose(state: State | None, rules: Mapping[str, VersionRule]) -> Choice:
    """Return the decisions of `state` that a start with the flags `rules` takes over: those made under equal flags.

    Args:
        state: of the last run; None: there is none.
        rules: of every policy that is served, by name.
    """
    stored = state.policies if state else {}
    kept = {name: stored[name] for name, rule in rules.items() if name in stored and stored[name].rule == rule}
    parts: list[str] = []
    if kept:
        parts.append(f"as before the restart: {', '.join(_describe(name, each) for name, each in kept.items())}")
    if by_flags := [f"{name} ({_why(stored.get(name))})" for name in rules if name not in kept]:
        parts.append(f"by the flags: {', '.join(by_flags)}")
    return Choice(kept, f"live versions {'; '.join(parts)}")


def _describe(name: str, state: PolicyState) -> str:
    parts = ["following" if state.following else "not following"]
    parts += [f"canary {state.canary.version} with share {state.canary.share:g}"] if state.canary else []
    parts += [f"shadow {state.shadow.version} with share {state.shadow.share:g}"] if state.shadow else []
    return f"{name}@{state.live} ({', '.join(parts)})"


def _why(stored: PolicyState | None) -> str:
    """Return why a policy does not take what is stored about it."""
    if stored is None:
        return "no decision is stored"
    follow = "--follow" if stored.rule.follow else "--no-follow"
    return f"the stored decision was made with --versions {stored.rule.wanted} {follow}"


class _FormatError(ValueError):
    """A state file of another structure. The message is a part of a sentence."""


def _encode(state: State) -> dict[str, Any]:
    policies = {name: dataclasses.asdict(each) for name, each in sorted(state.policies.items())}
    return {"format": _FORMAT, "policies": policies}


def _decode(raw: bytes) -> State:
    """Return the state that `raw` holds. Raises one of MALFORMED if it holds none."""
    if len(raw) > _MAX_BYTES:
        raise _FormatError(f"it has more than {_MAX_BYTES} bytes")
    data = json.loads(raw)
    if data["format"] != _FORMAT:
        raise _FormatError(f"it has format {data['format']!r:.80}, and this release reads format {_FORMAT}")
    return State({str(name): _decode_policy(fields) for name, fields in data["policies"].items()})


def _decode_policy(fields: Mapping[str, Any]) -> PolicyState:
    rule = VersionRule(_of_type(str, fields["rule"]["wanted"]), _of_type(bool, fields["rule"]["follow"]))
    return PolicyState(
        rule,
        _of_type(int, fields["live"]),
        previous=_versions(fields["previous"]),
        following=_of_type(bool, fields["following"]),
        rolled_back=_versions(fields["rolled_back"]),
        canary=_decode_canary(fields.get("canary")),
        shadow=_decode_shadow(fields.get("shadow")),
    )


def _decode_canary(fields: Mapping[str, Any] | None) -> CanaryState | None:
    if fields is None:
        return None
    rule, share = fields["rule"], _of_type(float, fields["share"])
    return CanaryState(_of_type(int, fields["version"]), share, None if rule is None else DecisionRule(**rule))


def _decode_shadow(fields: Mapping[str, Any] | None) -> ShadowState | None:
    if fields is None:
        return None
    return ShadowState(_of_type(int, fields["version"]), _of_type(float, fields["share"]))


def _versions(values: Iterable[object]) -> tuple[int, ...]:
    return tuple(_of_type(int, value) for value in values)


def _of_type(kind: type[Any], value: object) -> Any:
    """Return `value`, which must be a `kind` exactly: a bool is no int here."""
    if type(value) is not kind:
        raise _FormatError(f"it has {value!r:.80} where {kind.__name__} is expected")
    return value
