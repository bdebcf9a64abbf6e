"""Compare the server with an echo server and with the compiled call, and measure it under overload.

    python benchmarks/serve.py --json serve.json

The server (`serving/run.py` with random policies) and the load generator (`_serve_load.py`) are separate processes on
this machine. There are two references: an echo server with the same messages and no model (`_echo.py`), and the
compiled call in this process. Server and reference take turns in short rounds; a figure is the median of the ratios of
the rounds. Latencies start at the scheduled send time.

A picture of latency and accepted calls by offered load is written beside the record. The lines below the table give the
processor use of server and generator for every load that misses a requirement. The record has it for every load, with
the delay of the generator. `--profile` adds the functions in which the server's event loop spends most time.
"""

import dataclasses
import json
import os
import sys
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import _record
import _serve_rows
import jax
import train_step
import tyro
from _serve_picture import draw
from _serve_policies import Policy, compiled_call, publish
from _serve_processes import (
    ServerSettings,
    Target,
    echo_command,
    load_generator,
    running,
    server_command,
    top_functions,
)
from _serve_record import load_summaries, overload_summary
from _serve_rows import Bench, Phase, Row

DEFAULTS = ServerSettings()
PROFILED_FUNCTIONS = 25
TABLE_COLUMNS = "170"  # rich assumes 80 without a terminal


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the server with an echo server and with the compiled call, and measure it under overload."""

    json: Path | None = None
    """File for the record. The picture is written beside it."""
    redraw: Path | None = None
    """Existing record whose picture is drawn again. Nothing is measured."""
    depths: train_step.Depths = (4, 64)
    """Depths of the policies, served one after another. Batching and overload are measured on the last."""
    width: int = 256
    """Width of the policies."""
    state_dim: int = 29
    """Number of values in a state. The default sizes are those of the ant environment."""
    goal_dim: int = 2
    """Number of values in a goal."""
    action_dim: int = 8
    """Number of values in an action."""
    callers: int = 32
    """Number of concurrent callers, and of concurrent streams."""
    batched_callers: int = 64
    """Number of concurrent callers in the comparison with and without batching."""
    large_rows: int = 4096
    """Rows in a large call."""
    burst_calls: int = 10_000
    """Number of calls sent at the same moment."""
    deadline_ms: float = 200.0
    """Deadline of each call in the overload measurement, in milliseconds."""
    workers: int = 1
    """Number of server processes (the server's `--workers`)."""
    rounds: int = 5
    """Number of rounds in which server and reference take turns. Figures are medians over rounds."""
    seconds: float = 3.0
    """Duration of each load in a round, in seconds. Overload measurements take twice as long."""
    profile: bool = False
    """Repeat the load of concurrent callers on a server under cProfile, and list the slowest functions."""
    quick: bool = False
    """Tiny policies and short rounds: checks that the script works; the figures mean nothing."""

    @property
    def settings(self) -> ServerSettings:
        """Settings of the server for small calls."""
        return ServerSettings(workers=self.workers)

    @property
    def large_settings(self) -> ServerSettings:
        """Settings of the server for large calls."""
        rows = self.large_rows
        return ServerSettings(rows, max_batch_rows=rows, max_queue_rows=2 * rows, workers=self.workers)


def main() -> None:
    """Measure, draw, and write the record."""
    options = tyro.cli(Options)
    if options.redraw is not None:
        draw(json.loads(options.redraw.read_text())["overload"], options.redraw.with_suffix(".png"))
        return
    if options.quick:
        quick = {"depths": (4, 8), "width": 16, "rounds": 3, "seconds": 0.3, "burst_calls": 500, "large_rows": 512}
        options = dataclasses.replace(options, **quick)
    # The server's setting, so that the compiled call is the same. An accelerator's memory is shared with the server.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("COLUMNS", TABLE_COLUMNS)
    about = _record.machine()
    with tempfile.TemporaryDirectory(prefix="kilolayer-serve-") as folder:
        rows, details, phases = measure(options, Path(folder))
    if options.json is not None:
        draw(details["overload"], options.json.with_suffix(".png"))
    notes = (
        f"width {options.width}, {options.state_dim} + {options.goal_dim} values in, {options.action_dim} out; "
        f"medians of {options.rounds} rounds of {options.seconds:g} s; overload deadlines {options.deadline_ms:g} ms"
    )
    _record.report("one policy served", rows, about=about, json_file=options.json, notes=notes, details=details)
    for line in (*details["bounds"], *details.get("profile", ())):
        print(line)
    if any("UNIMPLEMENTED" in phase.get(part, ()) for phase in phases for part in ("codes", "discarded")):
        sys.exit("the server answers UNIMPLEMENTED to a measured method; the requirements of its rows count as missed")


def measure(options: Options, folder: Path) -> tuple[list[Row], dict[str, Any], list[Phase]]:
    """Run every load; return the rows of the table, the other entries of the record, and the phases."""
    widths = {"state_dim": options.state_dim, "goal_dim": options.goal_dim, "action_dim": options.action_dim}
    policies = [publish(folder, depth, width=options.width, **widths) for depth in options.depths]
    rows: list[Row] = []
    with ExitStack() as stack:
        generator = stack.enter_context(load_generator())
        command = echo_command(state_dim=options.state_dim, action_dim=options.action_dim)
        echo = stack.enter_context(running("echo", command, folder=folder))
        bench = Bench(
            generator,
            echo,
            state_dim=options.state_dim,
            goal_dim=options.goal_dim,
            rounds=options.rounds,
            seconds=options.seconds,
            warm_s=options.seconds / 5,
            phases=[],
        )
        for policy in policies[:-1]:
            with serving("server", policy, options.settings) as server:
                rows += small_calls(options, bench, policy, server)
            rows += large_calls(options, bench, policy)
        deepest = policies[-1]
        with serving("server", deepest, options.settings) as server:
            rows += small_calls(options, bench, deepest, server)
            rows += batching(options, bench, deepest, server)
            found = _serve_rows.overload(bench, server, depth=deepest.depth, deadline_s=options.deadline_ms / 1000)
        rows += _serve_rows.overload_rows(found, depth=deepest.depth)
        rows += large_calls(options, bench, deepest)
        details: dict[str, Any] = {
            "bounds": _serve_rows.bounds(rows, bench.phases),
            "overload": overload_summary(found, deadline_ms=options.deadline_ms),
            "loads": load_summaries(bench.phases),
        }
        if options.profile:
            details["profile"] = profile(options, bench, policies[0])
    return rows, details, bench.phases


def serving(
    name: str, policy: Policy, settings: ServerSettings = DEFAULTS, *, profile: Path | None = None
) -> AbstractContextManager[Target]:
    """Run the server with `policy` until the block ends."""
    command = server_command(policy.folder, settings, profile=profile)
    print(f"{name}, depth {policy.depth} ...", file=sys.stderr)
    return running(f"{name} depth {policy.depth}", command, folder=policy.folder.parent)


def small_calls(options: Options, bench: Bench, policy: Policy, server: Target) -> list[Row]:
    """Run the loads of one row per call, from one caller to a burst of thousands."""
    compute, depth = compiled_call(policy, 1, seconds=options.seconds), policy.depth
    return [
        *_serve_rows.one_caller(bench, server, depth=depth, compute=compute),
        *_serve_rows.many_callers(bench, server, depth=depth, callers=options.callers),
        *_serve_rows.streams(bench, server, depth=depth, callers=options.callers),
        *_serve_rows.burst(bench, server, depth=depth, calls=options.burst_calls),
    ]


def large_calls(options: Options, bench: Bench, policy: Policy) -> list[Row]:
    """Run the load of thousands of rows per call."""
    size = options.large_rows
    compute = compiled_call(policy, size, seconds=options.seconds)
    with serving("server of large calls", policy, options.large_settings) as server:
        return _serve_rows.large_calls(bench, server, depth=policy.depth, rows=size, compute=compute)


def batching(options: Options, bench: Bench, policy: Policy, server: Target) -> list[Row]:
    """Compare the server with one that does not batch. Each is idle while the other is loaded."""
    unbatched = ServerSettings(max_call_rows=1, max_batch_rows=1, workers=options.workers)
    with serving("server without batching", policy, unbatched) as other:
        return _serve_rows.batching(bench, server, other, depth=policy.depth, callers=options.batched_callers)


def profile(options: Options, bench: Bench, policy: Policy) -> list[str]:
    """Return the functions of the event loop with the longest own time, under concurrent callers.

    The profiler slows the server down, so the times compare only with one another.
    """
    idle, loaded = (policy.folder.parent / f"{name}.profile" for name in ("idle", "loaded"))
    with serving("server under cProfile, idle", policy, profile=idle):
        pass
    with serving("server under cProfile", policy, profile=loaded) as server:
        plan = {"mode": "closed", "callers": options.callers, "channels": options.callers}
        bench.load(server, "under cProfile", **plan)
    return top_functions(loaded, idle=idle, count=PROFILED_FUNCTIONS)


if __name__ == "__main__":
    main()
