"""What the settings say of one policy: its name and path, which version is wanted, and limits of its own."""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path
from typing import Literal, TypeAlias

from policy.command_line import local_path
from policy.published import is_version
from policy.spec import SpecError, check_name

Wanted: TypeAlias = Literal["latest", "best"] | int
"""The version to serve: the newest one, the one with the highest eval/stay, or exactly one."""


_BUCKET = re.compile(r"(gs|s3)://[^/]+(/.*)?")


@dataclasses.dataclass(frozen=True)
class BucketUrl:
    """The address of a folder in a bucket, such as gs://bucket/run/policies or s3://bucket/run/policies."""

    text: str  # without a slash at its end

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.text.rsplit("/", 1)[1]

    @property
    def parent(self) -> "BucketUrl":
        """The folder that this one is in; of a bucket, the bucket itself."""
        return self if self.text.count("/") == 2 else BucketUrl(self.text.rsplit("/", 1)[0])

    def __truediv__(self, name: str) -> "BucketUrl":
        return BucketUrl(f"{self.text}/{name}")


PolicyPath: TypeAlias = Path | BucketUrl
"""Where the versions of a policy are, or one version of it."""


@dataclasses.dataclass(frozen=True)
class NamedPath:
    """A path of --policies with the name under which its policy is served."""

    name: str
    path: PolicyPath


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


def parse_path(word: str) -> PolicyPath:
    """Read a path, or the address of a folder in a bucket."""
    return BucketUrl(word.rstrip("/")) if _BUCKET.fullmatch(word) else Path(word)


def usable_path(path: PolicyPath, *, name: str) -> PolicyPath:
    """Return `path` with a leading ~ replaced by the user's home folder.

    Args:
        name: of the setting, for the message of an error.

    Raises:
        ValueError: it is a URL that is not supported or whose extra is not installed, or there is no such home folder.
            The message is one line.
    """
    if isinstance(path, Path):
        return local_path(path, name=name)
    if importlib.util.find_spec("obstore") is None:
        raise ValueError(
            f"{name} {path} is in a bucket, which needs the extra `remote`: pip install -e '.[remote]'; or"
            " use a folder such as runs/first/policies"
        )
    return path


def parse_policy(word: str) -> PolicyPath | NamedPath:
    """Read a word of --policies, [NAME=]PATH. If the whole word exists as a path, it has no name.

    Raises:
        ValueError: there is no path, or the name is not allowed.
    """
    name, _, path = word.partition("=")
    if name == word or "/" in name or os.path.exists(word):  # noqa: PTH110  a Path raises for a name that is too long
        return parse_path(word)
    if not path:
        raise ValueError(f"--policies needs a path after the name, such as {name}=runs/first/policies, got {word!r}")
    try:
        return NamedPath(check_name(name), parse_path(path))
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
