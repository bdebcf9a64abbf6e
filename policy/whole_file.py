"""A file that is replaced whole or not at all, also if the process is killed, the disk is full, or the power fails."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from policy.verified_folder import fsync, named


def write(path: Path, content: str | bytes) -> None:
    """Replace the file `path`. When this returns, the new content is on disk.

    Raises:
        OSError: it cannot be written; the message names it. The earlier file is still there.
    """
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a path to write to; at the end of the context, that file becomes `path`. It is deleted after an error.

    Raises:
        OSError: as `write`.
    """
    draft = path.with_name(draft_name(path.name))
    try:
        with named_errors(path):
            yield draft
            fsync(draft)
            draft.rename(path)
            fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more
            draft.unlink(missing_ok=True)
        raise


def draft_name(name: str) -> str:
    """Return the name of the file `name` while it is being written: what a killed process may leave."""
    return f".{name}"


@contextlib.contextmanager
def named_errors(path: Path) -> Generator[None]:
    """Give every OSError the name of the file that cannot be written: the system does not name a full disk's."""
    try:
        yield
    except OSError as error:
        raise named(error, f"{path} cannot be written") from error
