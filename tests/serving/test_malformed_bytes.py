"""Every method of a real server gets bytes that are no message."""

import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthListResponse
from prometheus_client import CollectorRegistry

from serving.config import ServeConfig
from serving.errors import Reason
from serving.loading import load
from tests.serving.in_process import Running

HOSTILE = b"\xff" * 7
HEALTH = ("Check", "List")
POLICY = ("Act", "Score", "Describe", "List", "Report")
OPEN_INFERENCE = (
    *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig"),
    *("ModelStatistics", "ModelInfer"),
)
UNARY = [
    *(f"/grpc.health.v1.Health/{name}" for name in HEALTH),
    *(f"/kilolayer.v1.Policy/{name}" for name in POLICY),
    *(f"/inference.GRPCInferenceService/{name}" for name in OPEN_INFERENCE),
]
STREAMS = [
    "/grpc.health.v1.Health/Watch",
    "/kilolayer.v1.Policy/ActStream",
    "/inference.GRPCInferenceService/ModelStreamInfer",
]


def call(channel: grpc.Channel, path: str, request: bytes) -> None:
    if path in STREAMS:
        list(channel.stream_stream(path)(iter([request]), timeout=60))
    else:
        channel.unary_unary(path)(request, timeout=60)


@pytest.mark.parametrize("path", [*UNARY, *STREAMS])
def test_bytes_that_are_no_message_are_an_invalid_argument_and_leave_no_line(
    running: Running, path: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with grpc.insecure_channel(running.address) as channel, pytest.raises(grpc.RpcError) as refused:
        call(channel, path, HOSTILE)
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.fullmatch(r"the 7 bytes of the request are not a [\w.]+ message", error.details())
    assert dict(error.trailing_metadata())["kilolayer-reason"] == Reason.INVALID_REQUEST
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_health_lists_the_server_and_its_policies(running: Running) -> None:
    with grpc.insecure_channel(running.address) as channel:
        raw = channel.unary_unary("/grpc.health.v1.Health/List")(b"", timeout=60)
    statuses = HealthListResponse.FromString(raw).statuses
    assert {name: about.status for name, about in statuses.items()} == {"": 1, "point_u_maze": 1}


async def test_the_tables_hold_every_method_of_the_server(policies: Path) -> None:
    server = await load(
        ServeConfig(policies=(policies,), listen="127.0.0.1:0", metrics_port=0, metrics=False),
        collectors=CollectorRegistry(),
    )
    services = server.services
    assert {f"/{service.name}/{name}" for service in services for name in service.unary} == set(UNARY)
    assert {f"/{service.name}/{name}" for service in services for name in service.streams} == set(STREAMS)
