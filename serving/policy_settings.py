"""What the settings say of one policy: its name and path, which version is wanted, and limits of its own."""

import dataclasses
import os
from pathlib import Path
from typing import Literal, TypeAlias

from policy.published import is_version
from policy.spec import SpecError, check_name

Wanted: TypeAlias = Literal["latest", "best"] | int
"""The version to serve: the newest one, the one with the highest eval/stay, or exactly one."""


@dataclasses.dataclass(frozen=True)
class NamedPath:
    """A path of --policies with the name under which its policy is served."""

    name: str
    path: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """The settings of one policy that differ from those of the server; None: as the server's."""

    name: str  # under which it is served
    versions: Wanted | None = None
    follow: bool | None = None
    max_batch_rows: int | None = None
    max_batch_delay_s: float | None = None
    max_queue_rows: int | None = None
    device: str | None = None

    def key(self, field: str) -> str:
        """Return the key of a field in the file of --config."""
        return f"policies.{self.name}.{field}"


def parse_path(word: str) -> Path | NamedPath:
    """Read a word of --policies, [NAME=]PATH. If the whole word exists as a path, it has no name.

    Raises:
        ValueError: there is no path, or the name is not allowed.
    """
    name, _, path = word.partition("=")
    if name == word or "/" in name or os.path.exists(word):  # noqa: PTH110  a Path raises for a name that is too long
        return Path(word)
    if not path:
        raise ValueError(f"--policies needs a path after the name, such as {name}=runs/first/policies, got {word!r}")
    try:
        return NamedPath(check_name(name), Path(path))
    except SpecError as error:
        raise ValueError(f"--policies {word!r}: the name before = is not allowed: {error}") from error


def parse_wanted(text: str) -> Wanted:
    """Read which version is wanted: latest, best or a number.

    Raises:
        ValueError: it is none of these. The message is the end of a sentence.
    """
    if text in ("latest", "best"):
        return text
    if is_version(text):
        return int(text)
    raise ValueError(f"must be latest, best or the number of a version, got {text!r:.80}")


def parse_versions(words: tuple[str, ...]) -> dict[str, Wanted]:
    """Read the words of --versions, NAME=latest|best|N, each about another policy.

    Raises:
        ValueError: a word has another form, or two are about the same policy.
    """
    wanted: dict[str, Wanted] = {}
    for word in words:
        name, equals, version = word.partition("=")
        if not equals:
            raise ValueError(f"--versions needs NAME=latest, NAME=best or NAME=NUMBER, got {word!r:.80}")
        if name in wanted:
            raise ValueError(f"--versions names {name!r:.80} twice; give one version for each policy")
        try:
            wanted[name] = parse_wanted(version)
        except ValueError as error:
            raise ValueError(f"--versions {name!r:.80} {error}") from error
    return wanted
