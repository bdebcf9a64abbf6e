"""The loads of the serving benchmark, each giving rows of its table: what was measured, what is wanted, whether it is.

Servers that are compared take turns in short rounds, so that whatever else the machine does befalls both; what counts
is the median of the rounds' own ratios or differences.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from _serve_processes import BenchmarkError, LoadGenerator, Target, watched_memory
from _serve_stats import OK, SHED, Probe, failed, median_ratio, recovery_s

Row: TypeAlias = dict[str, Any]
Outcome: TypeAlias = dict[str, Any]

OVERHEAD_US = 150  # that a lone call may take besides the echo's time and the computation's
LARGE_CALLERS = 2  # one call is read while the other is computed
LARGE_CALLS = 8  # at least, in a round
OVERLOAD_ROWS, OVERLOAD_CALLERS = 64, 16  # so the server's computation is the bound, and the default queue holds them
MULTIPLES = (0.5, 0.8, 1, 2, 4, 10)  # of the capacity that are offered
BEYOND = (2, 10)  # of those, what something is wanted at; the server is probed after each
PROBE_S = 2.0
BURST_CHANNELS = 4


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every load needs: the generator, the echo server, sizes, and the record of what has been measured."""

    generator: LoadGenerator
    echo: Target
    state_dim: int
    goal_dim: int
    rounds: int
    seconds: float
    warm_s: float
    phases: list[dict[str, Any]]

    def load(self, target: Target, what: str, **plan: Any) -> Outcome:
        """Load `target` once; the outcome is kept with its processor time."""
        fields = {"seconds": self.seconds, "warm_s": self.warm_s} | plan
        sizes = {"state_dim": self.state_dim, "goal_dim": self.goal_dim}
        cpu_s = target.cpu_s
        result = self.generator.run({"address": target.address, **sizes, **fields})
        cpu_s = target.cpu_s - cpu_s
        calls = sum(count for part in ("codes", "discarded") for count in result[part].values())
        cpu = {"server_cpu_share": cpu_s / result["took_s"], "server_cpu_us_per_call": cpu_s / calls * 1e6}
        self.phases.append({"load": what, "target": target.name, **cpu, **result})
        return result

    def take_turns(self, one: Target, other: Target, what: str, **plan: Any) -> tuple[list[Outcome], list[Outcome]]:
        """Load both in every round; the outcomes of each, by round."""
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
    floor: float | None = None,
    fails: int = 0,
) -> Row:
    """One line of the table. What was not measured, or lost calls on the way, is not reached."""
    assert (at_most is None) != (at_least is None)
    low, high = at_least if at_least is not None else -np.inf, at_most if at_most is not None else np.inf
    return {
        "load": load,
        "figure": figure,
        "served": served,
        "floor": floor,
        "measured": measured,
        "wanted": f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}",
        "failed": fails,
        "reached": "yes" if measured is not None and low <= measured <= high and not fails else "no",
    }


def one_caller(bench: Bench, server: Target, *, depth: int, compute: Callable[[], np.ndarray]) -> list[Row]:
    """A lone robot: what the server adds to the wire and the computation.

    Args:
        compute: runs the compiled call on one row for a while, in this process; seconds of each.
    """
    what = f"one caller, one row, depth {depth}"
    served, echo, computed = [], [], []
    for _ in range(bench.rounds):
        echo.append(bench.load(bench.echo, what, mode="closed"))
        served.append(bench.load(server, what, mode="closed"))
        seconds = compute()
        computed.append({rank: float(np.percentile(seconds, int(rank[1:]))) * 1e6 for rank in ("p50", "p99")})
    bench.phases.append({"load": what, "target": "compiled call in process", "latency_us_by_round": computed})
    ours, floor = ({rank: _latencies(results, rank) for rank in ("p50", "p99")} for results in (served, echo))
    bound = [wire + compute["p50"] for wire, compute in zip(floor["p50"], computed, strict=True)]
    fails = _fails(served)
    return [
        row(
            what,
            "p50 beyond echo + compute, us",
            measured=statistics.median(mine - least for mine, least in zip(ours["p50"], bound, strict=True)),
            at_most=OVERHEAD_US,
            served=statistics.median(ours["p50"]),
            floor=statistics.median(bound),
            fails=fails,
        ),
        row(
            what,
            "p99, us, to echo's",
            measured=median_ratio(ours["p99"], floor["p99"]),
            at_most=2,
            served=statistics.median(ours["p99"]),
            floor=statistics.median(floor["p99"]),
            fails=fails,
        ),
    ]


