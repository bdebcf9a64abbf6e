"""The loads of the serving benchmark. Each gives rows of the table: figure, requirement, and whether it is met.

Servers that are compared take turns in short rounds, so other work on the machine affects both alike. A figure is the
median of the ratios or differences of the rounds.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from _serve_processes import BenchmarkError, LoadGenerator, Target, watched_memory
from _serve_stats import OK, REJECTED, Probe, failed, median_ratio, recovery_s

Row: TypeAlias = dict[str, Any]
Outcome: TypeAlias = dict[str, Any]  # what the load generator returns for one plan
Phase: TypeAlias = dict[str, Any]  # an outcome, or figures of the compiled call, with the names of load and target

COMPILED_CALL = "compiled call in process"
OVERHEAD_US = 150  # limit for a single call: time above that of the echo server and the computation
LARGE_CALLERS = 2  # one call is received while the other is computed
LARGE_CALLS = 8  # minimum number in a round
OVERLOAD_ROWS, OVERLOAD_CALLERS = 64, 16  # computation limits the rate, and the default queue holds all of them
MULTIPLES = (0.5, 0.8, 1, 2, 4, 10)  # offered loads, in capacities
BEYOND = (2, 10)  # the multiples that have requirements; the server is probed after each
PROBE_S = 2.0
BURST_CHANNELS = 4


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every load needs: the load generator, the echo server, sizes, and the list of measured phases."""

    generator: LoadGenerator
    echo: Target
    state_dim: int
    goal_dim: int
    rounds: int
    seconds: float
    warm_s: float
    phases: list[Phase]

    def load(self, target: Target, what: str, **plan: Any) -> Outcome:
        """Load `target` once and return the outcome; append it to `phases` with its processor time."""
        fields = {"seconds": self.seconds, "warm_s": self.warm_s} | plan
        sizes = {"state_dim": self.state_dim, "goal_dim": self.goal_dim}
        cpu_s = target.cpu_s
        result = self.generator.run({"address": target.address, "ca": target.ca, **sizes, **fields})
        cpu_s = target.cpu_s - cpu_s
        calls = sum(count for part in ("codes", "discarded") for count in result[part].values())
        cpu = {"server_cpu_share": cpu_s / result["took_s"], "server_cpu_us_per_call": cpu_s / calls * 1e6}
        self.phases.append({"load": what, "target": target.name, **cpu, **result})
        return result

    def take_turns(self, one: Target, other: Target, what: str, **plan: Any) -> tuple[list[Outcome], list[Outcome]]:
        """Load both in every round; return the outcomes of each, by round."""
        pairs = [(self.load(one, what, **plan), self.load(other, what, **plan)) for _ in range(self.rounds)]
        return [first for first, _ in pairs], [second for _, second in pairs]


def row(
    load: str,
    figure: str,
    *,
    measured: float | None,
    at_most: float | None = None,
    at_least: float | None = None,
    served: float | None = None,
    reference: float | None = None,
    fails: int = 0,
) -> Row:
    """Return one row of the table. A requirement is not met if nothing was measured or a call failed."""
    assert (at_most is None) != (at_least is None)
    low, high = at_least if at_least is not None else -np.inf, at_most if at_most is not None else np.inf
    return {
        "load": load,
        "figure": figure,
        "served": served,
        "reference": reference,
        "measured": measured,
        "required": f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}",
        "failed": fails,
        "met": "yes" if measured is not None and low <= measured <= high and not fails else "no",
    }


def one_caller(bench: Bench, server: Target, *, depth: int, compute: Callable[[], np.ndarray]) -> list[Row]:
    """Measure a single robot: what the server adds to the network and the computation.

    Args:
        compute: runs the compiled call on one row repeatedly in this process; returns the seconds of each call.
    """
    what = f"one caller, one row, depth {depth}"
    served, echo, computed = [], [], []
    for _ in range(bench.rounds):
        echo.append(bench.load(bench.echo, what, mode="closed"))
        served.append(bench.load(server, what, mode="closed"))
        seconds = compute()
        computed.append({rank: float(np.percentile(seconds, int(rank[1:]))) * 1e6 for rank in ("p50", "p99")})
        bench.phases.append({"load": what, "target": COMPILED_CALL, "latency_us": computed[-1]})
    ours, theirs = ({rank: _latencies(results, rank) for rank in ("p50", "p99")} for results in (served, echo))
    bound = [network + compute["p50"] for network, compute in zip(theirs["p50"], computed, strict=True)]
    fails = _fails(served)
    return [
        row(
            what,
            "p50 above echo + compute, us",
            measured=statistics.median(mine - least for mine, least in zip(ours["p50"], bound, strict=True)),
            at_most=OVERHEAD_US,
            served=statistics.median(ours["p50"]),
            reference=statistics.median(bound),
            fails=fails,
        ),
        row(
            what,
            "p99, us; ratio to echo",
            measured=median_ratio(ours["p99"], theirs["p99"]),
            at_most=2,
            served=statistics.median(ours["p99"]),
            reference=statistics.median(theirs["p99"]),
            fails=fails,
        ),
    ]


