"""What the serving benchmark makes of its calls, by hand, and that its load generator counts what it got."""

import importlib
import itertools
import os
import pstats
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kilolayer.v1 import policy_pb2 as pb
from serving.command_line import parse

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
REJECTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A script or a helper of its as a module; each finds the others beside itself."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def stats(module: Callable[[str], Any]) -> Any:
    return module("_serve_stats")


@pytest.fixture
def load(module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The load generator. Its clock advances by a millisecond at every look, so that every machine makes some calls."""
    load, readings = module("_serve_load"), itertools.count()
    monkeypatch.setattr(load, "_clock", lambda: 100.0 + next(readings) / 1000)
    return load


def test_latency_runs_from_the_intended_moment_and_only_the_window_counts(stats: Any) -> None:
    calls = [
        stats.Call(9.5, 9.5, 10.5, "OK"),  # of the warm-up
        stats.Call(10.0, 10.0, 10.25, "OK"),
        stats.Call(10.5, 11.0, 11.5, "OK"),  # half a second late
        stats.Call(11.0, 11.0, 11.125, "RESOURCE_EXHAUSTED"),
        stats.Call(11.5, 11.5, 13.5, "OK"),  # ends after the window
        stats.Call(12.0, 12.0, 12.5, "UNAVAILABLE"),  # meant for later
    ]
    result = stats.outcome(calls, begins_s=10.0, ends_s=12.0)
    assert result["codes"] == {"OK": 3, "RESOURCE_EXHAUSTED": 1}
    assert result["discarded"] == {"OK": 1, "UNAVAILABLE": 1}
    assert result["offered_per_s"] == 2
    latency, lateness = result["latency_us"], result["lateness_us"]
    assert (latency["calls"], latency["p50"], latency["p99"], latency["max"]) == (3, 1e6, 2e6, 2e6)
    assert latency["mean"] == pytest.approx((0.25 + 1 + 2) / 3 * 1e6, abs=0.1)
    assert (lateness["calls"], lateness["p50"], lateness["max"]) == (4, 0, 0.5e6)
    assert result["rejection_us"]["p50"] == 0.125e6
    assert stats.failed(result) == 2
    assert result["answered_per_s"] == (0.5 + 1 + 1 + 0.25) / 2


def test_a_call_counts_with_the_share_of_its_time_inside_the_window(stats: Any) -> None:
    spans = [(0.0, 2.0), (1.25, 1.75), (1.5, 2.5), (2.0, 3.0), (0.0, 1.0)]
    calls = [stats.Call(began, began, ended, "OK") for began, ended in spans]
    calls.append(stats.Call(1.0, 1.0, 2.0, "UNAVAILABLE"))
    assert stats.answered_per_s(calls, begins_s=1.0, ends_s=2.0) == 0.5 + 1 + 0.5
    assert stats.answered_per_s(calls[-1:], begins_s=1.0, ends_s=2.0) == 0


def test_percentiles_occurred_and_the_histogram_has_five_bins_a_decade(stats: Any) -> None:
    summary = stats.summary([number / 1e6 for number in range(200, 0, -1)])
    ranks = [summary[name] for name in ("p50", "p90", "p99", "p99.9", "max", "mean")]
    assert ranks == pytest.approx([100, 180, 198, 200, 200, 100.5])
    assert stats.summary([0.0, 2e-6, 2e-6, 500e-6])["histogram"] == {"1": 1, "1.585": 2, "398.1": 1}
    assert stats.summary([]) is None


def test_a_schedule_is_even_or_poisson(stats: Any) -> None:
    assert stats.schedule(4, 1.5, seed=None).tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25]
    moments = stats.schedule(1000, 10, seed=3)
    gaps = moments[1:] - moments[:-1]
    assert moments.tolist() == stats.schedule(1000, 10, seed=3).tolist()
    assert moments[0] >= 0
    assert moments[-1] < 10
    assert (gaps >= 0).all()
    assert len(moments) == pytest.approx(10_000, abs=500)  # five standard deviations
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as exponential gaps have it


def test_a_server_is_normal_again_after_five_normal_probes_in_a_row(stats: Any) -> None:
    good, slow, rejected = (10.0, "OK"), (30.0, "OK"), (5.0, "RESOURCE_EXHAUSTED")
    probes = [
        stats.Probe(number / 8, *kind)
        for number, kind in enumerate([rejected, slow, good, good, rejected, *[good] * 5, slow])
    ]
    assert stats.recovery_s(probes, normal_us=20) == pytest.approx(9 / 8 + 10e-6)
    assert stats.recovery_s(probes[:9], normal_us=20) is None


def test_a_ratio_is_the_median_of_the_rounds_own(stats: Any) -> None:
    assert stats.median_ratio([1, 9, 40], [1, 3, 20]) == 2


def test_a_row_is_reached_within_its_limit_if_no_call_failed(module: Callable[[str], Any]) -> None:
    row = module("_serve_rows").row
    assert row("a", "b", measured=150, at_most=150)["met"] == "yes"
    assert row("a", "b", measured=151, at_most=150)["met"] == "no"
    assert row("a", "b", measured=0.7, at_least=0.7)["met"] == "yes"
    assert row("a", "b", measured=0.69, at_least=0.7)["met"] == "no"
    assert row("a", "b", measured=0.9, at_least=0.7, fails=1)["met"] == "no"
    assert row("a", "b", measured=None, at_most=1)["met"] == "no"


def overloaded(module: Callable[[str], Any]) -> Any:
    """100 calls/s of capacity; 110 accepted at 1x, 99 at 2x, 88 at 10x."""

    def result(offered: float, accepted: float, p99: float | None) -> dict[str, Any]:
        latency = None if p99 is None else {"p50": p99 / 2, "p99": p99}
        probes = [[0.0, 100.0, "RESOURCE_EXHAUSTED"], *([0.25 * number, 100.0, "OK"] for number in range(1, 6))]
        empty = {"codes": {}, "rejection_us": None, "lateness_us": None}
        rates = {"offered_per_s": offered, "answered_per_s": accepted}
        return {**empty, **rates, "latency_us": latency, "probes": probes}

    by_multiple = {1: result(100, 110, 1000.0), 2: result(200, 99, 1500.0), 10: result(1000, 88, None)}
    memory = {"before": 2**20, "peak": 3 * 2**19, "after": 2**20}
    return module("_serve_rows").Overload(100.0, by_multiple, normal_us=100.0, memory=memory)


def test_an_overload_is_compared_with_the_peak_and_with_the_latency_at_the_capacity(
    module: Callable[[str], Any],
) -> None:
    rows = module("_serve_rows").overload_rows(overloaded(module), depth=4)
    assert [row["measured"] for row in rows] == [
        *(0.9, 1.5, pytest.approx(1.25 + 100e-6)),
        *(0.8, None, pytest.approx(1.25 + 100e-6)),
        1.5,
    ]
    assert [row["met"] for row in rows] == ["yes", "yes", "no", "no", "no", "no", "no"]


def test_the_picture_is_drawn(module: Callable[[str], Any], tmp_path: Path) -> None:
    picture = module("_serve_picture")
    overload = module("_serve_record").overload_summary(overloaded(module), deadline_ms=200.0)
    picture.draw(overload, tmp_path / "new" / "serve.png")
    assert (tmp_path / "new" / "serve.png").read_bytes().startswith(b"\x89PNG")


class Picky:
    """Answers Act, but refuses every third call, and ends a stream at its third message; counts what it did."""

    def __init__(self) -> None:
        self.calls = 0
        self.done: Counter[str] = Counter()
        self.requests: set[bytes] = set()

    def handlers(self) -> grpc.GenericRpcHandler:
        methods = {
            "Act": grpc.unary_unary_rpc_method_handler(self._act),
            "ActStream": grpc.stream_stream_rpc_method_handler(self._act_stream),
        }
        return grpc.method_handlers_generic_handler("kilolayer.v1.Policy", methods)

    async def _act(self, raw: bytes, context: Any) -> bytes:
        self.requests.add(raw)
        self.calls += 1
        if self.calls % 3 == 0:
            self.done[REJECTED.name] += 1
            await context.abort(REJECTED, f"{self.calls} is too many")
        self.done["OK"] += 1
        return b"1234567"

    async def _act_stream(self, _requests: Any, context: Any) -> None:
        for _ in range(2):
            self.requests.add(await context.read())
            await context.write(b"12345")
            self.done["OK"] += 1
        await context.read()
        self.done[REJECTED.name] += 1
        await context.abort(REJECTED, "3 are too many")


async def drive(load: Any, handlers: grpc.GenericRpcHandler, **plan: Any) -> dict[str, Any]:
    """Run a plan against a server in the same event loop and return its outcome."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        running: Awaitable[dict[str, Any]] = load.run(load.Plan(address=address, state_dim=2, goal_dim=1, **plan))
        return await running
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    "plan",
    [
        {"mode": "closed", "callers": 3, "channels": 2, "seconds": 0.1, "warm_s": 0.05},
        {"mode": "open", "rate_per_s": 300.0, "channels": 2, "seconds": 0.1, "warm_s": 0.05},
        {"mode": "burst", "calls": 100, "channels": 3},
    ],
    ids=lambda plan: plan["mode"],
)
async def test_the_generator_counts_exactly_what_it_got(load: Any, plan: dict[str, Any]) -> None:
    server = Picky()
    result = await drive(load, server.handlers(), rows=2, **plan)
    assert Counter(result["codes"]) + Counter(result["discarded"]) == server.done
    assert server.done[REJECTED.name] == server.calls // 3 > 0
    assert result["reply_bytes"] == [7, 7]
    assert result["details"] == {"RESOURCE_EXHAUSTED: # is too many": server.calls // 3}
    (raw,) = server.requests
    request = pb.ActRequest.FromString(raw)
    assert (len(request.state), len(request.goal)) == (4, 2)
    if plan["mode"] == "burst":
        assert (result["codes"], result["discarded"]) == ({"OK": 67, REJECTED.name: 33}, {})
        assert result["latency_us"]["calls"] == 67


async def test_a_stream_that_breaks_off_counts_what_was_on_its_way(load: Any) -> None:
    server = Picky()
    result = await drive(load, server.handlers(), mode="stream", callers=2, channels=2, seconds=20.0, rows=1)
    assert result["codes"] == {"OK": 4, REJECTED.name: 2}
    assert result["details"] == {"RESOURCE_EXHAUSTED: # are too many": 2}
    assert server.done == {"OK": 4, REJECTED.name: 2}


async def test_a_method_that_is_not_there_is_named(load: Any) -> None:
    nothing = grpc.method_handlers_generic_handler("kilolayer.v1.Policy", {})
    result = await drive(load, nothing, mode="stream", seconds=20.0)
    assert result["codes"] == {"UNIMPLEMENTED": 1}


async def test_probes_follow_an_open_load(load: Any) -> None:
    server = Picky()
    result = await drive(load, server.handlers(), mode="open", rate_per_s=0.0, seconds=0.1, probe_s=0.2)
    assert len(result["probes"]) == server.calls > 0
    assert [probe.code for probe in result["probes"][:3]] == ["OK", "OK", REJECTED.name]
    assert result["codes"] == result["discarded"] == {}


@pytest.mark.parametrize("plan", [{"mode": "closed"}, {"mode": "stream"}, {"mode": "stream", "in_flight": 3}])
async def test_the_echo_answers_with_as_many_actions_as_there_are_rows(
    load: Any, module: Callable[[str], Any], plan: dict[str, Any]
) -> None:
    echo = module("_echo")
    result = await drive(load, echo.handlers(echo.Sizes(state_dim=2, action_dim=5)), rows=3, seconds=0.05, **plan)
    assert set(result["codes"]) == {"OK"}
    expected = pb.ActResponse(
        action=[0.5] * 15, policy="echo", version="1", queue_us=100, compute_us=1000, batch_rows=3
    ).ByteSize()
    assert result["reply_bytes"] == [expected, expected]


def test_processes_are_started_loaded_and_stopped(module: Callable[[str], Any], tmp_path: Path) -> None:
    processes = module("_serve_processes")
    command = processes.echo_command(state_dim=2, action_dim=1)
    with (
        processes.running("echo", command, folder=tmp_path) as echo,
        processes.load_generator() as generator,
        processes.watched_memory(echo) as memory,
    ):
        plan = {"address": echo.address, "mode": "burst", "calls": 20, "state_dim": 2, "goal_dim": 1}
        assert [generator.run(plan)["codes"] for _ in range(2)] == [{"OK": 20}] * 2
    assert min(memory) > 2**20


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; print('no room', file=sys.stderr)", "was not ready .*\nno room"),
        (
            "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3));"
            "print('ready: grpc=here', file=sys.stderr, flush=True); time.sleep(600)",
            "server ended with exit code 3",
        ),
    ],
)
def test_a_server_that_does_not_start_or_stop_well_is_an_error(
    module: Callable[[str], Any], tmp_path: Path, script: str, message: str
) -> None:
    processes = module("_serve_processes")
    command = [sys.executable, "-c", script]
    with pytest.raises(processes.BenchmarkError, match=message), processes.running("server", command, folder=tmp_path):
        pass


