"""A server as a process of its own, as users start it."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

RUN = Path(__file__).parents[2] / "serving" / "run.py"


@contextlib.contextmanager
def launch(
    *arguments: str,
    program: Sequence[Path | str] = (RUN,),
    prefix: Sequence[str] = (),
    own_session: bool = False,
    pass_fds: Sequence[int] = (),
) -> Generator["subprocess.Popen[str]"]:
    """A server process, which ends with the block at the latest.

    Args:
        arguments: of the server.
        program: in Python, and its first arguments.
        prefix: a command that executes its arguments.
        own_session: whether it is in a session of its own, without a terminal.
        pass_fds: descriptors for `prefix`.
    """
    settings = ["--listen", "127.0.0.1:0", "--metrics-port", "0", "--max-batch-rows", "2", "--log-format", "text"]
    command = [*prefix, sys.executable, *map(str, program), *settings, *arguments]
    environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": "/nowhere"}  # of a program that counts for itself
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environ, start_new_session=own_session, pass_fds=pass_fds
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def fail(*arguments: str, prefix: Sequence[str] = ()) -> tuple[int, list[str]]:
    """The exit code of a server that cannot start, and its lines. `prefix` is the command that starts the server."""
    with launch(*arguments, prefix=prefix) as process:
        _, errors = process.communicate(timeout=240)
    assert "Traceback" not in errors
    return process.returncode, errors.splitlines()


@contextlib.contextmanager
def ready(*arguments: str) -> Generator[tuple["subprocess.Popen[str]", str, list[str]]]:
    """A server process, its address, and the lines it wrote until it was ready."""
    with launch(*arguments) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"ready: grpc=(\S+)", line):
                yield process, found[1], lines
                return
        raise AssertionError(f"it ended before it was ready: {lines}")


def flip_a_bit(version: Path) -> None:
    victim = max(
        (path for path in (version / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)


def full_pipe() -> tuple[int, int]:
    """Both ends of a pipe that takes no more bytes, as of a program that does not read its standard error."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(65536))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\0")
    os.set_blocking(writing, True)
    return reading, writing
