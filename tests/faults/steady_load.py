"""SteadyLoad: calls at a fixed rate, whatever the replies, over several connections; every answer is compared.

async with SteadyLoad(address) as load:
    rate_per_s = 0.5 * await load.peak_per_s(5.0)
    calls = await load.run(rate_per_s, until=switching.done)
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub

_CONNECTIONS = 8
_CALLERS = 64  # that find the peak
_TIMEOUT_S = 120.0
_TOLERANCE = 1e-4  # an action's last bits depend on the size of its batch
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
_STATES, _GOALS = (0.5, -1, 2, 0, 1, 1, -1, 0), (1, 1, -2, 0)  # of the two rows of every call


@dataclasses.dataclass(frozen=True)
class Answered:
    """A call that was answered."""

    due_s: float  # when it was to be sent, monotonic
    ended_s: float
    version: str  # that the answer names
    action: tuple[float, ...]  # of both rows

    @property
    def taken_ms(self) -> float:
        """The time from the moment that the call was due, so that a late sender hides nothing."""
        return 1e3 * (self.ended_s - self.due_s)


@dataclasses.dataclass
class Calls:
    """What became of the calls of one run."""

    answered: list[Answered] = dataclasses.field(default_factory=list[Answered])
    failed: list[str] = dataclasses.field(default_factory=list[str])
    wrong: int = 0  # answers that are not those of the version that they name

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the times of the calls."""
        return float(np.percentile([call.taken_ms for call in self.answered], percent))


class SteadyLoad:
    """Calls `Act` with two rows each. Versions that answer must stay loaded until a run has ended.

    Args:
        address: of the server.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> Self:
        self._channels = [grpc.aio.insecure_channel(self._address, options=_OPTIONS) for _ in range(_CONNECTIONS)]
        self._stubs: list[Any] = [PolicyStub(channel) for channel in self._channels]
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def peak_per_s(self, seconds: float) -> float:
        """Return how many calls per second 64 callers get answered that call again after every answer."""
        calls, ends_s = Calls(), time.monotonic() + seconds

        async def caller(index: int) -> None:
            while (now_s := time.monotonic()) < ends_s:
                await self._call(index, due_s=now_s, calls=calls)

        await asyncio.gather(*map(caller, range(_CALLERS)))
        assert not calls.failed, calls.failed[:3]
        return len(calls.answered) / seconds

    async def run(self, rate_per_s: float, *, until: Callable[[], bool]) -> Calls:
        """Call at a fixed rate until `until()` is true, and return what became of all calls."""
        calls, waiting, began_s, index = Calls(), set[asyncio.Task[None]](), time.monotonic(), 0
        while not until():
            due_s = began_s + index / rate_per_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(self._call(index, due_s=due_s, calls=calls))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            index += 1
        await asyncio.gather(*waiting)
        for version in {call.version for call in calls.answered}:
            expected = (await self._act(0, version=version)).action
            actions = [call.action for call in calls.answered if call.version == version]
            calls.wrong += int(np.sum(np.any(np.abs(np.subtract(actions, expected)) > _TOLERANCE, axis=1)))
        return calls

    async def _call(self, index: int, *, due_s: float, calls: Calls) -> None:
        try:
            reply = await self._act(index)
        except grpc.aio.AioRpcError as error:
            calls.failed.append(f"{error.code().name} {error.details()}")
            return
        calls.answered.append(Answered(due_s, time.monotonic(), reply.version, tuple(reply.action)))

    async def _act(self, index: int, *, version: str = "") -> pb.ActResponse:
        request = pb.ActRequest(state=_STATES, goal=_GOALS, version=version)
        return await self._stubs[index % _CONNECTIONS].Act(request, timeout=_TIMEOUT_S)
