"""Clients and streams that are dropped without `close`: no threads are left, and a ResourceWarning says so."""

from __future__ import annotations  # for Python 3.9

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Generator
from typing import Any

import kilolayer
from kilolayer._forks import forks
from kilolayer._reaper import THREAD
from tests.clients.fakes import FakePolicy

_STATE, _GOAL = [0.5, 0, 0], [0, 0]


def threads() -> set[threading.Thread]:
    """Return the threads of this process without those of the server and the one that closes what is dropped."""
    others = ("ThreadPoolExecutor", THREAD)
    return {thread for thread in threading.enumerate() if not thread.name.startswith(others)}


def require_ended(started: set[threading.Thread]) -> None:
    for thread in started:
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def recorded() -> Generator[list[str], None, None]:
    """Collect what was dropped within the `with` statement; list the ResourceWarnings of the client."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
        gc.collect()
        texts = [str(each.message) for each in caught if issubclass(each.category, ResourceWarning)]
        messages += sorted(text.partition(" of ")[0] for text in texts if " was not closed; " in text)


def test_dropped_clients_with_streams_leave_no_threads(address: str) -> None:
    before = threads()
    streams = [kilolayer.PolicyClient(address, timeout_s=30).stream() for _ in range(7)]  # the server has 8 threads
    for stream in streams:
        stream.act(_STATE, _GOAL)
    started = threads() - before
    assert len(started) >= 14  # a reader and a writer for each stream
    stream = None
    with recorded() as messages:
        streams.clear()
    assert messages == [*7 * ["a PolicyClient"], *7 * ["a PolicyStream"]]
    require_ended(started)


def test_a_dropped_client_in_a_cycle_is_closed_when_that_is_collected(address: str) -> None:
    before = threads()
    robot: dict[str, Any] = {"client": kilolayer.PolicyClient(address, timeout_s=30)}
    robot["stream"], robot["self"] = robot["client"].stream(), robot
    robot["stream"].act(_STATE, _GOAL)
    started = threads() - before
    with recorded() as messages:
        del robot
    assert messages[0] == "a PolicyClient"  # the collector may take it or its stream first
    require_ended(started)


def test_a_client_is_collected_in_a_thread_while_another_thread_holds_the_lock(address: str) -> None:
    """The collector may run in a thread that is just starting, for which the opening of a connection waits."""
    robot: dict[str, Any] = {"client": kilolayer.PolicyClient(address, timeout_s=30)}
    robot["stream"], robot["self"] = robot["client"].stream(), robot
    robot["stream"].act(_STATE, _GOAL)
    with recorded() as messages:
        del robot
        with forks.lock:
            collecting = threading.Thread(target=gc.collect)
            collecting.start()
            collecting.join(60)
            assert not collecting.is_alive()
    assert messages == ["a PolicyClient", "a PolicyStream"]


def test_a_stream_keeps_its_client_and_a_pending_action_its_stream(address: str) -> None:
    with recorded() as messages:
        stream = kilolayer.PolicyClient(address, timeout_s=30).stream()
        gc.collect()
        assert stream.act(_STATE, _GOAL).action.tolist() == [1, 0]
        pending = stream.send(_STATE, _GOAL)
        del stream
        gc.collect()
        assert pending.receive().action.tolist() == [1, 0]
        del pending
    assert messages == ["a PolicyClient", "a PolicyStream"]


def test_a_dropped_stream_leaves_its_client_open(address: str) -> None:
    with kilolayer.PolicyClient(address, timeout_s=30) as client:
        with recorded() as messages:
            assert client.stream().act(_STATE, _GOAL).action.tolist() == [1, 0]
        assert messages == ["a PolicyStream"]
        assert client.act(_STATE, _GOAL).action.tolist() == [1, 0]


def test_closed_and_unused_clients_are_dropped_in_silence(address: str) -> None:
    with recorded() as messages:
        with kilolayer.PolicyClient(address, timeout_s=30) as client, client.stream() as stream:
            stream.act(_STATE, _GOAL)
        client = kilolayer.PolicyClient(address, timeout_s=30)
        stream = client.stream()
        stream.act(_STATE, _GOAL)
        client.close()  # and with it, its stream
        del client, stream
        unused = kilolayer.PolicyClient(address)
        unused_stream = unused.stream()
        del unused, unused_stream
        kilolayer.AsyncPolicyClient(address)
    assert messages == []


def test_a_dropped_async_client_warns(address: str) -> None:
    async def drop() -> None:
        client = kilolayer.AsyncPolicyClient(address, timeout_s=30)
        await client.describe()

    async def close() -> None:
        async with kilolayer.AsyncPolicyClient(address, timeout_s=30) as client:
            await client.describe()

    with recorded() as messages:
        asyncio.run(close())
    assert messages == []
    with recorded() as messages:
        asyncio.run(drop())
    assert messages == ["an AsyncPolicyClient"]


def test_a_program_that_closes_nothing_ends_and_says_so(address: str, fake: FakePolicy) -> None:
    program = """
import sys
import kilolayer

with kilolayer.PolicyClient(sys.argv[1], timeout_s=30) as closed:
    closed.act([0, 0, 0], [0, 0])
client = kilolayer.PolicyClient(sys.argv[1], timeout_s=30)
stream = client.stream()
pending = stream.send([0, 0, 0], [0, 0])
print(stream.act([0.5, 0, 0], [0, 0]).action.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", program, address],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[1.0, 0.0]\n"), done.stderr
    lines = [line for line in done.stderr.splitlines() if "ResourceWarning" in line]
    assert len(lines) == 2
    assert "a PolicyStream of" in lines[0]
    assert "a PolicyClient of" in lines[1]
