"""Which threads give way."""

import asyncio
import os
import sys
import threading

import pytest

from serving.engine.thread_priority import lower_priority, run_in_background, short_turns, start_at_lower_priority


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
def test_threads_that_are_started_give_way_and_their_starter_does_not() -> None:
    usual = niceness()
    seen: list[int] = []

    def start() -> None:
        child = threading.Thread(target=lambda: seen.append(niceness()))
        child.start()
        child.join()

    start_at_lower_priority(start)
    assert seen == [min(19, usual + 2)]
    assert niceness() == usual


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
def test_lowering_the_priority_is_idempotent() -> None:
    seen: list[int] = []

    def run() -> None:
        for _ in range(6):
            lower_priority()
        seen.append(niceness())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [min(19, os.getpriority(os.PRIO_PROCESS, os.getpid()) + 2)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
def test_a_thread_that_is_nicer_already_stays_so() -> None:
    seen: list[int] = []

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        lower_priority()
        seen.append(niceness())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [19]


async def test_work_in_the_background_has_the_lowest_priority_and_its_result_or_error_returns() -> None:
    def fail() -> None:
        raise ValueError("no")

    assert await run_in_background(niceness) == (19 if sys.platform == "linux" else niceness())
    assert await run_in_background(max, 1, 3) == 3
    with pytest.raises(ValueError, match="no"):
        await run_in_background(fail)


async def test_work_in_the_background_that_nobody_waits_for_any_more_ends_without_an_error() -> None:
    """An error of the thread would fail this test."""
    may_end, ended = threading.Event(), threading.Event()

    def work() -> None:
        assert may_end.wait(60)
        ended.set()

    waiting = asyncio.create_task(run_in_background(work))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    may_end.set()
    assert await asyncio.to_thread(ended.wait, 60)
    for thread in threading.enumerate():
        if thread.name == "background":
            await asyncio.to_thread(thread.join)


def test_turns_are_short_in_the_context_only() -> None:
    usual_s = sys.getswitchinterval()
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert sys.getswitchinterval() == usual_s
