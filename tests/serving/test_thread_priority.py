"""Which threads give way."""

import os
import sys
import threading

import pytest

from serving.engine.thread_priority import lower_priority, start_at_lower_priority


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
