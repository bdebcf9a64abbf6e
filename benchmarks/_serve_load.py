"""The load generator, a separate process: reads one plan per line from stdin, writes one outcome per line to stdout.

Plans and outcomes are JSON. The generator sends the same encoded bytes again and again and reads only length and
status of each reply, so it can send more than a server can answer. Every outcome holds the delay of its calls and the
generator's processor time.

* closed: a number of callers; each calls again after its reply.
* open: calls at scheduled times, independent of the replies.
* burst: a number of calls at the same moment.
* stream: a number of streams, each with a number of messages in flight.
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
from pathlib import Path
from typing import Any, Literal

# Keep gRPC's log lines out of the output. gRPC reads this variable at import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio
import numpy as np
from _serve_stats import OK, Call, Probe, outcome, schedule

from kilolayer.v1 import policy_pb2 as pb

ACT, ACT_STREAM = "/kilolayer.v1.Policy/Act", "/kilolayer.v1.Policy/ActStream"
UNANSWERED = "UNANSWERED"  # message of a stream that the server ended with OK
_MOST_DETAILS = 20
_CONNECTED_S = 30.0
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # one connection per channel, as with robots
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
    seconds: float = 1.0  # duration of the measured window; not used by a burst
    warm_s: float = 0.0  # the same load before the window, not measured
    rows: int = 1  # in each call
    state_dim: int = 29
    goal_dim: int = 2
    callers: int = 1  # closed: callers; stream: streams
    channels: int = 1
    deadline_s: float = 60.0  # of each call; stream: counted from its last message
    rate_per_s: float = 0.0  # open: calls per second
    arrivals_seed: int | None = 0  # open: seed of Poisson arrivals; None spaces calls evenly
    probe_s: float = 0.0  # open: duration of single calls after the last scheduled call
    calls: int = 0  # burst: number of calls
    in_flight: int = 1  # stream: messages in flight per stream
    ca: str = ""  # file of the authority of the server's certificate; empty: plain text


class LoadOutcome:
    """All finished calls, with the texts of their statuses."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.details: Counter[str] = Counter()
        self.reply_bytes: Counter[int] = Counter()
        self.probes: list[Probe] = []

    def count_failure(self, code: grpc.StatusCode, details: str | None) -> str:
        """Count the text of a status, with numbers replaced by #, and return the name of the status."""
        if len(self.details) < _MOST_DETAILS:
            self.details[f"{code.name}: {re.sub('[0-9]+', '#', details or '')[:200]}"] += 1
        return code.name


@dataclasses.dataclass(frozen=True)
class Load:
    """A running plan."""

    plan: Plan
    payload: bytes
    channels: list[grpc.aio.Channel]
    tally: LoadOutcome
    begins_s: float  # start of the window

    @property
    def ends_s(self) -> float:
        """End of the window."""
        return self.begins_s + self.plan.seconds

    def method(self, index: int) -> Callable[..., Awaitable[bytes]]:
        """Return Act on one of the channels, chosen in turn."""
        return self.channels[index % len(self.channels)].unary_unary(ACT)

    async def call(self, act: Callable[..., Awaitable[bytes]], *, intended_s: float) -> Call:
        """Call once. A failure is returned, not raised."""
        code, sent_s = OK, _clock()
        try:
            reply = await act(self.payload, timeout=self.plan.deadline_s)
            self.tally.reply_bytes[len(reply)] += 1
        except grpc.aio.AioRpcError as error:
            code = self.tally.count_failure(error.code(), error.details())
        return Call(intended_s, sent_s, _clock(), code)

    async def call_and_count(self, act: Callable[..., Awaitable[bytes]], *, intended_s: float) -> None:
        """Call once and add the result to the tally."""
        self.tally.calls.append(await self.call(act, intended_s=intended_s))


async def run(plan: Plan) -> dict[str, Any]:
    """Connect the channels, then run `plan` and return its outcome."""
    channels = [connect(plan) for _ in range(plan.channels)]
    try:
        await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), _CONNECTED_S)
        started_s, cpu_s = _clock(), time.process_time()
        load = Load(plan, encode(plan), channels, LoadOutcome(), begins_s=started_s + plan.warm_s)
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


def connect(plan: Plan) -> grpc.aio.Channel:
    """Return a channel of its own to the server."""
    if not plan.ca:
        return grpc.aio.insecure_channel(plan.address, options=_CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(Path(plan.ca).read_bytes())
    return grpc.aio.secure_channel(plan.address, credentials, options=_CHANNEL_OPTIONS)


def encode(plan: Plan) -> bytes:
    """Encode the request that a load repeats."""
    rng = np.random.default_rng(0)
    state, goal = (rng.normal(size=plan.rows * width) for width in (plan.state_dim, plan.goal_dim))
    return pb.ActRequest(state=state.tolist(), goal=goal.tolist()).SerializeToString()


async def closed(load: Load) -> None:
    """Let every caller call repeatedly until the window ends."""

    async def caller(act: Callable[..., Awaitable[bytes]]) -> None:
        while (now_s := _clock()) < load.ends_s:
            await load.call_and_count(act, intended_s=now_s)

    await asyncio.gather(*(caller(load.method(index)) for index in range(load.plan.callers)))


async def open_loop(load: Load) -> None:
    """Send calls at the scheduled times, then probe with single calls."""
    plan, tally = load.plan, load.tally
    methods = [load.method(index) for index in range(plan.channels)]
    started_s = load.begins_s - plan.warm_s
    moments = schedule(plan.rate_per_s, plan.warm_s + plan.seconds, seed=plan.arrivals_seed)
    waiting: set[asyncio.Task[None]] = set()
    for index, moment in enumerate(moments.tolist()):
        intended_s = started_s + moment
        await asyncio.sleep(max(intended_s - _clock(), 0))  # a sleep of 0 lets replies be handled
        task = asyncio.create_task(load.call_and_count(methods[index % len(methods)], intended_s=intended_s))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    stopped_s = _clock()
    while (now_s := _clock()) < stopped_s + plan.probe_s:
        call = await load.call(methods[0], intended_s=now_s)
        tally.probes.append(Probe(now_s - stopped_s, (call.ended_s - now_s) * 1e6, call.code))
    await asyncio.gather(*waiting)


async def burst(load: Load) -> None:
    """Send all calls at the same moment."""
    methods = [load.method(index) for index in range(load.plan.channels)]
    now_s = _clock()
    calls = (load.call_and_count(methods[index % len(methods)], intended_s=now_s) for index in range(load.plan.calls))
    await asyncio.gather(*calls)


async def stream(load: Load) -> None:
    """Keep `in_flight` messages in every stream until the window ends. A broken stream is not opened again.

    With several messages in flight, gRPC's Python client reports INTERNAL for a message written just after the server
    ended the stream, whatever status the server sent.
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
            pass  # InvalidStateError: write after the end; the status follows
        code = await calling.code()
        name = UNANSWERED if code is grpc.StatusCode.OK else tally.count_failure(code, await calling.details())
        tally.calls.extend(Call(sent_s, sent_s, _clock(), name) for sent_s in sent)

    await asyncio.gather(*(one(load.channels[index % len(load.channels)]) for index in range(plan.callers)))


MODES = {"closed": closed, "open": open_loop, "burst": burst, "stream": stream}


def main() -> None:
    """Run plans until the input ends."""
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        gc.disable()  # a garbage collection would delay calls
        result = asyncio.run(run(Plan(**json.loads(line))))
        gc.enable()
        gc.collect()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
