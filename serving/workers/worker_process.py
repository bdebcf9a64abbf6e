"""A worker process as its parent sees it: what it has said, and how it ended."""

import asyncio
import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection

from serving.config import ServeConfig
from serving.workers.messages import Compiled, FromWorker, Loaded, Open, Serving

_SPAWN = multiprocessing.get_context("spawn")  # neither gRPC nor JAX survives a fork


class WorkerEndedError(Exception):
    """A worker ended; `exit_code` is negative for a signal."""

    def __init__(self, pid: int, exit_code: int) -> None:
        how = f"by signal {-exit_code}" if exit_code < 0 else f"with exit code {exit_code}"
        super().__init__(f"worker {pid} ended {how}")
        self.exit_code = exit_code


class WorkerProcess:
    """One worker, started at once. Construct it inside a running event loop.

    Args:
        config: what it serves.
        versions: of the policies, in the order of their folders; None: the newest that verify.
        cores: that it keeps to; empty: any.
    """

    def __init__(self, config: ServeConfig, *, versions: Sequence[int] | None, cores: Sequence[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(config, theirs, versions, cores), name="worker")
        self._process.start()
        theirs.close()  # so that it is this process alone whose end the worker notices
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._said: dict[type[FromWorker], asyncio.Future[FromWorker]] = {
            kind: self._loop.create_future() for kind in (Loaded, Compiled, Serving)
        }
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pipe.fileno(), self._hear)
        self._loop.add_reader(self._process.sentinel, self._see_the_end)

    async def loaded(self) -> Loaded:
        """Wait until it has loaded its policies. Raises WorkerEndedError, as all of these."""
        said = await self._wait_for(Loaded)
        assert isinstance(said, Loaded)
        return said

    async def compiled(self) -> None:
        """Wait until it could open the port."""
        await self._wait_for(Compiled)

    async def open(self) -> Serving:
        """Let it open the port, and wait until it has."""
        try:
            self._pipe.send(Open())
        except OSError:  # it ended after it had compiled; how, its sentinel says in a moment
            raise WorkerEndedError(self.pid, await self.ended()) from None
        said = await self._wait_for(Serving)
        assert isinstance(said, Serving)
        return said

    async def ended(self) -> int:
        """Wait until it ends; its exit code."""
        return await asyncio.shield(self._ended)

    @property
    def serves(self) -> bool:
        """Whether it has opened the port and not ended."""
        return self._said[Serving].done() and not self._ended.done()

    def terminate(self) -> None:
        """Tell it to stop; harmless if it has."""
        self._process.terminate()

    def kill(self) -> None:
        """End it; harmless if it has ended."""
        self._process.kill()

    async def _wait_for(self, kind: type[FromWorker]) -> FromWorker:
        said = self._said[kind]
        await asyncio.wait({said, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        if not said.done():
            raise WorkerEndedError(self.pid, self._ended.result())
        return said.result()

    def _hear(self) -> None:
        try:
            said = self._pipe.recv()
        except (EOFError, OSError):  # it ended, as its sentinel says too; the latter: with something of ours unread
            self._loop.remove_reader(self._pipe.fileno())
        else:
            self._said[type(said)].set_result(said)

    def _see_the_end(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._process.join()
        assert self._process.exitcode is not None
        self._ended.set_result(self._process.exitcode)


def _work(config: ServeConfig, parent: Connection, versions: Sequence[int] | None, cores: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the parent too, which then stops us
    from serving.workers.worker import run_worker  # JAX, which the parent does without

    run_worker(config, parent, versions=versions, cores=cores)
