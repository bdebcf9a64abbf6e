"""Health: grpc.health.v1, with one name per policy and "" for the whole server."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse

from serving.access.roles import Role
from serving.api.handlers import parse
from serving.api.rpc import Method, RpcContext, RpcService
from serving.errors import UnknownPolicyError, echo

_OVERALL = ""  # the name of the whole server, by the protocol


class Health:
    """NOT_SERVING at first, SERVING after `set_serving`, and permanently NOT_SERVING after `close`.

    Args:
        policies: names that have a status in addition to the whole server.
        names_in_errors: whether the error about an unknown name lists them.
    """

    def __init__(self, policies: Iterable[str], *, names_in_errors: bool = True) -> None:
        self._names = frozenset({_OVERALL, *policies})
        self._names_in_errors = names_in_errors
        self._serving = False
        self._closed = asyncio.Event()
        self._changed = asyncio.Event()  # set at the next change, and then replaced

    def service(self) -> RpcService:
        """Return the methods, for a transport."""
        return RpcService(
            "grpc.health.v1.Health",
            unary={"Check": Method(Role.ANYONE, self._check), "List": Method(Role.ANYONE, self._list)},
            streams={"Watch": Method(Role.ANYONE, self._watch)},
        )

    @property
    def is_serving(self) -> bool:
        """Whether the status is SERVING."""
        return self._serving

    def set_serving(self) -> None:
        """Make every name SERVING, unless `close` was called."""
        if not self._closed.is_set():
            self._serving = True
            self._notify()

    def close(self) -> None:
        """Make every name NOT_SERVING permanently. Open watches receive this and end: they would delay the shutdown."""
        self._serving = False
        self._closed.set()
        self._notify()

    async def _check(self, raw: bytes, _context: RpcContext) -> bytes:
        name = parse(raw, HealthCheckRequest).service
        if name not in self._names:
            there_are = f"; there are: {self._policies()}" if self._names_in_errors else ""
            raise UnknownPolicyError(f"there is no policy {echo(name)}{there_are}")
        return self._response(name).SerializeToString()

    async def _list(self, raw: bytes, _context: RpcContext) -> bytes:
        parse(raw, HealthListRequest)
        return HealthListResponse(statuses={name: self._response(name) for name in self._names}).SerializeToString()

    async def _watch(self, requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
        name = parse(await self._first(requests), HealthCheckRequest).service
        sent = None
        while True:
            changed, closed, response = self._changed, self._closed.is_set(), self._response(name)
            if response != sent:
                yield response.SerializeToString()
                sent = response
            if closed:
                return
            await changed.wait()  # already set if the status changed while it was being sent

    async def _first(self, requests: AsyncIterator[bytes]) -> bytes:
        """Receive the request of a watch; an empty one if there is none, or if `close` comes first."""
        receiving = asyncio.ensure_future(anext(requests, b""))
        closing = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait({receiving, closing}, return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else b""
        finally:
            receiving.cancel()
            closing.cancel()

    def _response(self, name: str) -> HealthCheckResponse:
        if name not in self._names:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        status = HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)

    def _policies(self) -> str:
        return ", ".join(sorted(self._names - {_OVERALL}))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