def many_callers(bench: Bench, server: Target, *, depth: int, callers: int) -> list[Row]:
    """A fleet, each robot with a connection of its own."""
    what = f"{callers} callers, one row each, depth {depth}"
    plan = {"mode": "closed", "callers": callers, "channels": callers}
    echo, served = bench.take_turns(bench.echo, server, what, **plan)
    return [_rates(what, "requests/s to echo's", served, echo, at_least=0.7)]


def streams(bench: Bench, server: Target, *, depth: int, callers: int) -> list[Row]:
    """The same fleet with a stream for each robot, one message on its way in each."""
    what = f"{callers} streams, one row each, depth {depth}"
    plan = {"mode": "stream", "callers": callers, "channels": callers}
    echo, served = bench.take_turns(bench.echo, server, what, **plan)
    return [_rates(what, "messages/s to echo's", served, echo, at_least=0.7)]


def burst(bench: Bench, server: Target, *, depth: int, calls: int) -> list[Row]:
    """Everybody at once: answered or shed, and no other way."""
    what = f"{calls:,} calls at once, depth {depth}"
    with watched_memory(server) as memory:
        result = bench.load(server, what, mode="burst", warm_s=0.0, calls=calls, channels=BURST_CHANNELS)
    bench.phases[-1]["memory_bytes"] = {"before": memory[0], "peak": max(memory)}
    named = sum(result["codes"].get(code, 0) for code in (OK, SHED))
    return [row(what, "answered or shed by name", measured=named, at_least=calls, served=result["codes"].get(OK, 0))]


def large_calls(bench: Bench, server: Target, *, depth: int, rows: int, compute: Callable[[], np.ndarray]) -> list[Row]:
    """Whole batches from few callers.

    Args:
        compute: runs the compiled call on `rows` rows for a while, in this process; seconds of each.
    """
    what = f"{rows} rows per call, depth {depth}"
    served: list[Outcome] = []
    rates: list[float] = []
    for _ in range(bench.rounds):
        rates.append(rows / float(np.median(compute())))
        plan = {"mode": "closed", "callers": LARGE_CALLERS, "channels": LARGE_CALLERS, "rows": rows}
        seconds = max(bench.seconds, LARGE_CALLS * rows / rates[-1])
        served.append(bench.load(server, what, seconds=seconds, **plan))
    bench.phases.append({"load": what, "target": "compiled call in process", "rows_per_s_by_round": rates})
    ours = [result["answered_per_s"] * rows for result in served]
    return [
        row(
            what,
            "rows/s to the compiled call's",
            measured=median_ratio(ours, rates),
            at_least=0.8,
            served=statistics.median(ours),
            floor=statistics.median(rates),
            fails=_fails(served),
        )
    ]


def batching(bench: Bench, server: Target, alone: Target, *, depth: int, callers: int) -> list[Row]:
    """What batching brings: `alone` is the same server without."""
    what = f"{callers} callers, one row each, depth {depth}, batching on and off"
    plan = {"mode": "closed", "callers": callers, "channels": callers}
    without, served = bench.take_turns(alone, server, what, **plan)
    return [_rates(what, "rows/s to those with batching off", served, without, at_least=8)]