def many_callers(bench: Bench, server: Target, *, depth: int, callers: int) -> list[Row]:
    """Measure a fleet; each robot has its own connection."""
    what = f"{callers} callers, one row each, depth {depth}"
    plan = {"mode": "closed", "callers": callers, "channels": callers}
    echo, served = bench.take_turns(bench.echo, server, what, **plan)
    return [_rates(what, "requests/s; ratio to echo", served, echo, at_least=0.7)]


def streams(bench: Bench, server: Target, *, depth: int, callers: int) -> list[Row]:
    """Measure the same fleet with one stream per robot and one message in flight in each."""
    what = f"{callers} streams, one row each, depth {depth}"
    plan = {"mode": "stream", "callers": callers, "channels": callers}
    echo, served = bench.take_turns(bench.echo, server, what, **plan)
    return [_rates(what, "messages/s; ratio to echo", served, echo, at_least=0.7)]


def burst(bench: Bench, server: Target, *, depth: int, calls: int) -> list[Row]:
    """Send all calls at the same moment; each must be answered or rejected."""
    what = f"burst of {calls:,} calls, depth {depth}"
    with watched_memory(server) as memory:
        result = bench.load(server, what, mode="burst", warm_s=0.0, calls=calls, channels=BURST_CHANNELS)
    bench.phases[-1]["memory_bytes"] = {"before": memory[0], "peak": max(memory)}
    settled = sum(result["codes"].get(code, 0) for code in (OK, REJECTED))
    return [row(what, "answered or rejected", measured=settled, at_least=calls, served=result["codes"].get(OK, 0))]


def large_calls(bench: Bench, server: Target, *, depth: int, rows: int, compute: Callable[[], np.ndarray]) -> list[Row]:
    """Measure calls that fill a batch, from few callers.

    Args:
        compute: runs the compiled call on `rows` rows repeatedly in this process; returns the seconds of each call.
    """
    what = f"{rows} rows per call, depth {depth}"
    served: list[Outcome] = []
    rates: list[float] = []
    for _ in range(bench.rounds):
        rates.append(rows / float(np.median(compute())))
        bench.phases.append({"load": what, "target": COMPILED_CALL, "rows_per_s": rates[-1]})
        plan = {"mode": "closed", "callers": LARGE_CALLERS, "channels": LARGE_CALLERS, "rows": rows}
        seconds = max(bench.seconds, LARGE_CALLS * rows / rates[-1])
        served.append(bench.load(server, what, seconds=seconds, **plan))
    ours = [result["answered_per_s"] * rows for result in served]
    return [
        row(
            what,
            "rows/s; ratio to the compiled call",
            measured=median_ratio(ours, rates),
            at_least=0.8,
            served=statistics.median(ours),
            reference=statistics.median(rates),
            fails=_fails(served),
        )
    ]


def batching(bench: Bench, server: Target, unbatched: Target, *, depth: int, callers: int) -> list[Row]:
    """Measure what batching gains; `unbatched` is the same server without batching."""
    what = f"{callers} callers, one row each, depth {depth}, batching on and off"
    plan = {"mode": "closed", "callers": callers, "channels": callers}
    without, served = bench.take_turns(unbatched, server, what, **plan)
    return [_rates(what, "rows/s; ratio to batching off", served, without, at_least=8)]


@dataclasses.dataclass(frozen=True)
class Overload:
    """Outcomes of offered loads below and above the server's capacity, in calls."""

    capacity_per_s: float
    by_multiple: dict[float, Outcome]  # by offered load, in capacities
    normal_us: float  # p99 of a single caller beforehand
    memory: dict[str, int]  # resident bytes before the loads, at the peak, and after them


