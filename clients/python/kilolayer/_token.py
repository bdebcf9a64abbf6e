"""Token: the bearer token that a client sends with every call, from a string or a file that may change."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Union

TokenSource = Union[str, "os.PathLike[str]"]

_VISIBLE = re.compile(r"[!-~]+")  # what metadata of gRPC may hold, without the space
_MAX_LENGTH = 7000  # all metadata of a call share 8 KiB, the limit of gRPC's servers
_Stamp = tuple[int, int, int]


class Token:
    """A bearer token. A file is read again when it has changed, and after the server refused the token.

    Args:
        source: the token itself if it is a string; a file that holds it and nothing else if it is a Path.
        name: of the argument or the variable that gave `source`, for an error.

    Raises:
        ValueError: the file cannot be read, or it or the string is not a token. The message never has the token, and no
            path of a file that cannot be read: it may be a token by mistake.
    """

    def __init__(self, source: object, *, name: str = "the argument token") -> None:
        self._path: Path | None = None
        self._stamp: _Stamp | None = None
        self.problem: str = ""
        """Why the file could not be read since the token was read from it, in words for an error; empty if it could."""
        if isinstance(source, str):
            if _names_a_file(source):
                raise ValueError(
                    "token is the path of a file; pass it as pathlib.Path(...), or set KILOLAYER_TOKEN_FILE"
                )
            if problem := _problem_of_token(source):
                raise ValueError(f"token (KILOLAYER_TOKEN) {problem}")
            self._metadata = _metadata(source)
        elif isinstance(source, os.PathLike):
            # Path's own expanduser raises RuntimeError for an unknown user.
            self._path = Path(os.path.expanduser(os.fsdecode(source)))  # noqa: PTH111
            try:
                self._metadata = self._read(self._path)
            except _NotATokenError as error:
                raise ValueError(f"the token's file {str(self._path)!r} {error}") from None
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{name} names a file that cannot be read: {_reason(error)}; its path is not shown, because it may"
                    " be a token by mistake. Pass a token itself as a str, or in KILOLAYER_TOKEN"
                ) from None
        else:
            raise ValueError(f"token must be a string or a pathlib.Path to a file, got {type(source).__name__}")

    def __repr__(self) -> str:
        """Return where the token comes from, never the token."""
        return f"<Token from {str(self._path)!r}>" if self._path else "<Token>"

    @property
    def origin(self) -> str:
        """Where the token comes from, for an error."""
        return f"the file {str(self._path)!r}" if self._path else "the argument token or KILOLAYER_TOKEN"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of the next call. A file that is missing or bad leaves the token as it was."""
        if self._path is not None:
            try:
                if _stamp(self._path) != self._stamp:
                    self._metadata = self._read(self._path)
                self.problem = ""
            except (OSError, ValueError) as error:  # the server decides about the old token
                self.problem = _reason(error)
        return self._metadata

    def refused(self) -> None:
        """Read the file again before the next call, even if it looks the same: a clock tick may hide a change."""
        self._stamp = None

    def _read(self, path: Path) -> tuple[tuple[str, str], ...]:
        stamp = _stamp(path)  # before the content: a change in between is read with the next call
        with path.open("rb") as file:
            token = file.read(_MAX_LENGTH + 100).decode("latin-1").strip()
        if problem := _problem_of_token(token):
            raise _NotATokenError(problem)
        self._stamp = stamp
        return _metadata(token)


class _NotATokenError(ValueError):
    """A file has other content than a token."""


def _problem_of_token(token: str) -> str:
    """Return what is wrong with `token`, to follow the name of its source; empty if nothing is."""
    if _VISIBLE.fullmatch(token) and len(token) <= _MAX_LENGTH:
        return ""
    return (
        f"must hold one token of at most {_MAX_LENGTH} visible ASCII characters, without spaces, and holds"
        f" {len(token)} characters that are not shown"
    )


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def _reason(error: OSError | ValueError) -> str:
    """Return why a file has no token, without its path."""
    if isinstance(error, OSError):
        return error.strerror or "it cannot be opened"
    return f"it {error}" if isinstance(error, _NotATokenError) else "not a path"


def _names_a_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with NUL
        return False


def _stamp(path: Path) -> _Stamp:
    """Return what changes with the file: by writing it, or by putting another in its place."""
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size
