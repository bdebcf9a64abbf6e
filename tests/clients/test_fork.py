"""A client that was used before its process forks. Each test forks in a program of its own."""

from __future__ import annotations  # for Python 3.9

import os
import re
import subprocess
import sys
import threading

import grpc
import pytest

from kilolayer import _forks
from kilolayer._forks import Forks
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy

_TIMEOUT_S = 120
_IS_ROBUST = tuple(map(int, grpc.__version__.split(".")[:2])) >= _forks.FIRST_ROBUST_VERSION
_SETUP = """
import asyncio, os, sys
import kilolayer
from kilolayer import _forks

def forked(use):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            print("child:", use())
        except Exception as error:
            print("child:", type(error).__name__, error)
        sys.exit(0)  # and not os._exit: collecting what the child has inherited must not harm the parent
    assert os.waitpid(child, 0)[1] == 0

def act(caller, x):
    return caller.act([x, 0, 0], [0, 0]).action.tolist()

client = kilolayer.PolicyClient(sys.argv[1], timeout_s=30)
"""


def run(program: str, address: str, *, fork_support: str | None = None) -> tuple[list[str], list[str]]:
    """Return the lines that `program` prints, and those of the client's log."""
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_ENABLE_FORK_SUPPORT"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    if fork_support is not None:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = fork_support
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SETUP + program, address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), [line for line in done.stderr.splitlines() if line.startswith("a client of")]


def test_a_client_opens_a_connection_of_its_own_in_the_child_and_says_so_once(address: str) -> None:
    program = """
unused = kilolayer.PolicyClient(sys.argv[1], timeout_s=30)
print("parent:", act(client, 0.5), _forks.is_any_in_grpc())
for _ in range(2):
    forked(lambda: [act(client, 0.125), act(client, 0.25)])
    print("parent:", act(client, 0.5))
forked(lambda: act(unused, 0.25))
forked(client.close)
print("parent:", act(client, 0.5))
def drop():
    global client
    del client
forked(drop)
print("parent:", act(client, 0.5))
client.close()
"""
    lines, log = run(program, address)
    parent, child = "parent: [1.0, 0.0]", "child: [[0.25, 0.0], [0.5, 0.0]]"
    assert lines[:5] == [f"{parent} False", child, parent, child, parent]
    assert lines[5:] == ["child: [0.5, 0.0]", "child: None", parent, "child: None", parent]
    said = rf"a client of {address} was used before this process was forked; it opens a new connection here \(.*\)"
    assert len(log) == 2  # one in each child that used it
    assert all(re.fullmatch(said, line) for line in log)


def test_an_open_stream_is_opened_anew_in_the_child_and_goes_on_in_the_parent(address: str, fake: FakePolicy) -> None:
    release = threading.Event()

    def hold_one_until_the_next(reply: policy_pb2.ActResponse) -> None:
        if reply.action[0] == -0.5:
            release.wait(_TIMEOUT_S)
        else:
            release.set()

    program = """
stream = client.stream()
print("parent:", act(stream, 0.5), _forks.is_any_in_grpc())
pending = stream.send([-0.25, 0, 0], [0, 0])
forked(pending.receive)
forked(lambda: [act(stream, 0.125), act(stream, 0.25), act(client, 0.375)])
print("parent:", act(stream, 0.5), pending.receive().action.tolist())
stream.close()
client.close()
"""
    fake.on_act = hold_one_until_the_next
    lines, log = run(program, address, fork_support=None if _IS_ROBUST else "1")
    refused = (
        rf"child: Unavailable ActStream at {address} failed \(UNAVAILABLE, timeout 30 s\): this process was forked"
    )
    assert lines[0] == "parent: [1.0, 0.0] True"
    assert re.match(refused + " after the request was sent, and the reply goes to its parent", lines[1])
    assert lines[2:] == ["child: [[0.25, 0.0], [0.5, 0.0], [0.75, 0.0]]", "parent: [1.0, 0.0] [-0.5, 0.0]"]
    assert len(log) == 1
    assert fake.streams == 2


