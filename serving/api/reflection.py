"""Reflection: describes the services to tools such as grpcurl, with the servicer of grpcio-reflection."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from kilolayer.v1 import policy_pb2
from serving.access.roles import Role
from serving.api.handlers import parse
from serving.api.open_inference import open_inference_pb2
from serving.api.rpc import Method, RpcContext, RpcService

# Each file needs no other one. Those of the Open Inference Protocol are in a pool of their own.
_FILES = cast(
    "tuple[FileDescriptor, ...]", (policy_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
)


def service() -> RpcService:
    """Return the service that describes those on the gRPC port."""
    servicer = reflection.aio.ReflectionServicer(_names(), pool=_pool())

    async def info(requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
        async def parsed() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            async for raw in requests:
                yield parse(raw, reflection_pb2.ServerReflectionRequest)

        responses = cast("AsyncIterator[Any]", servicer.ServerReflectionInfo(parsed(), None))  # it has a wrong type
        async for response in responses:
            yield response.SerializeToString()

    return RpcService(reflection.SERVICE_NAME, unary={}, streams={"ServerReflectionInfo": Method(Role.ANYONE, info)})


def _names() -> list[str]:
    return [each.full_name for file in _FILES for each in file.services_by_name.values()]


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in _FILES:
        described = FileDescriptorProto()
        file.CopyToProto(described)
        pool.Add(described)
    return pool
