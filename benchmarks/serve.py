"""How near the server comes to its two floors, and what it does under more than it can bear.

    python benchmarks/serve.py --json serve.json

In one run on one machine: `serving/run.py` with random policies, a process of its own, loaded by another
(`_serve_load.py`). The floors are an echo server with the same messages and no model (`_echo.py`), and the compiled
call in this process. The server takes turns with its floors in short rounds; the median of the rounds' own ratios
counts. Latencies run from the moment a call was meant to be sent.

Beside the record, under its name, is a picture of latency and accepted calls against offered load. What bounds a figure
stands under the table: how much of the processor server and generator took. The record has it for every phase, and how
late the generator sent. `--profile` adds where the server's event loop spends its time.
"""

import dataclasses
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
from _serve_picture import draw, offers
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
from _serve_rows import Bench, Row

DEFAULTS = ServerSettings()
PROFILED_FUNCTIONS = 25
TABLE_COLUMNS = "150"  # rich takes 80 where it sees no terminal


@dataclasses.dataclass(frozen=True)
class Options:
    """The server beside an echo server and the compiled call, and under overload."""

    json: Path | None = None
    """File for the record; the picture is written beside it."""
    depths: train_step.Depths = (4, 64)
    """Depths of the policies, each served by itself; batching and overload are measured on the last."""
    width: int = 256
    """Width of the policies."""
    state_dim: int = 29
    """Values in a state; the defaults are an ant's."""
    goal_dim: int = 2
    """Values in a goal."""
    action_dim: int = 8
    """Values in an action."""
    callers: int = 32
    """Callers, and streams, at once."""
    batched_callers: int = 64
    """Callers at once where batching is compared with none."""
    large_rows: int = 4096
    """Rows of a large call."""
    burst_calls: int = 10_000
    """Calls that are sent at once."""
    deadline_ms: float = 200.0
    """Of each call that is offered beyond the capacity."""
    workers: int = 1
    """Processes of the server, all its loads alike."""
    rounds: int = 5
    """Rounds in which server and floor take turns; the median counts."""
    seconds: float = 3.0
    """Of each load in a round; offers take twice as long."""
    profile: bool = False
    """Whether to run the callers once more on a server under cProfile."""
    quick: bool = False
    """Tiny policies, short rounds: whether it works, not how fast."""

    @property
    def settings(self) -> ServerSettings:
        """Of the server that takes small calls."""
        return ServerSettings(workers=self.workers)

    @property
    def large_settings(self) -> ServerSettings:
        """Of the server that takes large calls."""
        rows = self.large_rows
        return ServerSettings(rows, max_batch_rows=rows, max_queue_rows=2 * rows, workers=self.workers)


def main() -> None:
    """Measure, draw and publish."""
    options = tyro.cli(Options)
    if options.quick:
        quick = {"depths": (4, 8), "width": 16, "rounds": 3, "seconds": 0.3, "burst_calls": 500, "large_rows": 512}
        options = dataclasses.replace(options, **quick)
    # As the server does, for the compiled call to be the same; and an accelerator's memory is shared with it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("COLUMNS", TABLE_COLUMNS)
    about = _record.machine()
    with tempfile.TemporaryDirectory(prefix="kilolayer-serve-") as folder:
        rows, details = measure(options, Path(folder))
    if options.json is not None:
        draw(details["overload"], options.json.with_suffix(".png"), deadline_ms=options.deadline_ms)
    notes = (
        f"width {options.width}, {options.state_dim} + {options.goal_dim} values in, {options.action_dim} out; "
        f"medians of {options.rounds} rounds of {options.seconds:g} s; deadlines of offers {options.deadline_ms:g} ms"
    )
    _record.publish("one policy served", rows, about=about, json_file=options.json, notes=notes, details=details)
    for line in (*details["bounds"], *details.get("profile", ())):
        print(line)
    if any("UNIMPLEMENTED" in phase.get(part, ()) for phase in details["phases"] for part in ("codes", "discarded")):
        sys.exit("this server answers UNIMPLEMENTED to a method that is measured, so its rows above say no")


def measure(options: Options, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Every load in turn: the rows of the table, and what the record holds besides."""
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
            "overload": offers(found),
            "phases": bench.phases,
        }
        if options.profile:
            details["profile"] = profile(options, bench, policies[0])
    return rows, details


def serving(
    name: str, policy: Policy, settings: ServerSettings = DEFAULTS, *, profile: Path | None = None
) -> AbstractContextManager[Target]:
    """The server itself, on `policy`."""
    command = server_command(policy.folder, settings, profile=profile)
    print(f"{name}, depth {policy.depth} ...", file=sys.stderr)
    return running(f"{name} depth {policy.depth}", command, folder=policy.folder.parent)


def small_calls(options: Options, bench: Bench, policy: Policy, server: Target) -> list[Row]:
    """One row a call, from one caller to thousands."""
    compute, depth = compiled_call(policy, 1, seconds=options.seconds), policy.depth
    return [
        *_serve_rows.one_caller(bench, server, depth=depth, compute=compute),
        *_serve_rows.many_callers(bench, server, depth=depth, callers=options.callers),
        *_serve_rows.streams(bench, server, depth=depth, callers=options.callers),
        *_serve_rows.burst(bench, server, depth=depth, calls=options.burst_calls),
    ]


def large_calls(options: Options, bench: Bench, policy: Policy) -> list[Row]:
    """Thousands of rows a call."""
    size = options.large_rows
    compute = compiled_call(policy, size, seconds=options.seconds)
    with serving("server of large calls", policy, options.large_settings) as server:
        return _serve_rows.large_calls(bench, server, depth=policy.depth, rows=size, compute=compute)


def batching(options: Options, bench: Bench, policy: Policy, server: Target) -> list[Row]:
    """The server and one that does not batch; one is idle while the other is loaded."""
    alone = ServerSettings(max_call_rows=1, max_batch_rows=1, workers=options.workers)
    with serving("server without batching", policy, alone) as other:
        return _serve_rows.batching(bench, server, other, depth=policy.depth, callers=options.batched_callers)


def profile(options: Options, bench: Bench, policy: Policy) -> list[str]:
    """Where the server's event loop spends its time under many callers, by own time; the profiler slows it down."""
    idle, loaded = (policy.folder.parent / f"{name}.profile" for name in ("idle", "loaded"))
    with serving("server under cProfile, idle", policy, profile=idle):
        pass
    with serving("server under cProfile", policy, profile=loaded) as server:
        plan = {"mode": "closed", "callers": options.callers, "channels": options.callers}
        bench.load(server, "under cProfile", **plan)
    return top_functions(loaded, idle=idle, count=PROFILED_FUNCTIONS)


if __name__ == "__main__":
    main()
