"""The messages between the supervisor and its workers: one JSON object per line.

A worker reads lines from its standard input, `Start` first, and writes lines to its standard output.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from serving.config import PATHS, ServeConfig
from serving.policies.copies import Copies
from serving.policies.source import PolicySource
from serving.policy_settings import BucketUrl, NamedPath, PolicyPath, PolicySettings

ChangeKind: TypeAlias = Literal["prepare", "switch", "unload", "set_canary", "set_shadow"]
"""What a worker does: a method of `serving.policies.deployment.VersionHost`."""


@dataclasses.dataclass(frozen=True)
class Start:
    """To a worker: load, with this configuration."""

    config: ServeConfig
    sources: tuple[PolicySource, ...]  # the policies, in the order of --policies
    choices: tuple[tuple[int, ...], ...]  # the versions of each policy to try, in the order of --policies
    cores: tuple[int, ...]  # that it may run on; empty: any


@dataclasses.dataclass(frozen=True)
class Open:
    """To a worker: open the port."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """From a worker: the policies are loaded."""

    versions: dict[str, int]  # by policy
    rejected: tuple[str, ...] = ()  # the reasons, in one word, of the versions that failed a check before


@dataclasses.dataclass(frozen=True)
class Compiled:
    """From a worker: the policies are compiled. The worker waits for `Open`."""


@dataclasses.dataclass(frozen=True)
class Serving:
    """From a worker: the port is open."""


@dataclasses.dataclass(frozen=True)
class Change:
    """To a worker: change a version, as a `serving.policies.deployment.VersionHost` does. It answers `Changed`."""

    number: int  # of this change, for the answer
    what: ChangeKind
    policy: str
    version: int
    share: float = 0.0  # of a canary or a shadow


@dataclasses.dataclass(frozen=True)
class Changed:
    """From a worker: the change is done; or why not."""

    number: int
    refused: str = ""  # the reason, in one word, for which the version must not be served
    problem: str = ""  # for people; without `refused`, of the machine or of the program
    detail: str = ""  # of a refusal, without the version's path


@dataclasses.dataclass(frozen=True)
class Answered:
    """From a worker: a version has answered a robot. Sent again from time to time, not for each answer."""

    robot_id: str
    policy: str
    version: int


@dataclasses.dataclass(frozen=True)
class Reported:
    """From a worker: how an episode of a robot ended. The supervisor answers `Counted`."""

    number: int  # of this report, for the answer
    policy: str
    version: int
    robot_id: str
    episode: int
    reached: bool
    time_at_goal: int


@dataclasses.dataclass(frozen=True)
class Counted:
    """To a worker: what became of a report."""

    number: int
    status: str


@dataclasses.dataclass(frozen=True)
class Alive:
    """From a worker that serves, every second: its event loop runs."""


Message: TypeAlias = (
    Start | Open | Change | Counted | Loaded | Compiled | Serving | Changed | Answered | Reported | Alive
)
_TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def to_line(message: Message) -> bytes:
    """Return the line for `message`."""
    fields = {"type": type(message).__name__, **dataclasses.asdict(message)}
    return json.dumps(fields, default=str).encode() + b"\n"  # str: of paths


def from_line(line: bytes) -> Message:
    """Return the message that `to_line` wrote."""
    fields: dict[str, Any] = json.loads(line)
    kind = _TYPES[fields.pop("type")]
    if kind is Start:
        fields["config"] = _config(fields["config"])
        fields["sources"] = tuple(map(_source, fields["sources"]))
        fields["choices"] = tuple(map(tuple, fields["choices"]))
    values: dict[str, Any] = {
        name: tuple(field) if isinstance(field, list) else field for name, field in fields.items()
    }
    return kind(**values)


def _config(fields: dict[str, Any]) -> ServeConfig:
    """Return the configuration with these fields, in which JSON has no paths and no dataclasses."""
    log_rows = fields["log_rows"]
    restored: dict[str, Any] = {
        "policies": tuple(map(_policy, fields["policies"])),
        "versions": tuple(fields["versions"]),
        "policy_settings": tuple(PolicySettings(**settings) for settings in fields["policy_settings"]),
        "log_rows": log_rows and (log_rows[0], Path(log_rows[1])),
        **{name: fields[name] and Path(fields[name]) for name in PATHS},
    }
    return ServeConfig(**fields | restored)


def _policy(stored: Any) -> PolicyPath | NamedPath:
    is_named = isinstance(stored, dict) and "name" in stored
    return NamedPath(stored["name"], _path(stored["path"])) if is_named else _path(stored)


def _path(stored: Any) -> PolicyPath:
    return Path(stored) if isinstance(stored, str) else BucketUrl(**stored)


def _source(fields: dict[str, Any]) -> PolicySource:
    copies = fields["copies"]
    restored: dict[str, Any] = {
        "folder": Path(fields["folder"]),
        "given": Path(fields["given"]),
        "copies": copies and Copies(BucketUrl(**copies["url"]), Path(copies["folder"])),
    }
    return PolicySource(**fields | restored)
