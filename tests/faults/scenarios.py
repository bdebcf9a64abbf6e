"""What servers must survive, as functions of how often: the slow tests run them short, `make soak` long.

Each starts real server processes, checks what must hold, and returns what it measured.
"""

import asyncio
import dataclasses
import json
import signal
import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np

from kilolayer import DeadlineExceeded, PolicyClient, Unavailable
from kilolayer.v1 import policy_pb2 as pb
from policy.compilation_cache import FOLDER_VARIABLE
from tests.clients.fakes import free_port
from tests.faults import hostile_messages, other_clients, resources, stream_calls
from tests.faults.resources import Resources
from tests.faults.retrying_caller import Outcome, RetryingCallers
from tests.faults.supervised import Supervised, serve_command

KNOWN = pb.ActRequest(state=[0.5, -1, 2, 0], goal=[1, 1])
GROWTH_BYTES = 20_000_000
"""Most growth of a server's memory, after it has warmed up."""
_RELEASE_S = 240.0  # for descriptors of ended connections to be closed, on a busy machine
_KILL_S = 60.0
_BATCH_SIZES = 9  # 1, 2, 4, ... 256 rows
_GROUP = 100  # calls on one connection


@dataclasses.dataclass(frozen=True)
class Kill:
    """A kill of a server under a supervisor."""

    taken_s: float  # from the kill to the next answer
    cpu_s: float  # processor time of the new server until then; on an idle machine it takes about as long


@dataclasses.dataclass(frozen=True)
class Growth:
    """A server before and after its calls."""

    before: Resources
    after: Resources

    @property
    def megabytes(self) -> float:
        """Growth of the memory."""
        return (self.after.resident_bytes - self.before.resident_bytes) / 1e6


def restart_in_turn(policies: Path, folder: Path, *, restarts: int) -> Outcome:
    """Stop two servers in turn with SIGTERM while callers call; a supervisor starts them again.

    No accepted call may be lost, every answer has the same bytes, and every server ends with exit code 0.
    """
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    # One compiled size, so that every answer has the same bits.
    commands = [serve_command(policies, listen=address, max_batch_rows=1) for address in addresses]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(Supervised(command, log=folder / f"log-{number}", backoff_s=0))
            for number, command in enumerate(commands)
        ]
        for server in servers:
            server.wait_for("ready: grpc=")
        outcome = asyncio.run(_call_while_restarting(servers, addresses, restarts))
        codes = [each.code for server in servers for each in server.exits]
    assert codes == [0] * restarts
    logged = "".join(server.logged() for server in servers)
    assert logged.count("stopped; every accepted call was answered") == restarts + len(servers)
    assert "Traceback" not in logged
    assert not outcome.lost
    assert outcome.wrong == 0
    return outcome


async def _call_while_restarting(servers: list[Supervised], addresses: list[str], restarts: int) -> Outcome:
    async with RetryingCallers(addresses, request=KNOWN) as callers:
        await callers.until_answered(100)
        for restart in range(restarts):
            server = servers[restart % len(servers)]
            known = len(server.logged())
            server.send(signal.SIGTERM)
            await asyncio.to_thread(server.wait_for, "ready: grpc=", after=known)
            await callers.until_answered(callers.outcome.answered + 100)
        return await callers.stop()