@dataclasses.dataclass(frozen=True)
class Overload:
    """What a server did under offers below and beyond its capacity, in calls."""

    capacity_per_s: float
    by_multiple: dict[float, Outcome]  # of the capacity that was offered
    normal_us: float  # p99 of a lone caller before
    memory: dict[str, int]  # resident bytes before the offers, at their peak, and after


def overload(bench: Bench, server: Target, *, depth: int, deadline_s: float) -> Overload:
    """Find the capacity, then offer shares and multiples of it, with deadlines."""
    what = f"capacity, {OVERLOAD_ROWS} rows a call, depth {depth}"
    plan = {"rows": OVERLOAD_ROWS, "channels": OVERLOAD_CALLERS}
    full = [bench.load(server, what, mode="closed", callers=OVERLOAD_CALLERS, **plan) for _ in range(bench.rounds)]
    capacity = statistics.median(result["answered_per_s"] for result in full)
    lone = bench.load(server, f"one caller, {OVERLOAD_ROWS} rows, depth {depth}", mode="closed", rows=OVERLOAD_ROWS)
    offers = {"mode": "open", "deadline_s": deadline_s, "seconds": 2 * bench.seconds, **plan}
    by_multiple: dict[float, Outcome] = {}
    with watched_memory(server) as memory:
        for multiple in MULTIPLES:
            probes = {"probe_s": PROBE_S if multiple in BEYOND else 0.0}
            what, rate = offered(multiple, depth=depth), multiple * capacity
            by_multiple[multiple] = bench.load(server, what, rate_per_s=rate, **probes, **offers)
    resident = {"before": memory[0], "peak": max(memory), "after": memory[-1]}
    return Overload(capacity, by_multiple, normal_us=lone["latency_us"]["p99"], memory=resident)


def offered(multiple: float, *, depth: int) -> str:
    """The name of an offer."""
    return f"offered {multiple}x of capacity, {OVERLOAD_ROWS} rows a call, depth {depth}"


def overload_rows(found: Overload, *, depth: int) -> list[Row]:
    """What is wanted at 2 and at 10 times the capacity."""
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
            row(what, "accepted/s to peak", measured=accepted / peak, at_least=0.9, served=accepted, floor=peak),
            row(what, "p99 of accepted, us, to that at 1x", measured=slower, at_most=2, served=p99, floor=usual),
            row(what, "seconds until normal", measured=back_s, at_most=1),
        ]
    before, peak = (found.memory[moment] / 2**20 for moment in ("before", "peak"))
    grown = row(
        f"all offers, depth {depth}",
        "peak memory, MiB, to before",
        measured=peak / before,
        at_most=1.1,
        served=peak,
        floor=before,
    )
    return [*rows, grown]


def bounds(rows: Sequence[Row], phases: Sequence[dict[str, Any]]) -> list[str]:
    """For each load of which a figure is not reached, who took how much of the processor: medians of its phases."""
    lines: list[str] = []
    for load in dict.fromkeys(row["load"] for row in rows if row["reached"] == "no"):
        own = [phase for phase in phases if phase["load"] == load and "server_cpu_share" in phase]
        for target in dict.fromkeys(phase["target"] for phase in own):
            here = [phase for phase in own if phase["target"] == target]
            names = ("server_cpu_share", "server_cpu_us_per_call", "generator_cpu_share")
            server, per_call, generator = (statistics.median(phase[name] for phase in here) for name in names)
            shares = f"{server:.2f} cores, {per_call:.0f} us a call; generator {generator:.2f} cores"
            lines.append(f"{load}: {target} {shares}")
    return lines


def _rates(what: str, figure: str, served: Sequence[Outcome], floor: Sequence[Outcome], *, at_least: float) -> Row:
    ours, theirs = ([result["answered_per_s"] for result in results] for results in (served, floor))
    return row(
        what,
        figure,
        measured=median_ratio(ours, theirs),
        at_least=at_least,
        served=statistics.median(ours),
        floor=statistics.median(theirs),
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
