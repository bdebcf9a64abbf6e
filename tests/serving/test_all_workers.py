"""One decision for all workers: with workers that only record what they are told."""

import asyncio
from typing import Any, cast

import pytest

from serving.errors import RefusedVersionError, StartupError
from serving.workers import all_workers
from serving.workers.all_workers import AllWorkers
from serving.workers.worker_process import WorkerEndedError, WorkerProcess
from tests.serving.fakes import turn_loop

NAME = "maze"


class Worker:
    """Does what it is told, unless it has `ended`, is `stopped`, or refuses versions."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.did: list[tuple[str, int]] = []
        self.problems: dict[int, Exception] = {}
        self.ended = False
        self.held: dict[int, asyncio.Event] = {}  # versions that are loaded later
        self.stopped: asyncio.Event | None = None
        self.problem = ""
        self.cannot: set[str] = set()  # do

    async def prepare(self, policy: str, version: int) -> None:
        await self._do("prepare", policy, version)
        if version in self.held:
            await self.held[version].wait()
        if version in self.problems:
            raise self.problems[version]

    async def switch(self, policy: str, version: int) -> None:
        await self._do("switch", policy, version)

    async def unload(self, policy: str, version: int) -> None:
        await self._do("unload", policy, version)

    async def set_canary(self, policy: str, version: int, *, share: float) -> None:
        await self._do(f"canary {share:g}", policy, version)

    async def set_shadow(self, policy: str, version: int, *, share: float) -> None:
        await self._do(f"shadow {share:g}", policy, version)

    async def _do(self, what: str, policy: str, version: int) -> None:
        assert policy == NAME
        if self.stopped:
            await self.stopped.wait()
        if self.ended:
            raise WorkerEndedError(self.pid, -9)
        self.did.append((what, version))
        if what in self.cannot:
            raise StartupError("the worker failed; its log says why")


class Workers:
    """Two workers that have joined with version 1 live."""

    def __init__(self) -> None:
        self.lost: list[tuple[str, int]] = []
        self.rejected: list[str] = []
        self.all = AllWorkers({NAME: 1}, on_lost=self._lose, on_rejected=self.rejected.append)
        self.each = (Worker(1), Worker(2))

    async def _lose(self, policy: str, version: int) -> None:
        self.lost.append((policy, version))

    async def join(self, worker: Any, *, version: int = 1) -> None:
        await self.all.join(cast("WorkerProcess", worker), live={NAME: version})


@pytest.fixture
async def workers() -> Workers:
    workers = Workers()
    for worker in workers.each:
        await workers.join(worker)
    return workers


async def test_every_worker_makes_every_change(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    await workers.all.prepare(NAME, 2)  # no effect
    await workers.all.switch(NAME, 2)
    await workers.all.unload(NAME, 1)
    assert [worker.did for worker in workers.each] == [[("prepare", 2), ("switch", 2), ("unload", 1)]] * 2
    assert workers.all.live == {NAME: 2}


@pytest.mark.parametrize("problem", [RefusedVersionError("hash", "damaged"), StartupError("too little memory")])
async def test_a_version_that_one_worker_cannot_load_is_unloaded_by_the_others(
    workers: Workers, problem: Exception
) -> None:
    first, second = workers.each
    second.problems[2] = problem
    with pytest.raises(type(problem), match=str(problem)):
        await workers.all.prepare(NAME, 2)
    assert first.did == [("prepare", 2), ("unload", 2)]
    assert second.did == [("prepare", 2)]


async def test_a_version_that_several_workers_refuse_counts_once(workers: Workers) -> None:
    for worker in workers.each:
        worker.problems |= {2: RefusedVersionError("hash", "damaged"), 3: StartupError("too little memory")}
    for version, problem in ((2, RefusedVersionError), (3, StartupError)):
        with pytest.raises(problem):
            await workers.all.prepare(NAME, version)
    assert workers.rejected == ["hash"]


async def test_a_worker_that_has_ended_stops_nothing(workers: Workers) -> None:
    first, second = workers.each
    second.ended = True
    await workers.all.prepare(NAME, 2)
    await workers.all.switch(NAME, 2)
    assert first.did == [("prepare", 2), ("switch", 2)]


async def test_a_worker_that_does_not_answer_does_not_delay_the_others_for_long(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(all_workers, "_ANSWER_S", 0.01)
    await workers.all.prepare(NAME, 2)
    first, second = workers.each
    second.stopped = asyncio.Event()
    await workers.all.switch(NAME, 2)
    assert first.did[-1] == ("switch", 2)
    assert caplog.messages == ["worker 2 does not answer; it makes the change when it does"]
    second.stopped.set()
    await turn_loop()
    assert second.did[-1] == ("switch", 2)


async def test_every_worker_has_the_canary_and_the_shadow_and_a_replacement_joins_with_them(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    await workers.all.set_canary(NAME, 2, share=0.1)
    await workers.all.set_canary(NAME, 2, share=0.2)
    await workers.all.set_shadow(NAME, 2, share=0.5)
    changes = [("prepare", 2), ("canary 0.1", 2), ("canary 0.2", 2), ("shadow 0.5", 2)]
    assert [worker.did for worker in workers.each] == [changes] * 2
    third = Worker(3)
    await workers.join(third)
    assert third.did == [("prepare", 2), ("canary 0.2", 2), ("shadow 0.5", 2)]
    await workers.all.set_canary(NAME, 2, share=0)
    assert [worker.did[-1] for worker in (*workers.each, third)] == [("canary 0", 2)] * 3


async def test_a_candidate_that_a_replacement_cannot_load_is_tried_no_more(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    await workers.all.set_canary(NAME, 2, share=0.1)
    third = Worker(3)
    third.problems[2] = RefusedVersionError("hash", "damaged")
    await workers.join(third)
    assert workers.lost == [(NAME, 2)]
    assert [worker.did[-2:] for worker in workers.each] == [[("canary 0", 2), ("unload", 2)]] * 2


async def test_a_replacement_joins_with_everything_that_is_loaded(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    await workers.all.prepare(NAME, 3)
    await workers.all.switch(NAME, 3)
    await workers.all.unload(NAME, 1)
    third = Worker(3)
    await workers.join(third, version=1)  # it was started before the switch
    assert third.did == [("prepare", 2), ("prepare", 3), ("switch", 3), ("unload", 1)]
    await workers.all.switch(NAME, 2)
    assert third.did[-1] == ("switch", 2)


async def test_a_change_while_a_replacement_loads_reaches_it(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    third = Worker(3)
    third.held[2] = asyncio.Event()
    joining = asyncio.create_task(workers.join(third))
    await asyncio.sleep(0)
    await workers.all.switch(NAME, 2)
    third.held[2].set()
    await joining
    assert third.did == [("prepare", 2), ("switch", 2)]


async def test_a_worker_that_joins_while_a_version_is_loaded_loads_it_too(workers: Workers) -> None:
    first, third = workers.each[0], Worker(3)
    first.held[2] = asyncio.Event()
    preparing = asyncio.create_task(workers.all.prepare(NAME, 2))
    await asyncio.sleep(0)
    await workers.join(third)
    first.held[2].set()
    await preparing
    assert third.did == [("prepare", 2)]


async def test_a_former_version_that_a_replacement_cannot_load_is_given_up_everywhere(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    await workers.all.switch(NAME, 2)
    third = Worker(3)
    third.problems[1] = RefusedVersionError("missing", "it was deleted")
    await workers.join(third, version=2)
    assert (workers.lost, workers.rejected) == ([(NAME, 1)], ["missing"])
    assert [worker.did[-1] for worker in workers.each] == [("unload", 1)] * 2


async def test_a_replacement_without_memory_for_a_former_version_serves_the_live_one(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    await workers.all.prepare(NAME, 2)
    await workers.all.switch(NAME, 2)
    third = Worker(3)
    third.problems[1] = StartupError("too little memory")
    await workers.join(third, version=2)
    assert workers.lost == []
    assert caplog.messages == [
        "worker 3 serves without version 1 of maze, and refuses requests that name it: too little memory"
    ]
    with pytest.raises(StartupError, match="too little memory"):
        await workers.all.switch(NAME, 1)
    assert workers.all.live == {NAME: 2}
    for worker in workers.each:
        assert worker.did == [("prepare", 2), ("switch", 2)]
    del third.problems[1]
    await workers.all.switch(NAME, 1)
    assert third.did == [("prepare", 1)] * 3 + [("switch", 1)]
    await workers.all.switch(NAME, 2)
    assert third.did[-1] == ("switch", 2)


@pytest.mark.parametrize("trial", ["set_canary", "set_shadow"])
async def test_a_replacement_without_memory_for_a_version_that_is_tried_does_not_join(
    workers: Workers, trial: str
) -> None:
    await workers.all.prepare(NAME, 2)
    await getattr(workers.all, trial)(NAME, 2, share=0.1)
    third = Worker(3)
    third.problems[2] = StartupError("too little memory")
    with pytest.raises(StartupError, match="too little memory"):
        await workers.join(third)
    await getattr(workers.all, trial)(NAME, 2, share=0)
    await workers.join(third)
    await workers.all.unload(NAME, 2)
    assert third.did[-1] == ("unload", 2)


async def test_a_replacement_without_the_live_version_does_not_join(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    await workers.all.switch(NAME, 2)
    third = Worker(3)
    third.problems[2] = RefusedVersionError("missing", "it was deleted")
    with pytest.raises(RefusedVersionError, match="it was deleted"):
        await workers.join(third)
    await workers.all.switch(NAME, 1)
    assert third.did == [("prepare", 2)]


async def test_a_switch_that_one_worker_cannot_make_is_made_by_none(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    first, second = workers.each
    second.cannot.add("switch")
    with pytest.raises(StartupError, match="the worker failed"):
        await workers.all.switch(NAME, 2)
    assert first.did == [("prepare", 2), ("switch", 2), ("switch", 1)]
    assert workers.all.live == {NAME: 1}
    third = Worker(3)
    await workers.join(third)
    assert third.did == [("prepare", 2)], "a replacement joins with version 1"


async def test_a_canary_that_one_worker_cannot_begin_is_begun_by_none(workers: Workers) -> None:
    await workers.all.prepare(NAME, 2)
    first, second = workers.each
    second.cannot.add("canary 0.5")
    with pytest.raises(StartupError, match="the worker failed"):
        await workers.all.set_canary(NAME, 2, share=0.5)
    assert first.did == [("prepare", 2), ("canary 0.5", 2), ("canary 0", 2)]


async def test_a_worker_that_does_not_respond_makes_loading_fail_and_does_not_keep_the_version(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_workers, "_CHECK_S", 0.01)
    first, second = workers.each
    second.stopped, second.problem = asyncio.Event(), "worker 2 has not responded for 6 s"
    with pytest.raises(StartupError, match="cannot load version 2 of maze: worker 2 does not respond; end it with SIG"):
        await workers.all.prepare(NAME, 2)
    assert first.did == [("prepare", 2), ("unload", 2)]
    second.stopped.set()
    await turn_loop()
    assert second.did == [("prepare", 2), ("unload", 2)]


async def test_a_version_that_is_loaded_late_stays_if_it_is_wanted_by_then(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_workers, "_CHECK_S", 0.01)
    second = workers.each[1]
    second.stopped, second.problem = asyncio.Event(), "worker 2 has not responded for 6 s"
    with pytest.raises(StartupError, match="worker 2 does not respond"):
        await workers.all.prepare(NAME, 2)
    second.problem = ""
    again = asyncio.create_task(workers.all.prepare(NAME, 2))
    await turn_loop()
    second.stopped.set()
    await again
    await turn_loop()
    assert second.did == [("prepare", 2)] * 2


async def test_loading_has_a_deadline_also_in_a_worker_that_responds(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_workers, "LOAD_S", 0.01)
    workers.each[1].held[2] = asyncio.Event()
    with pytest.raises(StartupError, match=r"worker 2 has not loaded it within 0.01 s; end it with SIGKILL"):
        await workers.all.prepare(NAME, 2)


async def test_unloading_does_not_wait_for_a_worker_that_does_not_respond(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(all_workers, "_CHECK_S", 0.01)
    await workers.all.prepare(NAME, 2)
    first, second = workers.each
    second.stopped, second.problem = asyncio.Event(), "worker 2 has not responded for 6 s"
    await workers.all.unload(NAME, 2)
    assert first.did == [("prepare", 2), ("unload", 2)]
    assert caplog.messages == ["worker 2 does not answer; it makes the change when it does"]
    second.stopped.set()
    await turn_loop()
    assert second.did == [("prepare", 2), ("unload", 2)]


async def test_a_new_worker_that_does_not_answer_does_not_join(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_workers, "LOAD_S", 0.01)
    await workers.all.prepare(NAME, 2)
    third = Worker(3)
    third.stopped = asyncio.Event()
    with pytest.raises(StartupError, match=r"worker 3 has not loaded what the others have: no answer within 0.01 s"):
        await workers.join(third)
    await workers.all.switch(NAME, 2)
    assert third.did == []
