"""What becomes of a refusal: told once, with its trailers, unless nobody is there any more."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from serving.api.handlers import refuse
from serving.errors import OverloadedError


class Caller:
    """A context whose `abort` does as it is told."""

    def __init__(self, raises: Exception) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._raises = raises

    async def abort(self, *told: Any) -> None:
        self.told.append(told)
        raise self._raises


def test_a_refusal_ends_the_call_as_grpc_does() -> None:
    caller: Any = Caller(grpc.aio.AbortError())
    with pytest.raises(grpc.aio.AbortError):
        asyncio.run(refuse(caller, OverloadedError("full")))
    assert caller.told == [(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", OverloadedError("full").trailers)]


def test_a_caller_that_has_just_left_makes_no_error() -> None:
    caller: Any = Caller(grpc.aio.InternalError("execute_batch"))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(refuse(caller, OverloadedError("full")))
