"""The load generator, a process of its own: one plan a line on its input, one outcome a line on its output, as JSON.

It sends bytes that were encoded beforehand and looks at no answer but for its length and status, so that it can send
more than a server can answer; how late it sent, and how much processor it took, stands in every outcome.

* closed: so many callers, each of whom calls again when it has its answer.
* open: calls at the moments of a schedule, whatever has been answered by then.
* burst: so many calls at once.
* stream: so many streams, each with so many messages on their way.
"""

import asyncio
import dataclasses
import gc
import json
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal

# gRPC's own lines would mix with ours. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio
import numpy as np
from _serve_stats import OK, Call, Probe, outcome, schedule

from kilolayer.v1 import policy_pb2 as pb

ACT, ACT_STREAM = "/kilolayer.v1.Policy/Act", "/kilolayer.v1.Policy/ActStream"
UNANSWERED = "UNANSWERED"  # in a stream that the server ended with OK
_MOST_DETAILS = 20
_CONNECTED_S = 30.0
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each channel, as robots have
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
_clock = time.perf_counter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One load on one server."""

    address: str
    mode: Literal["closed", "open", "burst", "stream"]
    seconds: float = 1.0  # of the window; not for a burst
    warm_s: float = 0.0  # of the same load before it
    rows: int = 1  # in each call
    state_dim: int = 29
    goal_dim: int = 2
    callers: int = 1  # closed: callers; stream: streams
    channels: int = 1
    deadline_s: float = 60.0  # of each call; stream: after its last message was sent
    rate_per_s: float = 0.0  # open: calls
    arrivals_seed: int | None = 0  # open: of Poisson arrivals; None: evenly spaced
    probe_s: float = 0.0  # open: how long a lone caller calls after the last call was sent
    calls: int = 0  # burst
    in_flight: int = 1  # stream: messages of each on their way


class VersionStatistics:
    """Every call that has ended, and what its server said."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.details: Counter[str] = Counter()
        self.reply_bytes: Counter[int] = Counter()
        self.probes: list[Probe] = []

    def refused(self, code: grpc.StatusCode, details: str | None) -> str:
        """Note the text of a status, numbers apart, and return the status' name."""
        if len(self.details) < _MOST_DETAILS:
            self.details[f"{code.name}: {re.sub('[0-9]+', '#', details or '')[:200]}"] += 1
        return code.name


@dataclasses.dataclass(frozen=True)
class Load:
    """A plan that is under way."""

    plan: Plan
    payload: bytes
    channels: list[grpc.aio.Channel]
    tally: VersionStatistics
    begins_s: float  # of the window

    @property
    def ends_s(self) -> float:
        """Of the window."""
        return self.begins_s + self.plan.seconds

    def method(self, index: int) -> Callable[..., Awaitable[bytes]]:
        """Act on one of the channels, in turn."""
        return self.channels[index % len(self.channels)].unary_unary(ACT)

    async def call(self, act: Callable[..., Awaitable[bytes]], *, intended_s: float) -> Call:
        """Call once; a refusal is a result like another."""
        code, sent_s = OK, _clock()
        try:
            reply = await act(self.payload, timeout=self.plan.deadline_s)
            self.tally.reply_bytes[len(reply)] += 1
        except grpc.aio.AioRpcError as error:
            code = self.tally.refused(error.code(), error.details())
        return Call(intended_s, sent_s, _clock(), code)

    async def call_and_count(self, act: Callable[..., Awaitable[bytes]], *, intended_s: float) -> None:
        """Call once and keep what came of it."""
        self.tally.calls.append(await self.call(act, intended_s=intended_s))


async def run(plan: Plan) -> dict[str, Any]:
    """Carry out `plan`, once its channels are connected."""
    channels = [grpc.aio.insecure_channel(plan.address, options=_CHANNEL_OPTIONS) for _ in range(plan.channels)]
    try:
        await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), _CONNECTED_S)
        started_s, cpu_s = _clock(), time.process_time()
        load = Load(plan, encode(plan), channels, VersionStatistics(), begins_s=started_s + plan.warm_s)
        await MODES[plan.mode](load)
        took_s, cpu_s = _clock() - started_s, time.process_time() - cpu_s
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    tally = load.tally
    ends_s = started_s + took_s if plan.mode == "burst" else load.ends_s
    return {
        "plan": dataclasses.asdict(plan),
        "took_s": took_s,
        "generator_cpu_share": cpu_s / took_s,
        **outcome(tally.calls, begins_s=load.begins_s, ends_s=ends_s),
        "details": dict(tally.details),
        "reply_bytes": [min(tally.reply_bytes, default=0), max(tally.reply_bytes, default=0)],
        "probes": tally.probes,
    }


