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

    Raises:
        ValueError: the file cannot be read, or it or the string is not a token. The message never has the token.
    """

    def __init__(self, source: object) -> None:
        self._path: Path | None = None
        self._stamp: _Stamp | None = None
        if isinstance(source, str):
            if _names_a_file(source):
                raise ValueError(
                    "token is the path of a file; pass it as pathlib.Path(...), or set KILOLAYER_TOKEN_FILE"
                )
            self._metadata = _metadata(source, "token (KILOLAYER_TOKEN)")
        elif isinstance(source, os.PathLike):
            # Path's own expanduser raises RuntimeError for an unknown user.
            self._path = Path(os.path.expanduser(os.fsdecode(source)))  # noqa: PTH111
            self._metadata = self._read(self._path)
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
            except (OSError, ValueError):
                return self._metadata  # the server decides
        return self._metadata

    def refused(self) -> None:
        """Read the file again before the next call, even if it looks the same: a clock tick may hide a change."""
        self._stamp = None

    def _read(self, path: Path) -> tuple[tuple[str, str], ...]:
        try:
            stamp = _stamp(path)  # before the content: a change in between is read with the next call
            with path.open("rb") as file:
                content = file.read(_MAX_LENGTH + 100)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise ValueError(f"the token's file {str(path)!r} cannot be read: {reason}") from None
        metadata = _metadata(content.decode("latin-1").strip(), f"the token's file {str(path)!r}")
        self._stamp = stamp
        return metadata


def _metadata(token: str, name: str) -> tuple[tuple[str, str], ...]:
    if not _VISIBLE.fullmatch(token) or len(token) > _MAX_LENGTH:
        raise ValueError(
            f"{name} must hold one token of at most {_MAX_LENGTH} visible ASCII characters, without spaces; its"
            f" content is not shown, it has {len(token)} characters"
        )
    return (("authorization", f"Bearer {token}"),)


def _names_a_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with NUL
        return False


def _stamp(path: Path) -> _Stamp:
    """Return what changes with the file: by writing it, or by putting another in its place."""
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size
