"""Reflection describes the services of the gRPC port to tools such as grpcurl."""

import asyncio

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from serving.api import reflection
from serving.api.grpc_transport import GrpcTransport
from serving.sockets import TcpAddress

SERVICES = ["grpc.health.v1.Health", "inference.GRPCInferenceService", "kilolayer.v1.Policy"]


async def test_a_tool_finds_the_services_and_their_methods() -> None:
    transport = GrpcTransport([reflection.service()], max_request_bytes=1024)
    address = await transport.start(TcpAddress("127.0.0.1", 0))
    try:
        names, methods = await asyncio.to_thread(described, str(address))
    finally:
        await transport.stop(1)
    assert names == SERVICES
    assert {"Act", "ActStream", "Score", "Describe", "List", "Report"} <= methods
    assert {"ModelInfer", "ServerLive"} <= methods


def described(address: str) -> tuple[list[str], set[str]]:
    """The services that a tool finds at `address`, and the names of their methods."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = sorted(database.get_services())
        pool = DescriptorPool(database)
        methods = {method.name for name in names for method in pool.FindServiceByName(name).methods}
    return names, methods
