"""Changes of the live version at half of the peak load: what they cost the calls.

Each function starts a real server and a steady load, and checks that no answer is lost or mixed.
"""

import asyncio
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import grpc.aio

from kilolayer.v1 import admin_pb2 as admin
from kilolayer.v1.admin_pb2_grpc import PolicyAdminStub
from tests.faults.conftest import publish
from tests.faults.new_versions import READY
from tests.faults.remote_admin import RemoteAdmin
from tests.faults.steady_load import Calls, SteadyLoad
from tests.faults.supervised import Supervised, serve_command

_PEAK_S = 3.0
_MAX_BATCH_ROWS = 64
_PATIENCE = {"max_queue_age_s": 60.0, "max_queue_rows": 1_000_000}  # a busy machine may stop a process for seconds
_TAKE_UP_S = 300.0
_POLL_S = 0.1


@dataclasses.dataclass(frozen=True)
class Delays:
    """The 99th percentile of the calls' times, without the change and during it."""

    rate_per_s: float
    calls: int
    without_ms: float
    during_ms: float
    change_s: float  # that the change took, or all changes

    @property
    def ratio(self) -> float:
        """How many times as high it is during the change."""
        return self.during_ms / self.without_ms


def switch_often(folder: Path, *, switches: int, seconds: float, workers: int = 1) -> Delays:
    """Switch between two versions, evenly over `seconds`; before and after it, the same load for half of that time."""
    served = folder / "served"
    publish(served, 1)
    publish(served, 2)
    command = serve_command(
        served,
        workers=workers,
        max_batch_rows=_MAX_BATCH_ROWS,
        state_dir=folder / "state",
        follow=False,
        **_PATIENCE,
    )
    with Supervised(command, log=folder / "log") as server:
        address, _, socket = server.wait_for(READY)
        RemoteAdmin(socket).switch(1)
        RemoteAdmin(socket).switch(2)

        async def measure() -> tuple[float, list[Calls]]:
            async with (
                SteadyLoad(address) as load,
                grpc.aio.insecure_channel(socket) as channel,
            ):
                rate_per_s = await load.peak_per_s(_PEAK_S) / 2
                before = await _run_for(load, rate_per_s, seconds=seconds / 2)
                switching = asyncio.create_task(_switch(PolicyAdminStub(channel), switches, seconds=seconds))
                during = await load.run(rate_per_s, until=switching.done)
                await switching
                after = await _run_for(load, rate_per_s, seconds=seconds / 2)
                return rate_per_s, [before, during, after]

        rate_per_s, (before, during, after) = asyncio.run(measure())
    for calls in (before, during, after):
        _check(calls)
    assert {call.version for call in during.answered} == {"1", "2"}
    without = Calls([*before.answered, *after.answered])
    answered = len(without.answered) + len(during.answered)
    return Delays(rate_per_s, answered, without.percentile_ms(99), during.percentile_ms(99), seconds)


def take_up_other_depth(folder: Path, *, depth: int, seconds: float) -> Delays:
    """Publish a version of another depth and follow it; before it, the same load for `seconds`."""
    served = folder / "served"
    publish(served, 1)
    new = publish(folder / "new", 2, actor_depth=depth, critic_depth=depth)
    command = serve_command(served, max_batch_rows=_MAX_BATCH_ROWS, state_dir=folder / "state", **_PATIENCE)
    with Supervised(command, log=folder / "log") as server:
        address, _, socket = server.wait_for(READY)

        async def measure() -> tuple[float, Calls, Calls, float]:
            async with (
                SteadyLoad(address) as load,
                grpc.aio.insecure_channel(socket) as channel,
            ):
                rate_per_s = await load.peak_per_s(_PEAK_S) / 2
                before = await _run_for(load, rate_per_s, seconds=seconds)
                shutil.copytree(new, served / "2")
                began_s = time.monotonic()
                taken_up = asyncio.create_task(_until_live(PolicyAdminStub(channel), "2"))
                during = await load.run(rate_per_s, until=taken_up.done)
                await taken_up
                return rate_per_s, before, during, time.monotonic() - began_s

        rate_per_s, before, during, change_s = asyncio.run(measure())
    _check(before)
    _check(during)
    answered = len(before.answered) + len(during.answered)
    return Delays(rate_per_s, answered, before.percentile_ms(99), during.percentile_ms(99), change_s)


def _check(calls: Calls) -> None:
    assert calls.answered
    assert not calls.failed, calls.failed[:3]
    assert not calls.wrong


async def _run_for(load: SteadyLoad, rate_per_s: float, *, seconds: float) -> Calls:
    ends_s = time.monotonic() + seconds
    return await load.run(rate_per_s, until=lambda: time.monotonic() >= ends_s)


async def _switch(stub: Any, switches: int, *, seconds: float) -> None:
    began_s = time.monotonic()
    for number in range(switches):
        await asyncio.sleep(max(0.0, began_s + number * seconds / switches - time.monotonic()))
        version = str(1 + number % 2)
        reply = await stub.Switch(admin.SwitchRequest(version=version), timeout=60)
        assert reply.policy.live_version == version


async def _until_live(stub: Any, version: str) -> None:
    async with asyncio.timeout(_TAKE_UP_S):
        while True:
            status = await stub.Status(admin.StatusRequest(), timeout=60)
            if status.policies[0].live_version == version:
                return
            await asyncio.sleep(_POLL_S)