def encode(plan: Plan) -> bytes:
    """The one request that a load repeats."""
    rng = np.random.default_rng(0)
    state, goal = (rng.normal(size=plan.rows * width) for width in (plan.state_dim, plan.goal_dim))
    return pb.ActRequest(state=state.tolist(), goal=goal.tolist()).SerializeToString()


async def closed(load: Load) -> None:
    """Every caller calls again and again."""

    async def caller(act: Callable[..., Awaitable[bytes]]) -> None:
        while (now_s := _clock()) < load.ends_s:
            await load.call_and_count(act, intended_s=now_s)

    await asyncio.gather(*(caller(load.method(index)) for index in range(load.plan.callers)))


async def open_loop(load: Load) -> None:
    """Send at the moments of the schedule, then probe."""
    plan, tally = load.plan, load.tally
    methods = [load.method(index) for index in range(plan.channels)]
    started_s = load.begins_s - plan.warm_s
    moments = schedule(plan.rate_per_s, plan.warm_s + plan.seconds, seed=plan.arrivals_seed)
    waiting: set[asyncio.Task[None]] = set()
    for index, moment in enumerate(moments.tolist()):
        intended_s = started_s + moment
        await asyncio.sleep(max(intended_s - _clock(), 0))  # 0 still lets answers in
        task = asyncio.create_task(load.call_and_count(methods[index % len(methods)], intended_s=intended_s))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    stopped_s = _clock()
    while (now_s := _clock()) < stopped_s + plan.probe_s:
        call = await load.call(methods[0], intended_s=now_s)
        tally.probes.append(Probe(now_s - stopped_s, (call.ended_s - now_s) * 1e6, call.code))
    await asyncio.gather(*waiting)


async def burst(load: Load) -> None:
    """Send everything at once."""
    methods = [load.method(index) for index in range(load.plan.channels)]
    now_s = _clock()
    calls = (load.call_and_count(methods[index % len(methods)], intended_s=now_s) for index in range(load.plan.calls))
    await asyncio.gather(*calls)


async def stream(load: Load) -> None:
    """Every stream keeps its messages on their way until the window ends; one that breaks off is not opened again.

    With several on their way, one written just after the server ended the stream makes gRPC's Python client say
    INTERNAL, whatever the server said.
    """
    plan, tally = load.plan, load.tally

    async def one(channel: grpc.aio.Channel) -> None:
        timeout_s = plan.warm_s + plan.seconds + plan.deadline_s
        calling: Any = channel.stream_stream(ACT_STREAM)(timeout=timeout_s)
        sent: deque[float] = deque()
        try:
            for _ in range(plan.in_flight):
                sent.append(_clock())
                await calling.write(load.payload)
            while sent and (reply := await calling.read()) is not grpc.aio.EOF:
                now_s, sent_s = _clock(), sent.popleft()
                tally.calls.append(Call(sent_s, sent_s, now_s, OK))
                tally.reply_bytes[len(reply)] += 1
                if now_s < load.ends_s:
                    sent.append(now_s)
                    await calling.write(load.payload)
            await calling.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # writing to a stream that has ended is the latter; why it ended is asked next
        code = await calling.code()
        name = UNANSWERED if code is grpc.StatusCode.OK else tally.refused(code, await calling.details())
        tally.calls.extend(Call(sent_s, sent_s, _clock(), name) for sent_s in sent)

    await asyncio.gather(*(one(load.channels[index % len(load.channels)]) for index in range(plan.callers)))


MODES = {"closed": closed, "open": open_loop, "burst": burst, "stream": stream}


def main() -> None:
    """Carry out plans until the input ends."""
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        gc.disable()  # a collection would hold up calls of its own
        result = asyncio.run(run(Plan(**json.loads(line))))
        gc.enable()
        gc.collect()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
