"""Every service of a server on one port in this process, behind a guard, around policies that nobody computes."""

import contextlib
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

from serving.access.guard import Guard
from serving.access.refusals import Refusals
from serving.access.tokens import Token, Tokens
from serving.api.admin_actions import AdminActions
from serving.api.admin_service import AdminService
from serving.api.grpc_transport import GrpcTransport
from serving.api.handlers import RpcHandlers
from serving.api.health import Health
from serving.api.observers import Observers
from serving.api.open_inference.repository import RepositoryService
from serving.api.open_inference.service import OpenInferenceService
from serving.api.policy_service import PolicyService
from serving.api.rpc import RpcService
from serving.api.tracing import Tracing
from serving.config import ServeConfig
from serving.policies.episode_reports import EpisodeReports
from serving.policies.report_metrics import ReportsCollector
from serving.sockets import TcpAddress
from serving.telemetry.metrics import Metrics, admin_actions
from tests.serving.access.token_samples import ONE_FOR_EACH_ROLE
from tests.serving.decisions import Decisions
from tests.serving.fakes import MODEL, AnsweringBatcher, policies_of


class Services:
    """A server with every service. Its clock stands still until a test moves it.

    Args:
        folder: for the files of the admin services' policies.
        tokens: that it accepts; None: it needs none.
        reads_itself: whether requests are read by our handlers, as under overload, and not by gRPC.
        tracing: makes a span of every call.
    """

    def __init__(
        self,
        folder: Path,
        tokens: Iterable[Token] | None = ONE_FOR_EACH_ROLE,
        *,
        reads_itself: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        self.now_s = 100.0
        self.collectors = CollectorRegistry()
        metrics = Metrics(self.collectors)
        self.batcher = AnsweringBatcher()
        policies, handlers = policies_of(self.batcher), RpcHandlers(metrics, tracing=tracing, clock=self.clock)
        reports = EpisodeReports(clock=self.clock)
        self.collectors.register(ReportsCollector(reports))
        observers = Observers(policies, reports=reports)
        self.decisions = Decisions(folder, "ant", "bee")
        actions = AdminActions(self.decisions.deployment, admin_actions(self.collectors), clock=self.clock)
        config = ServeConfig(policies=(folder,))
        self.services: tuple[RpcService, ...] = (
            PolicyService(policies, handlers=handlers, max_rows=8, observers=observers).service(),
            OpenInferenceService(
                policies, handlers=handlers, metrics=metrics, config=config, observers=observers
            ).service(),
            Health([MODEL]).service(),
            AdminService(actions, drain=lambda: None).service(),
            RepositoryService(actions).service(),
        )
        self.tokens = Tokens(tokens or ())
        refusals = Refusals(metrics.refused.labels, clock=self.clock)
        self.guard = None if tokens is None else Guard(self.tokens, refusals, clock=self.clock)
        largest = 1 << 20
        self.transport = GrpcTransport(
            self.services,
            max_request_bytes=largest,
            max_held_bytes=4 * largest if reads_itself else 512 * largest,
            guard=self.guard,
            clock=self.clock,
        )
        self.channel: Any = None

    def clock(self) -> float:
        return self.now_s

    def paths(self) -> dict[str, bool]:
        """The path of every method, and whether it is a stream."""
        return {
            f"/{service.name}/{name}": name in service.streams
            for service in self.services
            for name in (*service.unary, *service.streams)
        }

    def call(self, path: str, raw: bytes = b"", metadata: Iterable[tuple[str, str]] = ()) -> Any:
        """Begin a call with one message."""
        arguments: dict[str, Any] = {"timeout": 30, "metadata": tuple(metadata)}
        if self.paths().get(path):
            return self.channel.stream_stream(path)(iter([raw]), **arguments)
        return self.channel.unary_unary(path)(raw, **arguments)

    def count(self, name: str, **labels: str) -> float:
        return self.collectors.get_sample_value(f"kilolayer_{name}", labels) or 0.0


@contextlib.asynccontextmanager
async def started(services: Services) -> AsyncGenerator[Services]:
    await services.decisions.restore()
    address = await services.transport.start(TcpAddress("127.0.0.1", 0))
    options = [("grpc.use_local_subchannel_pool", 1)]
    try:
        async with grpc.aio.insecure_channel(str(address), options=options) as services.channel:
            yield services
    finally:
        await services.transport.stop(0)


async def outcome(call: Any) -> tuple[str, str | None]:
    """The status of a call, and its reason. Of a stream, the replies are read first."""
    if hasattr(call, "read"):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
    return (await call.code()).name, (await call.trailing_metadata()).get("kilolayer-reason")
