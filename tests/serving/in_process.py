"""A server in a thread of the test's own process."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Generator

from prometheus_client import CollectorRegistry

from serving.config import ServeConfig
from serving.loading import load
from serving.server import Server


@dataclasses.dataclass(frozen=True)
class Running:
    """A server in this process, ready."""

    address: str
    registry: CollectorRegistry
    http: str
    """HOST:PORT for HTTP; empty if there is none."""

    def sample(self, name: str, **labels: str) -> float:
        """The present value of a metric; 0 if nothing of that name and labels was counted yet."""
        return self.registry.get_sample_value(f"kilolayer_{name}", labels) or 0.0


@contextlib.contextmanager
def served(config: ServeConfig) -> Generator[Running]:
    """Serve what `config` names, with any free port for metrics, until the context ends."""
    registry = CollectorRegistry()
    ready: list[Server] = []
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        try:
            server = await load(dataclasses.replace(config, metrics_port=0), collectors=registry)
            await server.start()
            await server.prepare()
            server.open()
            ready.append(server)
        finally:
            started.set()
        await asyncio.to_thread(stop.wait)
        assert await server.drain()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    assert ready, "the server did not start; the thread's traceback is above"
    try:
        yield Running(str(ready[0].address), registry, str(ready[0].http_address or ""))
    finally:
        stop.set()
        thread.join()
