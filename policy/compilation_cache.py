"""Keep compiled programs in the user's cache folder, so that the next process with the same programs starts faster.

JAX names a compiled program after a hash of everything that went into it: the program, the compiler's options, the
versions. An entry is never out of date. JAX alone would let the folder grow without a limit.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax

FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MOST_BYTES = 2 * 2**30
_ROOM_BYTES = 2**20
WORTH_SAVING_S = 0.5  # compile time of the programs that training keeps


def default_folder(environ: Mapping[str, str], *, home: Path) -> Path:
    """Return the folder for compiled programs in the user's cache folder (XDG Base Directory Specification)."""
    caches = Path(environ.get("XDG_CACHE_HOME", ""))
    root = caches if caches.is_absolute() else home / ".cache"  # a relative path must be ignored
    return root / "kilolayer" / "jax"


def enable(environ: Mapping[str, str] = os.environ, *, worth_saving_s: float = WORTH_SAVING_S) -> str:
    """Let JAX keep compiled programs in `default_folder`, or in the folder that a variable of JAX's own names.

    Args:
        environ: environment variables.
        worth_saving_s: compile time from which on a program is kept, in seconds.

    Returns:
        A warning if the folder cannot be written; empty otherwise. JAX then uses no folder, and every process compiles
        its programs anew.
    """
    try:
        folder = _prepare(environ)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        jax.config.update("jax_compilation_cache_dir", None)
        return (
            f"compiled programs are not kept for the next start: {error}; set {FOLDER_VARIABLE} to a folder that can "
            "be written"
        )
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", worth_saving_s)
    return ""


def _prepare(environ: Mapping[str, str]) -> Path | None:
    """Return the folder to set in JAX, ready for new programs; None if JAX reads it from a variable.

    Raises:
        OSError: the folder cannot be created or written, or its disk is full.
        RuntimeError: the user has no home folder.
    """
    chosen = environ.get(FOLDER_VARIABLE)
    if chosen is not None:
        if chosen and "://" not in chosen:  # JAX also takes the address of a bucket
            _require_writable(Path(chosen))
        return None
    folder = default_folder(environ, home=Path.home())
    _require_writable(folder)
    trim(folder, most_bytes=MOST_BYTES)
    return folder


def _require_writable(folder: Path) -> None:
    """Create `folder`, and raise OSError unless a file of `_ROOM_BYTES` can be written there.

    Only writing a file shows that a disk is read-only or full, or that a quota is used up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".room-") as file:
        file.write(bytes(_ROOM_BYTES))
        file.flush()


def trim(folder: Path, *, most_bytes: int) -> None:
    """Delete the files of `folder` that were used longest ago until the others take at most `most_bytes`."""
    entries: list[tuple[Path, os.stat_result]] = []
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may delete entries, too
            entries.append((entry, entry.stat()))
    total = sum(about.st_size for _, about in entries)
    for entry, about in sorted(entries, key=lambda each: max(each[1].st_atime, each[1].st_mtime)):
        if total <= most_bytes:
            return
        entry.unlink(missing_ok=True)
        total -= about.st_size