def kill_and_wait(policies: Path, folder: Path, *, kills: int) -> list[Kill]:
    """Kill a supervised server with SIGKILL, several times. The caller tries again every 10 ms.

    The server compiles all default batch sizes at its first start, and after a kill none.
    """
    command = serve_command(policies, listen=f"127.0.0.1:{free_port()}", max_batch_rows=256)
    programs = folder / "programs"
    variables = {FOLDER_VARIABLE: str(programs), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with Supervised([*_with(variables), *command], log=folder / "log") as server:
        (address,) = server.wait_for(r"ready: grpc=(\S+)")
        compiled = _programs(programs)
        assert len(compiled) >= _BATCH_SIZES
        with PolicyClient(address, timeout_s=1.0) as client:
            client.wait_until_ready(_KILL_S)
            measured = [_kill(server, client) for _ in range(kills)]
        assert _programs(programs) == compiled
        codes = [each.code for each in server.exits]
    assert codes == [-signal.SIGKILL] * kills
    return measured


def _with(variables: dict[str, str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in variables.items())]


def _programs(folder: Path) -> set[str]:
    """Compiled programs by the names that JAX gives them; beside each it writes when it was last read."""
    return {file.name for file in folder.glob("*-cache")}


def _kill(server: Supervised, client: PolicyClient) -> Kill:
    state, goal = list(KNOWN.state), list(KNOWN.goal)
    expected = client.act(state, goal, timeout_s=_KILL_S).action.tobytes()
    server.send(signal.SIGKILL)
    killed_s = time.monotonic()
    while time.monotonic() - killed_s < _KILL_S:
        try:
            answer = client.act(state, goal)
        except (Unavailable, DeadlineExceeded):
            time.sleep(0.01)
            continue
        assert answer.action.tobytes() == expected
        return Kill(time.monotonic() - killed_s, resources.read(server.pid).cpu_s)
    raise AssertionError(f"no answer within {_KILL_S:g} s of the kill:\n{server.logged()}")


def send_hostile_messages(
    policies: Path, folder: Path, *, count: int, warm_up: int
) -> tuple[Counter[grpc.StatusCode], Growth]:
    """Send hostile messages, and connections that speak no HTTP/2; return the statuses, and how the server grew.

    The server still gives the same known answer, closes its descriptors, and logs no line for a hostile call.
    """
    with _running(policies, folder, max_batch_rows=2) as (server, address):
        expected = _known_answer(address)
        with grpc.insecure_channel(address) as channel:
            hostile_messages.send_many(channel, warm_up, seed=1)
        hostile_messages.speak_no_http(address, count=20)
        before = _settled(server, limit=None)
        with grpc.insecure_channel(address) as channel:
            statuses = hostile_messages.send_many(channel, count, seed=2)
        hostile_messages.speak_no_http(address, count=20)
        after = _settled(server, limit=before)
        assert _known_answer(address) == expected
    assert set(statuses) <= hostile_messages.EXPECTED, statuses
    assert after.log_bytes == before.log_bytes, server.logged()
    assert after.threads <= before.threads + 16  # gRPC's and the allocator's own pools grow while cores are busy
    growth = Growth(before, after)
    assert growth.megabytes < GROWTH_BYTES / 1e6, growth
    return statuses, growth


def call_many_times(policies: Path, folder: Path, *, count: int, warm_up: int) -> tuple[float, Growth]:
    """Call over streams; return the calls per second, and how the server grew. Every answer is checked."""
    # On a busy machine, calls may wait for more than the default of 1 s.
    with _running(policies, folder, max_batch_rows=64, max_queue_age_s=60.0) as (server, address):
        expected = np.array(_known_answer(address), np.float32)
        stream_calls.call(address, KNOWN, count=warm_up, expected=expected)
        before = _settled(server, limit=None)
        began_s = time.monotonic()
        stream_calls.call(address, KNOWN, count=count, expected=expected)
        taken_s = time.monotonic() - began_s
        after = _settled(server, limit=before)
    assert after.log_bytes == before.log_bytes, server.logged()
    growth = Growth(before, after)
    assert growth.megabytes < GROWTH_BYTES / 1e6, growth
    return count / taken_s, growth


def open_and_cancel(policies: Path, folder: Path, *, count: int) -> tuple[Counter[grpc.StatusCode], Growth]:
    """Open calls in groups on new connections, cancel half of them immediately; return the statuses of the others.

    The others are answered or rejected by name, and the server returns what the calls held.
    """
    with _running(policies, folder, max_batch_rows=2) as (server, address):
        expected = _known_answer(address)
        _open_and_cancel(address, _GROUP)
        before = _settled(server, limit=None)
        statuses: Counter[grpc.StatusCode] = Counter()
        for _ in range(0, count, _GROUP):
            statuses += _open_and_cancel(address, _GROUP)
        after = _settled(server, limit=before)
        assert _known_answer(address) == expected
    assert set(statuses) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}, statuses
    growth = Growth(before, after)
    assert growth.megabytes < GROWTH_BYTES / 1e6, growth
    return statuses, growth


