"""What git says of a checkout."""

import os
import subprocess
import threading
from pathlib import Path


def output(folder: Path, *arguments: str, most_bytes: int, timeout_s: float) -> bytes:
    """Return what git prints in `folder`, or the first `most_bytes` of it.

    It takes no lock in the repository, and no setting from a git command that the program runs in.

    Raises:
        OSError: there is no git.
        CalledProcessError: git failed, or took longer than `timeout_s` and was killed.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with subprocess.Popen(
        ["git", "-C", str(folder), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ | {"GIT_OPTIONAL_LOCKS": "0"},
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(timeout_s, process.kill)  # it ends the read, too
        timer.start()
        try:
            printed = process.stdout.read(most_bytes)
            code = process.wait() if len(printed) < most_bytes else 0
        finally:
            timer.cancel()
            process.kill()
    if code:
        raise subprocess.CalledProcessError(code, ["git", *arguments])
    return printed
