"""The temporary folder into which workers write their metrics."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from policy.temporary_folder import temporary_folder
from serving.errors import StartupError

_PREFIX = "kilolayer-workers-"


@contextlib.contextmanager
def metrics_folder() -> Generator[Path]:
    """Make a folder for the workers' metrics, which is removed at the end of the context; remove those left behind.

    Raises:
        StartupError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(_PREFIX))
        except OSError as error:
            raise StartupError(
                f"cannot make a temporary folder for the workers' metrics ({error.strerror}); set TMPDIR to a"
                " writable folder with free space"
            ) from error
        yield folder