def test_a_targets_processor_time_is_that_of_its_workers_too(module: Callable[[str], Any]) -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            target = module("_serve_processes").Target("parent", "", process.pid)
            assert target.cpu_s >= 0.29  # of which the parent's own is some hundredths
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_servers_command_line_is_one_that_it_takes(module: Callable[[str], Any]) -> None:
    processes = module("_serve_processes")

    def config(**settings: int) -> Any:
        command = processes.server_command(Path("there"), processes.ServerSettings(**settings))
        return parse(command[2:], {})

    assert config(workers=2).workers == 2
    usual, alone, large = (
        config(),
        config(max_call_rows=1, max_batch_rows=1),
        config(max_call_rows=4096, max_batch_rows=4096, max_queue_rows=8192),
    )
    assert (usual.policies, usual.listen, usual.max_queue_rows) == ((Path("there"),), "127.0.0.1:0", 1024)
    limits = [(config.max_call_rows, config.max_batch_rows) for config in (usual, alone, large)]
    assert limits == [(256, 256), (1, 1), (4096, 4096)]
    assert large.max_queue_rows == 8192


def test_a_profile_is_told_by_own_time_without_the_start(module: Callable[[str], Any], tmp_path: Path) -> None:
    def entry(calls: int, own_s: float) -> tuple[Any, ...]:
        return (calls, calls, own_s, own_s, {})

    handle, call = ("/somewhere/serving/api/policy_service.py", 12, "handle"), ("~", 0, "<method of thing at 0x7f3a>")
    load, start = ("~", 0, "<built-in method load>"), ("~", 0, "<built-in method start>")
    idle = {load: entry(5, 2.0), start: entry(2, 1.0), call: entry(1, 0.25)}
    loaded = {load: entry(6, 2.25), start: entry(2, 3.0), call: entry(11, 0.75), handle: entry(3, 1.5)}
    for name, table in {"idle": idle, "loaded": loaded}.items():
        written = pstats.Stats()
        vars(written)["stats"] = table
        written.dump_stats(tmp_path / name)
    lines = module("_serve_processes").top_functions(tmp_path / "loaded", idle=tmp_path / "idle", count=2)
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        ["1.500", "3", "serving/api/policy_service.py:12 handle"],
        ["0.500", "10", "<method of thing>"],
    ]


def test_what_bounds_a_load_is_told_where_it_is_not_reached(module: Callable[[str], Any]) -> None:
    rows = module("_serve_rows")
    table = [rows.row("a", "x", measured=2, at_most=1), rows.row("b", "x", measured=1, at_most=1)]
    table += table[:1]

    def phase(load: str, target: str, server: float, generator: float) -> dict[str, Any]:
        cpu = {"server_cpu_share": server, "server_cpu_us_per_call": 1000 * server, "generator_cpu_share": generator}
        return {"load": load, "target": target, **cpu}

    phases = [
        *(phase("a", "echo", server, 0.5) for server in (0.5, 0.75, 1.0)),
        phase("a", "server", 1.25, 0.25),
        phase("b", "server", 1.0, 1.0),
        {"load": "a", "target": "compiled call in process"},
    ]
    assert rows.bounds(table, phases) == [
        "a: echo 0.75 cores, 750 us a call; generator 0.50 cores",
        "a: server 1.25 cores, 1250 us a call; generator 0.25 cores",
    ]
