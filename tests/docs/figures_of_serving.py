"""Figures of the server and the client on two cores."""

import statistics

from tests.docs.figures import Record, Texts, find, line, record, significant

PAGE = "benchmarks/results/serve.md"
RESULTS = "docs/results.md"


def serve() -> Texts:
    """The table of the server under load, and its summary."""
    rows = record("serve.json")["rows"]
    for row in rows:
        served, reference, measured = (significant_or_whole(row[name]) for name in ("served", "reference", "measured"))
        yield PAGE, line(row["load"], row["figure"], served, reference, measured, row["required"], row["met"])
    callers = find(rows, load="32 callers, one row each, depth 4")
    yield RESULTS, f"{callers['measured']:.3f} of its calls/s ({callers['served']:,.0f}/s)"
    shallow, deep = (find(rows, load=f"4096 rows per call, depth {depth}") for depth in (4, 64))
    ratios = f"{shallow['measured']:.2f} / {deep['measured']:.2f}"
    rates = " / ".join(f"{row['served']:,.0f}" for row in (shallow, deep))
    yield RESULTS, f"{ratios} of its rows/s ({rates})"
    double, tenfold = (
        find(
            rows, load=f"{multiple}x of capacity offered, 64 rows a call, depth 64", figure="accepted/s; ratio to peak"
        )
        for multiple in (2, 10)
    )
    shares = [f"{100 * row['measured']:.0f} %" for row in (double, tenfold)]
    yield RESULTS, f"accepts {shares[0]} of its peak rate at twice its capacity, and {shares[1]} at ten times"
    accepted, peak = (significant(tenfold[name]) for name in ("served", "reference"))
    yield "README.md", f"it accepts {accepted} of the {peak} calls/s that it computes at its peak"
    single = find(rows, load="one caller, one row, depth 4", figure="p50 above echo + compute, us")
    yield RESULTS, f"{single['served'] / 1000:.2f} ms; {single['reference'] / 1000:.2f} ms"


def processor_time() -> Texts:
    """Processor time per call, in the explanations."""
    explained = {
        "32 callers, one row each, depth 4": "{server} us per call, the echo server {echo}",
        "32 streams, one row each, depth 4": "{server} us per message, the echo server {echo}",
    }
    for name, text in explained.items():
        yield PAGE, text.format(server=cpu_us(name, "server depth 4"), echo=cpu_us(name, "echo"))
    deep = [
        f"{cpu_us(f'32 {kind}, one row each, depth 64', 'server depth 64'):,} us against "
        f"{cpu_us(f'32 {kind}, one row each, depth 64', 'echo'):,}"
        for kind in ("callers", "streams")
    ]
    yield PAGE, f"{deep[0]} per call, {deep[1]} per message"


def pauses() -> Texts:
    """How much longer the network takes after a pause."""
    every, one = (record(name)["rows"] for name in ("pauses.json", "pauses_one_core.json"))
    for rows, text in (
        (every, "{0} us instead of {1} at depth 4 after 5 ms, {2} instead of {3} at depth 64"),
        (one, "on one core {0} instead of {1}, and {2} instead of {3}"),
    ):
        figures = [f"{row[f'after {pause} ms']:,.0f}" for row in rows for pause in (5, 0)]
        yield PAGE, text.format(*figures)


def workers() -> Texts:
    """One server process against two."""
    one, two = (record(name)["rows"] for name in ("serve.json", "serve_workers.json"))
    for name in (
        "32 callers, one row each, depth 4",
        "32 streams, one row each, depth 4",
        "4096 rows per call, depth 4",
        "32 callers, one row each, depth 64",
        "32 streams, one row each, depth 64",
        "64 callers, one row each, depth 64, batching on and off",
        "4096 rows per call, depth 64",
    ):
        ours, theirs = find(one, load=name), find(two, load=name)
        ratios = (significant(row["measured"]) for row in (ours, theirs))
        yield PAGE, line(name, *ratios, *(f"{row['served']:,.0f}" for row in (ours, theirs)))


def client_calls() -> Texts:
    """The ways to call the server from Python."""
    for row in record("client_calls.json")["rows"]:
        p50, p99 = (f"{row[f'{rank} us'] / 1000:.1f}" for rank in ("p50", "p99"))
        client, server = (f"{row[f'{side} CPU us/call'] / 1000:.2f}" for side in ("client", "server"))
        yield "docs/clients.md", line(f"`{row['way']}`", p50, p99, f"{row['calls/s']:,.0f}", client, server)


def canaries() -> Texts:
    """What simulated canaries decided."""
    for row in record("canary_decisions.json")["rows"]:
        rates = (f"{100 * row[name]:.0f} %" for name in ("live", "candidate"))
        decided = (f"{100 * row[name]:.1f} %" for name in ("promoted", "rolled back"))
        episodes = (None if row[name] is None else f"{row[name]:,.0f}" for name in ("mean episodes", "p90 episodes"))
        yield "docs/operations.md", line(*rates, *decided, *episodes)


def load(name: str, load_name: str, target: str) -> Record:
    """Return the summary of a load on a target."""
    return find(record(name)["loads"], load=load_name, target=target)


def cpu_us(load_name: str, target: str) -> int:
    """Return the median processor time per call."""
    return round(statistics.median(load("serve.json", load_name, target)["server_cpu_us_per_call"]))


def significant_or_whole(figure: float | None) -> str | None:
    """Return three significant digits, but all digits before the point."""
    return significant(figure) if figure is None or abs(figure) < 1000 else f"{figure:,.0f}"


ALL = (serve, processor_time, pauses, workers, client_calls, canaries)
