"""Watches of health while a server closes."""

import asyncio
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.api.health import Health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_watch_ends_after_not_serving_also_if_it_begins_when_the_server_closes() -> None:
    async def test() -> None:
        health, server = Health(["ant"]), grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await health.set_all(serving=True)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)

            def watch(name: str) -> Any:
                return stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=5)

            early = watch("ant")
            assert (await early.read()).status == SERVING
            await health.close()
            assert (await early.read()).status == NOT_SERVING
            assert await early.read() is grpc.aio.EOF
            for name in ("", "ant", "ant"):
                late = watch(name)
                assert (await late.read()).status == NOT_SERVING
                assert await late.read() is grpc.aio.EOF
        await server.stop(0)

    asyncio.run(test())
