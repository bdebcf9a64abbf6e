"""Health: grpc.health.v1 with one name per policy and "" for the whole server."""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import OVERALL_HEALTH, aio  # pyright: ignore[reportAttributeAccessIssue]  its stub is short

_LAST_WORD_S = 0.25  # for a watch to send NOT_SERVING before it ends


class Health(aio.HealthServicer):  # pyright: ignore[reportUntypedBaseClass]
    """NOT_SERVING from the start, SERVING once told so, and NOT_SERVING for good once `close` is called.

    Args:
        policies: names that are served besides the overall one.
    """

    def __init__(self, policies: Iterable[str]) -> None:
        super().__init__()
        self._names = (OVERALL_HEALTH, *policies)
        self._closed = asyncio.Event()

    async def set_all(self, *, serving: bool) -> None:
        """Set the status of every name."""
        statuses = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)

    async def close(self) -> None:
        """Say NOT_SERVING for good, and end the watches once they have said it too."""
        await self.enter_graceful_shutdown()
        self._closed.set()

    async def Watch(  # noqa: N802  gRPC names it
        self, request: health_pb2.HealthCheckRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        """As the library's, but it ends after `close`: an open watch would hold up the shutdown for all its grace."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({watch, closed}, return_when=asyncio.FIRST_COMPLETED)
            # Cancelled while it sends, as one that begins after `close` would be, it would leave its peer hanging.
            await asyncio.wait({watch}, timeout=_LAST_WORD_S)
        finally:
            closed.cancel()
            watch.cancel()
            await asyncio.wait({watch, closed})
        if not watch.cancelled():
            watch.result()  # it ends by itself only by failing
