"""Run a process as systemd or Kubernetes does: start it again when it ends, after a pause, and keep its log.

with Supervised(serve_command(policies), log=tmp_path / "log") as server:
    (address,) = server.wait_for(r"ready: grpc=(\\S+)")
    server.send(signal.SIGKILL)
    server.wait_for_start(2)
"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from serving.policy_settings import BucketUrl
from tests.serving.server_process import RUN

_WAIT_S = 600.0  # a machine may be busy with other programs; pytest ends a test that takes longer
_POLL_S = 0.02
_MAX_EXITS = 3  # while a test waits for a line of the log: the process does not start, or does not stay


@dataclasses.dataclass(frozen=True)
class Exit:
    """How a process ended: its exit code, or minus the signal that killed it."""

    code: int
    uptime_s: float


def serve_command(*policies: Path | BucketUrl, listen: object = "127.0.0.1:0", **settings: object) -> list[str]:
    """Return the command of a server with batches of at most 2 rows; `settings` are flags, such as workers=2.

    A row has the same bits in every batch of the same compiled size, so use max_batch_rows=1 to compare answers.
    """
    flags = {"listen": listen, "metrics_port": 0, "max_batch_rows": 2, "log_format": "text"} | settings
    words = [word for name, value in flags.items() for word in _flag(name, value)]
    return [sys.executable, str(RUN), "--policies", *map(str, policies), *words]


class Supervised:
    """A process that is started again whenever it ends, in a `with` statement, whose end stops it with SIGTERM.

    It is in a session of its own, so that `kill_all` reaches its children and nothing else.

    Args:
        command: of the process.
        log: the file that gets its stderr and stdout, of all starts.
        restart: "always", as Kubernetes does, or "on-failure", as systemd does: only after an exit code other than 0.
        backoff_s: the pause before the first restart; it doubles with every restart, up to `max_backoff_s`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        restart: Literal["always", "on-failure"] = "always",
        backoff_s: float = 0.1,
        max_backoff_s: float = 5.0,
    ) -> None:
        self._command = list(command)
        self.log = log
        self._restart = restart
        self._backoff_s, self._max_backoff_s = backoff_s, max_backoff_s
        self.starts_s: list[float] = []
        """Monotonic time of every start."""
        self.exits: list[Exit] = []
        """Every end so far."""
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._supervise)

    def __enter__(self) -> Self:
        self.log.touch()
        self._thread.start()
        self.wait_for_start(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The number of the present process, or of the last one."""
        assert self._process is not None
        return self._process.pid

    def logged(self) -> str:
        """Return what all starts have written so far."""
        return self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the present process."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill_all(self) -> None:
        """Send SIGKILL to the present process and to its children, as the end of a container does."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait_for(self, pattern: str, *, after: int = 0) -> tuple[str, ...]:
        """Wait until the log, from character `after` on, has `pattern`; return its groups.

        Raises:
            AssertionError: the process ended several times meanwhile, it is not started again, or 600 s have passed.
        """
        ends_s, earlier = time.monotonic() + _WAIT_S, len(self.exits)
        while True:
            exits, is_alive = (
                len(self.exits) - earlier,
                self._thread.is_alive(),
            )  # read before the log
            if found := re.search(pattern, self.logged()[after:]):
                return found.groups()
            assert time.monotonic() < ends_s, f"no {pattern!r} within {_WAIT_S:g} s in:\n{self.logged()}"
            assert is_alive, f"ended before {pattern!r}:\n{self.logged()}"
            assert exits < _MAX_EXITS, f"ended {exits} times before {pattern!r}:\n{self.logged()}"
            time.sleep(_POLL_S)

    def wait_for_start(self, count: int) -> None:
        """Wait until the process was started `count` times."""
        self._wait(lambda: len(self.starts_s) >= count)

    def wait_for_exit(self, count: int) -> Exit:
        """Wait until the process has ended `count` times; return how the last of them ended."""
        self._wait(lambda: len(self.exits) >= count)
        return self.exits[count - 1]

    def stop(self) -> Exit:
        """Stop the process with SIGTERM, without a restart. Stopping twice has no effect."""
        self._stopping.set()
        with self._changed:
            if len(self.exits) < len(self.starts_s):
                self.send(signal.SIGTERM)
        self._thread.join(timeout=_WAIT_S)
        assert not self._thread.is_alive(), f"process {self.pid} did not end within {_WAIT_S:g} s of SIGTERM"
        return self.exits[-1]

    def _supervise(self) -> None:
        pause_s = self._backoff_s
        while True:
            with self._changed, self.log.open("ab") as file:
                if self._stopping.is_set():
                    return
                self._process = subprocess.Popen(self._command, stderr=file, stdout=file, start_new_session=True)
                self.starts_s.append(time.monotonic())
                self._changed.notify_all()
            code = self._process.wait()
            with self._changed:
                self.exits.append(Exit(code, time.monotonic() - self.starts_s[-1]))
                self._changed.notify_all()
            if code == 0 and self._restart == "on-failure":
                return
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, self._max_backoff_s)

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=_WAIT_S), f"not within {_WAIT_S:g} s:\n{self.logged()}"


def _flag(name: str, value: object) -> list[str]:
    words = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [words if value else words.replace("--", "--no-", 1)]
    return [words, str(value)]
