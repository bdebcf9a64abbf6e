"""What a call costs in each way that the Python client offers: single, on a stream, with asyncio; alone and many.

    python benchmarks/client_calls.py --json client_calls.json

One server, `serving/run.py` with a small random policy, is a process of its own; the client is this process. The ways
take turns in short rounds, and the median of the rounds counts. Processor time is that of all threads of a process.
"""

import asyncio
import collections
import dataclasses
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import _record
import numpy as np
import tyro
from _serve_policies import publish
from _serve_processes import ServerSettings, Target, running, server_command

from kilolayer import AsyncPolicyClient, PendingAction, PolicyClient, PolicyStream

SIZES = {"state_dim": 29, "goal_dim": 2, "action_dim": 8}  # an ant's
STATE, GOAL = np.zeros(SIZES["state_dim"], np.float32), np.zeros(SIZES["goal_dim"], np.float32)
LIMIT_S = 5.0


@dataclasses.dataclass(frozen=True)
class Options:
    """The client's ways to call, beside each other."""

    json: Path | None = None
    """File for the record."""
    depth: int = 4
    """Depth of the policy."""
    width: int = 64
    """Width of the policy."""
    at_once: int = 16
    """Calls under way where there are many."""
    rounds: int = 7
    """Rounds in which the ways take turns; the median counts."""
    seconds: float = 1.5
    """Of each way in a round."""
    quick: bool = False
    """Short rounds: whether it works, not how fast."""


class Round(NamedTuple):
    """One way's share of a round."""

    latencies_s: list[float]
    wall_s: float
    client_cpu_s: float
    server_cpu_s: float


Way = Callable[[float], list[float]]  # calls for so many seconds, and gives the latency of each call


def main() -> None:
    """Measure and publish."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, width=16, rounds=2, seconds=0.2)
    about = _record.machine()
    with tempfile.TemporaryDirectory(prefix="kilolayer-client-") as folder:
        policy = publish(Path(folder), options.depth, width=options.width, **SIZES)
        command = server_command(policy.folder, ServerSettings(max_call_rows=32, max_batch_rows=32))
        with running("server", command, folder=Path(folder)) as server:
            rows = measure(options, server)
    notes = (
        f"depth {options.depth}, width {options.width}, {SIZES['state_dim']} + {SIZES['goal_dim']} values in, "
        f"{SIZES['action_dim']} out; medians of {options.rounds} rounds of {options.seconds:g} s"
    )
    _record.publish("one client process", rows, about=about, json_file=options.json, notes=notes)


def measure(options: Options, server: Target) -> list[dict[str, Any]]:
    """The rows of the table, one a way."""
    count = options.at_once
    with PolicyClient(server.address, timeout_s=LIMIT_S) as client, client.stream() as stream:
        ways: dict[str, Way] = {
            "act": lambda seconds: in_turn(client.act, seconds),
            "stream.act": lambda seconds: in_turn(stream.act, seconds),
            "await act": lambda seconds: asyncio.run(in_tasks(server.address, seconds, tasks=1)),
            f"act, {count} threads": lambda seconds: in_threads(client.act, seconds, threads=count),
            f"stream.act, {count} threads": lambda seconds: in_threads(stream.act, seconds, threads=count),
            f"stream.send, {count} under way": lambda seconds: pipelined(stream, seconds, under_way=count),
            f"await act, {count} tasks": lambda seconds: asyncio.run(in_tasks(server.address, seconds, tasks=count)),
        }
        for way in ways.values():
            way(options.seconds / 5)
        rounds = [
            {name: one_round(way, server, options.seconds) for name, way in ways.items()} for _ in range(options.rounds)
        ]
    return [row(name, [each[name] for each in rounds]) for name in ways]


def one_round(way: Way, server: Target, seconds: float) -> Round:
    """Let one way call for `seconds`."""
    server_cpu_s, client_cpu_s, began_s = server.cpu_s, time.process_time(), time.perf_counter()
    latencies_s = way(seconds)
    return Round(
        latencies_s,
        time.perf_counter() - began_s,
        time.process_time() - client_cpu_s,
        server.cpu_s - server_cpu_s,
    )


def row(name: str, rounds: list[Round]) -> dict[str, Any]:
    """One row of the table."""

    def median(figure: Callable[[Round], float]) -> float:
        return float(np.median([figure(each) for each in rounds]))

    return {
        "way": name,
        "p50 us": median(lambda each: float(np.percentile(each.latencies_s, 50)) * 1e6),
        "p99 us": median(lambda each: float(np.percentile(each.latencies_s, 99)) * 1e6),
        "calls/s": median(lambda each: len(each.latencies_s) / each.wall_s),
        "client CPU us/call": median(lambda each: each.client_cpu_s / len(each.latencies_s) * 1e6),
        "server CPU us/call": median(lambda each: each.server_cpu_s / len(each.latencies_s) * 1e6),
    }


def in_turn(act: Callable[..., Any], seconds: float) -> list[float]:
    """One call after another."""
    moments = [time.perf_counter()]
    while moments[-1] < moments[0] + seconds:
        act(STATE, GOAL)
        moments.append(time.perf_counter())
    return np.diff(moments).tolist()


def in_threads(act: Callable[..., Any], seconds: float, *, threads: int) -> list[float]:
    """As `in_turn`, in each of `threads`."""
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda _: in_turn(act, seconds), range(threads))
        return [latency_s for latencies_s in found for latency_s in latencies_s]


def pipelined(stream: PolicyStream, seconds: float, *, under_way: int) -> list[float]:
    """One thread that always has `under_way` requests on the stream."""
    ends_s = time.perf_counter() + seconds
    pending: collections.deque[PendingAction] = collections.deque()
    latencies_s: list[float] = []
    while time.perf_counter() < ends_s:
        while len(pending) < under_way:
            pending.append(stream.send(STATE, GOAL))
        latencies_s.append(pending.popleft().receive().round_trip_s)
    latencies_s += [each.receive().round_trip_s for each in pending]
    return latencies_s


async def in_tasks(address: str, seconds: float, *, tasks: int) -> list[float]:
    """As `in_turn`, in each of `tasks`."""

    async def call(client: AsyncPolicyClient) -> list[float]:
        moments = [time.perf_counter()]
        while moments[-1] < moments[0] + seconds:
            await client.act(STATE, GOAL)
            moments.append(time.perf_counter())
        return np.diff(moments).tolist()

    async with AsyncPolicyClient(address, timeout_s=LIMIT_S) as client:
        await client.describe()
        found = await asyncio.gather(*(call(client) for _ in range(tasks)))
    return [latency_s for latencies_s in found for latency_s in latencies_s]


if __name__ == "__main__":
    main()