def overload(bench: Bench, server: Target, *, depth: int, deadline_s: float) -> Overload:
    """Find the capacity, then offer fractions and multiples of it, with deadlines."""
    what = f"capacity, {OVERLOAD_ROWS} rows a call, depth {depth}"
    plan = {"rows": OVERLOAD_ROWS, "channels": OVERLOAD_CALLERS}
    full = [bench.load(server, what, mode="closed", callers=OVERLOAD_CALLERS, **plan) for _ in range(bench.rounds)]
    capacity = statistics.median(result["answered_per_s"] for result in full)
    single = bench.load(server, f"one caller, {OVERLOAD_ROWS} rows, depth {depth}", mode="closed", rows=OVERLOAD_ROWS)
    open_loop = {"mode": "open", "deadline_s": deadline_s, "seconds": 2 * bench.seconds, **plan}
    by_multiple: dict[float, Outcome] = {}
    with watched_memory(server) as memory:
        for multiple in MULTIPLES:
            probes = {"probe_s": PROBE_S if multiple in BEYOND else 0.0}
            what, rate = offered(multiple, depth=depth), multiple * capacity
            by_multiple[multiple] = bench.load(server, what, rate_per_s=rate, **probes, **open_loop)
    resident = {"before": memory[0], "peak": max(memory), "after": memory[-1]}
    return Overload(capacity, by_multiple, normal_us=single["latency_us"]["p99"], memory=resident)


def offered(multiple: float, *, depth: int) -> str:
    """Return the name of an offered load."""
    return f"{multiple}x of capacity offered, {OVERLOAD_ROWS} rows a call, depth {depth}"


def overload_rows(found: Overload, *, depth: int) -> list[Row]:
    """Return the rows of the table for 2 and 10 times the capacity."""
    rows: list[Row] = []
    steady = found.by_multiple[1]
    peak, usual = max(found.capacity_per_s, steady["answered_per_s"]), _rank(steady, "p99")
    for multiple in BEYOND:
        what = offered(multiple, depth=depth)
        result = found.by_multiple[multiple]
        accepted, p99 = result["answered_per_s"], _rank(result, "p99")
        slower = None if p99 is None or usual is None else p99 / usual
        back_s = recovery_s([Probe(*probe) for probe in result["probes"]], normal_us=found.normal_us)
        rows += [
            row(
                what,
                "accepted/s; ratio to peak",
                measured=accepted / peak,
                at_least=0.9,
                served=accepted,
                reference=peak,
            ),
            row(what, "p99 of accepted, us; ratio to 1x", measured=slower, at_most=2, served=p99, reference=usual),
            row(what, "seconds until normal", measured=back_s, at_most=1),
        ]
    before, peak = (found.memory[moment] / 2**20 for moment in ("before", "peak"))
    grown = row(
        f"all offered loads, depth {depth}",
        "peak memory, MiB; ratio to before",
        measured=peak / before,
        at_most=1.1,
        served=peak,
        reference=before,
    )
    return [*rows, grown]


def bounds(rows: Sequence[Row], phases: Sequence[dict[str, Any]]) -> list[str]:
    """Return the median processor use of server and generator for each load that misses a requirement."""
    lines: list[str] = []
    for load in dict.fromkeys(row["load"] for row in rows if row["met"] == "no"):
        own = [phase for phase in phases if phase["load"] == load and "server_cpu_share" in phase]
        for target in dict.fromkeys(phase["target"] for phase in own):
            here = [phase for phase in own if phase["target"] == target]
            names = ("server_cpu_share", "server_cpu_us_per_call", "generator_cpu_share")
            server, per_call, generator = (statistics.median(phase[name] for phase in here) for name in names)
            shares = f"{server:.2f} cores, {per_call:.0f} us a call; generator {generator:.2f} cores"
            lines.append(f"{load}: {target} {shares}")
    return lines


def _rates(what: str, figure: str, served: Sequence[Outcome], reference: Sequence[Outcome], *, at_least: float) -> Row:
    ours, theirs = ([result["answered_per_s"] for result in results] for results in (served, reference))
    return row(
        what,
        figure,
        measured=median_ratio(ours, theirs),
        at_least=at_least,
        served=statistics.median(ours),
        reference=statistics.median(theirs),
        fails=_fails(served),
    )


def _rank(result: Outcome, rank: str) -> float | None:
    return None if result["latency_us"] is None else result["latency_us"][rank]


def _latencies(results: Sequence[Outcome], rank: str) -> list[float]:
    for result in results:
        if result["latency_us"] is None:
            raise BenchmarkError(f"nothing was answered: {result['codes']} {result['details']}")
    return [result["latency_us"][rank] for result in results]


def _fails(results: Sequence[Outcome]) -> int:
    return sum(failed(result) for result in results)
