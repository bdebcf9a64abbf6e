"""Compare the ways to call the server from Python: single calls, a stream, asyncio; one call at a time and many.

    python benchmarks/client_calls.py --json client_calls.json

The server (`serving/run.py` with a small random policy) is a separate process; the client is this process. The ways
take turns in short rounds, and figures are medians over rounds. Processor time includes all threads of a process.
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

SIZES = {"state_dim": 29, "goal_dim": 2, "action_dim": 8}  # as in the ant environment
STATE, GOAL = np.zeros(SIZES["state_dim"], np.float32), np.zeros(SIZES["goal_dim"], np.float32)
LIMIT_S = 5.0


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the client's ways to call."""

    json: Path | None = None
    """File for the record."""
    depth: int = 4
    """Depth of the policy."""
    width: int = 64
    """Width of the policy."""
    concurrency: int = 16
    """Number of concurrent calls, in the ways with several."""
    rounds: int = 7
    """Number of rounds in which the ways take turns. Figures are medians over rounds."""
    seconds: float = 1.5
    """Duration of each way in a round, in seconds."""
    quick: bool = False
    """Short rounds: checks that the script works; the figures mean nothing."""


class Round(NamedTuple):
    """Measurements of one way in one round."""

    latencies_s: list[float]
    wall_s: float
    client_cpu_s: float
    server_cpu_s: float


Way = Callable[[float], list[float]]  # calls for the given seconds; returns the latency of each call


def main() -> None:
    """Measure, and write the record."""
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
    _record.report("one client process", rows, about=about, json_file=options.json, notes=notes)


def measure(options: Options, server: Target) -> list[dict[str, Any]]:
    """Return the rows of the table, one per way."""
    count = options.concurrency
    with PolicyClient(server.address, timeout_s=LIMIT_S) as client, client.stream() as stream:
        ways: dict[str, Way] = {
            "act": lambda seconds: sequential(client.act, seconds),
            "stream.act": lambda seconds: sequential(stream.act, seconds),
            "await act": lambda seconds: asyncio.run(in_tasks(server.address, seconds, tasks=1)),
            f"act, {count} threads": lambda seconds: in_threads(client.act, seconds, threads=count),
            f"stream.act, {count} threads": lambda seconds: in_threads(stream.act, seconds, threads=count),
            f"stream.send, {count} in flight": lambda seconds: pipelined(stream, seconds, in_flight=count),
            f"await act, {count} tasks": lambda seconds: asyncio.run(in_tasks(server.address, seconds, tasks=count)),
        }
        for way in ways.values():
            way(options.seconds / 5)
        rounds = [
            {name: one_round(way, server, options.seconds) for name, way in ways.items()} for _ in range(options.rounds)
        ]
    return [row(name, [each[name] for each in rounds]) for name in ways]


def one_round(way: Way, server: Target, seconds: float) -> Round:
    """Measure one way for `seconds`."""
    server_cpu_s, client_cpu_s, began_s = server.cpu_s, time.process_time(), time.perf_counter()
    latencies_s = way(seconds)
    return Round(
        latencies_s,
        time.perf_counter() - began_s,
        time.process_time() - client_cpu_s,
        server.cpu_s - server_cpu_s,
    )


def row(name: str, rounds: list[Round]) -> dict[str, Any]:
    """Return one row of the table."""

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


def sequential(act: Callable[..., Any], seconds: float) -> list[float]:
    """Call sequentially; return the latencies."""
    moments = [time.perf_counter()]
    while moments[-1] < moments[0] + seconds:
        act(STATE, GOAL)
        moments.append(time.perf_counter())
    return np.diff(moments).tolist()


def in_threads(act: Callable[..., Any], seconds: float, *, threads: int) -> list[float]:
    """Call sequentially in each of `threads`; return the latencies."""
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda _: sequential(act, seconds), range(threads))
        return [latency_s for latencies_s in found for latency_s in latencies_s]


def pipelined(stream: PolicyStream, seconds: float, *, in_flight: int) -> list[float]:
    """Keep `in_flight` requests on the stream from one thread; return the latencies."""
    ends_s = time.perf_counter() + seconds
    pending: collections.deque[PendingAction] = collections.deque()
    latencies_s: list[float] = []
    while time.perf_counter() < ends_s:
        while len(pending) < in_flight:
            pending.append(stream.send(STATE, GOAL))
        latencies_s.append(pending.popleft().receive().round_trip_s)
    latencies_s += [each.receive().round_trip_s for each in pending]
    return latencies_s


async def in_tasks(address: str, seconds: float, *, tasks: int) -> list[float]:
    """Call sequentially in each of `tasks`; return the latencies."""

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
