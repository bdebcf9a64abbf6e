"""How the calls of other clients fare while one client floods the server (`greedy_client`, `incomplete_calls`)."""

import asyncio
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from kilolayer.v1 import policy_pb2 as pb
from tests.faults import resources

GREEDY, INCOMPLETE = (Path(__file__).with_name(name) for name in ("greedy_client.py", "incomplete_calls.py"))
STREAMS, REQUESTS, ROWS = 1000, 75, 4096
"""Of the flood: its streams, the requests of each, and the rows of a request."""

_ACT = "/kilolayer.v1.Policy/Act"
_SENT_S = 480.0
_ROBOTS = 3
_PERIOD_S = 0.05
_ANSWER_S = 60.0  # a busy machine
_REQUEST = pb.ActRequest(state=[0.1] * 4, goal=[0.2] * 2).SerializeToString()


@dataclasses.dataclass(frozen=True)
class Call:
    """A call with one row."""

    began_s: float
    taken_s: float
    answered: bool


@dataclasses.dataclass(frozen=True)
class Flood:
    """Calls of others before the flood and during it, and the timeout of each."""

    before: Sequence[Call]
    during: Sequence[Call]
    growth_mb: float  # of the server's memory, at most
    timeout_s: float

    @property
    def late(self) -> int:
        """Calls during the flood that got no answer within the timeout."""
        return sum(not call.answered for call in self.during)


def percentile_ms(calls: Sequence[Call], share: float) -> float:
    """The time that this share of the calls took at most; a call without an answer counts with its timeout."""
    taken_s = sorted(call.taken_s for call in calls)
    return 1e3 * taken_s[min(len(taken_s) - 1, int(share * len(taken_s)))]


def measure(address: str, pid: int, *, seconds: float, timeout_s: float) -> Flood:
    """Call for `seconds`, then during a flood of `seconds` or more, on connections that are open before it.

    The flood lasts until each caller has had two calls end.
    """
    return asyncio.run(_measure(address, pid, seconds, timeout_s=timeout_s))


async def _measure(address: str, pid: int, seconds: float, *, timeout_s: float) -> Flood:
    calls: list[Call] = []
    robots = [asyncio.create_task(_robot(address, calls, timeout_s=timeout_s)) for _ in range(_ROBOTS)]
    await asyncio.sleep(seconds)
    before_bytes = most_bytes = resources.read(pid).resident_bytes
    begins_s = time.monotonic()
    command = [sys.executable, str(GREEDY), address, str(STREAMS), str(REQUESTS), str(ROWS)]
    flood = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    try:
        while time.monotonic() < begins_s + seconds or _begun_since(begins_s, calls) < 2 * _ROBOTS:
            await asyncio.sleep(0.1)
            most_bytes = max(most_bytes, resources.read(pid).resident_bytes)
    finally:
        flood.kill()
        await flood.wait()
    for robot in robots:
        robot.cancel()
    await asyncio.gather(*robots, return_exceptions=True)
    before, during = ([call for call in calls if (call.began_s >= begins_s) is late] for late in (False, True))
    return Flood(before, during, growth_mb=(most_bytes - before_bytes) / 1e6, timeout_s=timeout_s)


def _begun_since(begins_s: float, calls: Sequence[Call]) -> int:
    return sum(call.began_s >= begins_s for call in calls)


def leave_incomplete(address: str, pid: int, *, calls: int, size: int) -> tuple[float, int]:
    """Open calls and send `size` bytes of each request, which has one byte more.

    Return by how many MB the server's memory grew at most, and how many of 20 calls of another client are answered
    while the first client still waits.
    """
    before_bytes = most_bytes = resources.read(pid).resident_bytes
    command = [sys.executable, str(INCOMPLETE), address, _ACT, str(calls), str(size)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client,
        grpc.insecure_channel(address) as channel,
    ):
        try:
            assert client.stdout
            lines: list[str] = []
            threading.Thread(target=lines.extend, args=(iter(client.stdout),), daemon=True).start()
            ends_s = time.monotonic() + _SENT_S
            while "sent\n" not in lines and time.monotonic() < ends_s:
                most_bytes = max(most_bytes, resources.read(pid).resident_bytes)
                time.sleep(0.02)
            assert "sent\n" in lines, lines
            answered = sum(_is_answered(channel) for _ in range(20))
        finally:
            client.kill()
    return (most_bytes - before_bytes) / 1e6, answered


def _is_answered(channel: grpc.Channel) -> bool:
    act: Any = channel.unary_unary(_ACT)
    try:
        act(_REQUEST, timeout=_ANSWER_S)
    except grpc.RpcError:
        return False
    return True


async def _robot(address: str, calls: list[Call], *, timeout_s: float) -> None:
    """Call every 50 ms on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        act: Any = channel.unary_unary(_ACT)
        await act(_REQUEST, wait_for_ready=True)
        while True:
            began_s = time.monotonic()
            try:
                await act(_REQUEST, timeout=timeout_s)
                answered = True
            except grpc.aio.AioRpcError:
                answered = False
            taken_s = time.monotonic() - began_s
            calls.append(Call(began_s, taken_s, answered))
            await asyncio.sleep(max(0.0, _PERIOD_S - taken_s))
