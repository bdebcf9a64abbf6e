"""Health, as the protocol describes it, without a transport; tests/serving/test_server.py asks over gRPC."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse

from serving.api.health import Health
from serving.api.rpc import RpcContext
from serving.errors import InvalidRequestError, UnknownPolicyError
from tests.serving.fakes import turn_loop

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
CONTEXT = RpcContext("/grpc.health.v1.Health/Any")


def request_of(name: str) -> bytes:
    return HealthCheckRequest(service=name).SerializeToString()


async def check(health: Health, name: str) -> int:
    reply = await health.service().unary["Check"](request_of(name), CONTEXT)
    return HealthCheckResponse.FromString(reply).status


async def listed(health: Health) -> dict[str, int]:
    reply = await health.service().unary["List"](HealthListRequest().SerializeToString(), CONTEXT)
    return {name: about.status for name, about in HealthListResponse.FromString(reply).statuses.items()}


async def each(*raw: bytes) -> AsyncIterator[bytes]:
    for request in raw:
        yield request


def watch(health: Health, *raw: bytes) -> AsyncGenerator[bytes]:
    return health.service().streams["Watch"](each(*raw), CONTEXT)


async def status(replies: AsyncGenerator[bytes]) -> int:
    return HealthCheckResponse.FromString(await anext(replies)).status


async def test_check_and_list_follow_the_server() -> None:
    health = Health(["ant"])
    assert await listed(health) == {"": NOT_SERVING, "ant": NOT_SERVING}
    health.set_serving()
    assert [await check(health, ""), await check(health, "ant")] == [SERVING, SERVING]
    assert await listed(health) == {"": SERVING, "ant": SERVING}
    health.close()
    health.set_serving()  # too late
    assert [await check(health, ""), await check(health, "ant")] == [NOT_SERVING, NOT_SERVING]


async def test_check_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownPolicyError, match="there is no policy 'bee'; there are: ant"):
        await check(Health(["ant"]), "bee")
    with pytest.raises(UnknownPolicyError, match="^there is no policy 'bee'$"):
        await check(Health(["ant"], names_in_errors=False), "bee")


@pytest.mark.parametrize("method", ["Check", "List", "Watch"])
async def test_bytes_that_are_not_a_request_are_refused(method: str) -> None:
    service = Health(["ant"]).service()
    raw = b"\xff" * 7
    reply = (
        anext(service.streams["Watch"](each(raw), CONTEXT))
        if method == "Watch"
        else service.unary[method](raw, CONTEXT)
    )
    with pytest.raises(InvalidRequestError, match="the 7 bytes of the request are not a grpc.health.v1.Health"):
        await reply


async def test_a_watch_gives_each_change_and_ends_after_close() -> None:
    health = Health(["ant"])
    for name in ("", "ant"):
        health = Health(["ant"])
        replies = watch(health, request_of(name))
        assert await status(replies) == NOT_SERVING
        health.set_serving()
        health.set_serving()  # no change, so no reply
        assert await status(replies) == SERVING
        health.close()
        assert await status(replies) == NOT_SERVING
        assert await anext(replies, None) is None


async def test_a_change_while_a_status_is_being_sent_is_not_lost() -> None:
    health = Health(["ant"])
    replies = watch(health, request_of("ant"))
    assert await status(replies) == NOT_SERVING  # the method waits for the transport to send this
    health.set_serving()
    health.close()
    assert await anext(replies, None) is None  # NOT_SERVING was sent, and is true again


async def test_a_watch_that_begins_after_close_ends_too() -> None:
    health = Health(["ant"])
    health.close()
    replies = watch(health, request_of("ant"))
    assert await status(replies) == NOT_SERVING
    assert await anext(replies, None) is None


async def test_a_watch_that_never_sends_its_request_ends_after_close() -> None:
    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    health = Health(["ant"])
    replies = health.service().streams["Watch"](silent(), CONTEXT)
    first = asyncio.create_task(status(replies))
    await turn_loop()
    assert not first.done()
    health.close()
    async with asyncio.timeout(60):
        assert await first == NOT_SERVING
        assert await anext(replies, None) is None


@pytest.mark.parametrize("raw", [(), (b"",)])
async def test_a_watch_without_a_name_is_of_the_whole_server(raw: tuple[bytes, ...]) -> None:
    health = Health(["ant"])
    health.set_serving()
    assert await status(watch(health, *raw)) == SERVING


async def test_a_watch_of_an_unknown_name_says_so_and_goes_on() -> None:
    health = Health(["ant"])
    replies: Any = watch(health, request_of("bee"))
    assert await status(replies) == HealthCheckResponse.SERVICE_UNKNOWN
    health.set_serving()
    health.close()
    assert await anext(replies, None) is None
