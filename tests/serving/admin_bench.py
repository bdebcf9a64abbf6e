"""An admin server at a Unix socket, whose deployment computes nothing, and a channel to it."""

import contextlib
import re
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from kilolayer.v1 import admin_pb2 as pb
from kilolayer.v1.admin_pb2_grpc import PolicyAdminStub
from serving.api.admin_server import AdminServer
from serving.sockets import UnixAddress
from tests.serving.decisions import Decisions


class Admin:
    """An admin server of `policies` at a Unix socket, and a channel to it."""

    def __init__(self, folder: Path, *policies: str, sockets: Path | None = None) -> None:
        self.decisions = Decisions(folder / "policies", *policies)
        self.metrics = CollectorRegistry()
        self.drained = 0
        self.address = UnixAddress((sockets or folder) / "kilolayer" / "admin.sock")
        self.server = AdminServer(
            self.decisions.deployment, self.address, drain=self.drain, collectors=self.metrics, owns_folder=True
        )
        # Otherwise gRPC would use one connection for all channels to an address.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(self.address.uri, options=options)
        self.stub = PolicyAdminStub(self.channel)

    def drain(self) -> None:
        self.drained += 1

    async def call(self, method: str, **fields: object) -> Any:
        """Call a method of PolicyAdmin as ann."""
        request = getattr(pb, f"{method}Request")(**fields)
        return await getattr(self.stub, method)(request, timeout=60, metadata=[("kilolayer-admin-user", "ann")])

    def count(self, action: str, outcome: str) -> float | None:
        labels = {"action": action, "outcome": outcome}
        return self.metrics.get_sample_value("kilolayer_admin_actions_total", labels)


@contextlib.asynccontextmanager
async def started(folder: Path, *policies: str) -> AsyncGenerator[Admin]:
    admin = Admin(folder, *policies)
    await admin.decisions.restore()
    await admin.server.start()
    try:
        yield admin
    finally:
        await admin.channel.close()
        await admin.server.stop()


@contextlib.contextmanager
def refused(code: str, reason: str, message: str) -> Generator[None]:
    """Expect a call to fail so."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield
    assert error.value.code().name == code
    assert dict(error.value.trailing_metadata() or ())["kilolayer-reason"] == reason
    assert re.fullmatch(message, error.value.details() or ""), error.value.details()
