"""WorkerProcess: the supervisor's end of one worker: starts and stops it, and receives its messages."""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from serving.config import ServeConfig
from serving.errors import RefusedVersionError, StartupError
from serving.policies.source import PolicySource
from serving.telemetry import native_lines
from serving.telemetry.heartbeat import Heartbeat
from serving.workers.messages import (
    Alive,
    Answered,
    Change,
    Changed,
    ChangeKind,
    Compiled,
    Counted,
    Loaded,
    Open,
    Reported,
    Serving,
    Start,
    from_line,
    to_line,
)

_LOGGER = logging.getLogger(__name__)

# A new program, because gRPC and JAX do not survive a fork. -P: the current folder must not shadow libraries.
WORKER_COMMAND = (sys.executable, "-P", "-m", "serving.workers")

# Too long, not JSON, JSON of another structure, or a message that has come already.
_NOT_A_MESSAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, asyncio.InvalidStateError)

FromWorker = TypeVar("FromWorker", Loaded, Compiled, Serving)


class WorkerEndedError(Exception):
    """A worker ended; `exit_code` is negative for a signal."""

    def __init__(self, pid: int, exit_code: int) -> None:
        super().__init__(pid, exit_code)
        self.pid = pid
        self.exit_code = exit_code

    def __str__(self) -> str:
        code = self.exit_code
        return f"worker {self.pid} ended " + (f"by signal {-code}" if code < 0 else f"with exit code {code}")


class WorkerProcess:
    """One worker process. Use `start` to make one."""

    def __init__(self, process: asyncio.subprocess.Process, *, clock: Callable[[], float] = time.monotonic) -> None:
        loop = asyncio.get_running_loop()
        self._process = process
        self.pid = process.pid
        self._heartbeat = Heartbeat(clock=clock, whose=f"worker {process.pid}")
        self._received: dict[type, asyncio.Future[object]] = {
            kind: loop.create_future() for kind in (Loaded, Compiled, Serving)
        }
        self._changes: dict[int, asyncio.Future[Changed]] = {}  # those without an answer
        self._numbers = itertools.count()
        self.on_message: Callable[[WorkerProcess, Answered | Reported], None] = lambda _worker, _message: None
        """Called with what it sends about robots."""
        self._ended = asyncio.create_task(self._receive())

    @classmethod
    async def start(cls, *, command: Sequence[str] = WORKER_COMMAND) -> "WorkerProcess":
        """Start a worker, which imports its libraries and waits for `load`.

        Args:
            command: its command line.

        Raises:
            OSError: the machine lacks what a process needs.
        """
        pipe = asyncio.subprocess.PIPE
        # The worker imports from the same folders as this process.
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        stderr = native_lines.stderr()  # that of this process may be a pipe to itself
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=stderr, env=environ)
        return cls(process)

    def load(
        self,
        config: ServeConfig,
        *,
        sources: Sequence[PolicySource],
        choices: Sequence[Sequence[int]],
        cores: Sequence[int],
    ) -> None:
        """Let it load and compile its policies.

        Args:
            config: what it serves.
            sources: the policies, in the order of --policies.
            choices: the versions of each policy to try, in the order of --policies.
            cores: that it may run on; empty: any.
        """
        self._send(Start(config, tuple(sources), tuple(map(tuple, choices)), tuple(cores)))

    async def loaded(self) -> Loaded:
        """Wait until it has loaded its policies. Raises WorkerEndedError if it ends first, as do the next two."""
        return await self._wait_for(Loaded)

    async def compiled(self) -> None:
        """Wait until it has compiled its policies."""
        await self._wait_for(Compiled)

    async def open(self) -> Serving:
        """Let it open the port, and wait until it has."""
        self._send(Open())
        return await self._wait_for(Serving)

    async def prepare(self, policy: str, version: int) -> None:
        """Let it load a version. Errors as `VersionHost.prepare`. Every change raises WorkerEndedError if it ends."""
        await self._change("prepare", policy, version)

    async def switch(self, policy: str, version: int) -> None:
        """Let it make a loaded version live."""
        await self._change("switch", policy, version)

    async def unload(self, policy: str, version: int) -> None:
        """Let it unload a version."""
        await self._change("unload", policy, version)

    async def set_canary(self, policy: str, version: int, *, share: float) -> None:
        """Let it answer a share of the robots with a loaded version."""
        await self._change("set_canary", policy, version, share)

    async def set_shadow(self, policy: str, version: int, *, share: float) -> None:
        """Let it compare a share of the live version's rows with a loaded version."""
        await self._change("set_shadow", policy, version, share)

    def count(self, message: Counted) -> None:
        """Say what became of a report that it has sent."""
        self._send(message)

    async def _change(self, what: ChangeKind, policy: str, version: int, share: float = 0.0) -> None:
        number = next(self._numbers)
        answer = self._changes[number] = asyncio.get_running_loop().create_future()
        self._send(Change(number, what, policy, version, share))
        try:
            await asyncio.wait({answer, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._changes[number]
        if not answer.done():
            raise WorkerEndedError(self.pid, self._ended.result())
        changed = answer.result()
        if changed.refused:
            raise RefusedVersionError(changed.refused, changed.problem, detail=changed.detail)
        if changed.problem:
            raise StartupError(changed.problem)

    async def ended(self) -> int:
        """Wait until it has ended, and return its exit code."""
        return await asyncio.shield(self._ended)

    @property
    def serves(self) -> bool:
        """Whether it has opened the port and not ended."""
        return self._received[Serving].done() and not self._ended.done()

    @property
    def problem(self) -> str:
        """Why a worker that serves does not respond, such as after SIGSTOP; empty if it does, or does not serve."""
        return self._heartbeat.problem() if self.serves else ""

    def terminate(self) -> None:
        """Send SIGTERM. No effect if the worker has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL. No effect if the worker has ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            self._process.send_signal(number)

    def _send(self, message: Start | Open | Change | Counted) -> None:
        assert self._process.stdin
        self._process.stdin.write(to_line(message))  # no effect if the worker has ended

    async def _wait_for(self, kind: type[FromWorker]) -> FromWorker:
        received = self._received[kind]
        await asyncio.wait({received, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        if not received.done():
            raise WorkerEndedError(self.pid, self._ended.result())
        message = received.result()
        assert isinstance(message, kind)
        return message

    async def _receive(self) -> int:
        """Receive its messages until it ends, and return its exit code."""
        assert self._process.stdout
        while not self._process.stdout.at_eof():
            try:
                if line := await self._process.stdout.readline():
                    message = from_line(line)
                    self._heartbeat.beat()
                    if isinstance(message, Changed):
                        if message.number in self._changes:  # otherwise its `_change` was cancelled
                            self._changes[message.number].set_result(message)
                    elif isinstance(message, Answered | Reported):
                        self.on_message(self, message)
                    elif not isinstance(message, Alive):
                        self._received[type(message)].set_result(message)
            except _NOT_A_MESSAGE as error:  # a library printed it before the worker moved its standard output
                _LOGGER.warning("worker %d wrote a line that is not a message (%.200r); skipped", self.pid, error)
        return await self._process.wait()