def test_without_support_of_forks_a_child_is_told_what_to_do(address: str) -> None:
    program = """
act(client, 0.5)
forked(lambda: act(client, 0.25))
forked(lambda: act(client.stream(), 0.25))
forked(lambda: act(kilolayer.PolicyClient(sys.argv[1]), 0.25))
forked(lambda: asyncio.run(kilolayer.AsyncPolicyClient(sys.argv[1]).describe()))
print("parent:", act(client, 0.5))
client.close()
"""
    lines, _ = run(program, address, fork_support="0")
    refused = (
        "child: RuntimeError gRPC cannot be used in this process: GRPC_ENABLE_FORK_SUPPORT is 0, and gRPC was in use"
        " when this process was forked; make the client after the fork, or start processes with multiprocessing's"
        " method spawn"
    )
    assert lines == [*4 * [refused], "parent: [1.0, 0.0]"]


@pytest.mark.skipif(not _IS_ROBUST, reason="this grpcio does not work after a fork if grpc.aio was used before it")
def test_an_async_client_is_refused_in_the_child(address: str) -> None:
    program = """
async def main():
    async with kilolayer.AsyncPolicyClient(sys.argv[1], timeout_s=30) as inherited:
        await inherited.describe()
        def use(client):
            loop = asyncio.new_event_loop()
            asyncio._set_running_loop(None)  # that of the parent
            return loop.run_until_complete(client.describe())
        forked(lambda: use(inherited))
        forked(lambda: use(kilolayer.AsyncPolicyClient(sys.argv[1], timeout_s=30)))
        print("parent:", (await inherited.describe()).name)
asyncio.run(main())
forked(lambda: asyncio.run(kilolayer.AsyncPolicyClient(sys.argv[1], timeout_s=30).describe()).name)
"""
    lines, _ = run(program, address)
    advice = "make {} after the fork, or start processes with multiprocessing's method spawn"
    assert lines == [
        f"child: RuntimeError this AsyncPolicyClient of {address} was used before this process was forked; "
        + advice.format("a client"),
        "child: RuntimeError gRPC cannot be used in this process: a channel of an AsyncPolicyClient existed when this"
        " process was forked; " + advice.format("the client"),
        "parent: maze",
        "child: maze",  # no client of asyncio was open
    ]


@pytest.mark.parametrize(
    ("version", "setting", "is_usable"),
    [
        ("1.80.1", None, False),
        ("1.80.1", "1", True),
        ("1.81.0", None, True),
        ("1.81.0", "False", False),
        ("1.81.0", "n", False),
    ],
)
def test_a_fork_while_a_thread_is_in_grpc(
    monkeypatch: pytest.MonkeyPatch, version: str, setting: str | None, is_usable: bool
) -> None:
    monkeypatch.setattr(_forks, "is_any_in_grpc", lambda: True)
    forks = Forks(setting=setting, version=version)
    for is_used in (False, True):
        if is_used:
            forks.use()
        forks.before()
        forks.after_in_child()
        if is_usable or not is_used:
            forks.require_usable()
        else:
            with pytest.raises(RuntimeError, match="make the client after the fork"):
                forks.require_usable()
    assert forks.generation == 2


def test_old_versions_of_grpc_are_not_used_after_a_fork_if_asyncio_was() -> None:
    for version in ("1.80.1", "1.81.0"):
        forks = Forks(setting="1", version=version)
        forks.use(FakePolicy())  # any object; it is collected immediately
        forks.before()
        forks.after_in_child()
        if version == "1.80.1":
            with pytest.raises(RuntimeError, match="an AsyncPolicyClient was used before this process was forked, and"):
                forks.require_usable()
        else:
            forks.require_usable(with_asyncio=True)