def call_beside_a_flood(policies: Path, folder: Path, *, seconds: float, timeout_s: float = 1.0) -> other_clients.Flood:
    """Call while one client floods the server with rows and never reads. Most calls are answered in time."""
    with _running(policies, folder, max_batch_rows=64) as (server, address):
        flood = other_clients.measure(address, server.pid, seconds=seconds, timeout_s=timeout_s)
    assert flood.late < len(flood.during) / 2, f"{flood.late} of {len(flood.during)}"
    assert flood.growth_mb < 600, flood.growth_mb
    return flood


def leave_calls_incomplete(policies: Path, folder: Path, *, calls: int, size: int, most_mb: float = 250.0) -> float:
    """Leave the requests of calls incomplete; return by how many MB the server's memory grew, `most_mb` at most.

    Another client is answered meanwhile, and the server returns what the calls held.
    """
    with _running(policies, folder, max_batch_rows=2, max_held_mb=64) as (server, address):
        expected = _known_answer(address)
        before = _settled(server, limit=None)
        growth_mb, answered = other_clients.leave_incomplete(address, server.pid, calls=calls, size=size)
        _settled(server, limit=before)
        assert _known_answer(address) == expected
    assert answered == 20
    assert growth_mb < most_mb, growth_mb  # half of the limit, and what arrives until the server looks, in 0.1 s
    return growth_mb


def _open_and_cancel(address: str, count: int) -> Counter[grpc.StatusCode]:
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    with grpc.insecure_channel(address, options=options) as channel:
        act = channel.unary_unary("/kilolayer.v1.Policy/Act")
        calls = [act.future(KNOWN.SerializeToString(), timeout=240) for _ in range(count)]
        for call in calls[::2]:
            call.cancel()
        return Counter(call.code() for call in calls[1::2])


@contextmanager
def _running(policies: Path, folder: Path, **settings: object) -> Generator[tuple[Supervised, str]]:
    """A server that must stay the same process, with a log of JSON lines, and its address; `settings` are flags."""
    command = serve_command(policies, log_format="json", **settings)
    with Supervised(command, log=folder / "log") as server:
        (address,) = server.wait_for(r'"grpc": "(\S+?)"')
        yield server, address
        assert server.exits == []
    assert [each.code for each in server.exits] == [0]
    assert {json.loads(line)["level"] for line in server.logged().splitlines()} == {"INFO"}


def _known_answer(address: str) -> list[float]:
    with PolicyClient(address, timeout_s=120) as client:
        return client.act(list(KNOWN.state), list(KNOWN.goal)).action.tolist()


def _settled(server: Supervised, *, limit: Resources | None) -> Resources:
    """Read the server's resources, once no connection is left, as its descriptors show."""
    ends_s = time.monotonic() + _RELEASE_S
    while True:
        reading = resources.read(server.pid, log=server.log)
        connections = _open_connections(server.pid)
        if not connections and (limit is None or reading.descriptors <= limit.descriptors + 2):
            return reading
        assert time.monotonic() < ends_s, f"{connections} connections and {reading} after {_RELEASE_S:g} s"
        time.sleep(0.05)


def _open_connections(pid: int) -> int:
    """Return how many TCP connections, without listening sockets, the process has open."""
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]
    listening = "0A"
    return sum(f"socket:[{row[9]}]" in inodes and row[3] != listening for row in rows)
