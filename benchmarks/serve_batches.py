"""Measure what serving adds to the compiled network, by depth and rows per call.

    python benchmarks/serve_batches.py --json serve_batches.json

Every depth has its own server (`serving/run.py`). All servers have compiled before the measurements begin. For every
number of rows, four loads follow one another: the compiled call in this process; an echo server with the same messages,
which shows the cost of the network alone; the server with a single caller; the server with several callers.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import _record
import jax
import numpy as np
import train_step
import tyro
from _serve_policies import Policy, compiled_call, publish
from _serve_processes import ServerSettings, Target, echo_command, load_generator, running, server_command
from _serve_record import load_summaries
from _serve_rows import Bench, Phase, Row

TABLE_COLUMNS = "170"  # rich assumes 80 without a terminal


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare calls of few and of many rows with the compiled call, by depth."""

    json: Path | None = None
    """File for the record."""
    depths: train_step.Depths = (64, 256, 1024)
    """Depths of the policies."""
    rows: train_step.Depths = (1, 16, 256, 4096)
    """Rows per call. The largest number is also the largest batch."""
    callers: int = 4
    """Number of concurrent callers in the measurement of rows per second."""
    width: int = 256
    """Width of the policies."""
    state_dim: int = 29
    """Number of values in a state. The default sizes are those of the ant environment."""
    goal_dim: int = 2
    """Number of values in a goal."""
    action_dim: int = 8
    """Number of values in an action."""
    rounds: int = 3
    """Number of rounds. Figures are medians over rounds."""
    seconds: float = 1.0
    """Duration of each load in a round, in seconds."""
    quick: bool = False
    """Tiny policies and short rounds: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4, 8), rows=(1, 16), width=16, rounds=1, seconds=0.2)
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # the server's setting
    os.environ.setdefault("COLUMNS", TABLE_COLUMNS)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # servers and this process share the accelerator
    about = _record.machine()
    with tempfile.TemporaryDirectory(prefix="kilolayer-serve-") as folder, ExitStack() as stack:
        rows, phases = measure(options, Path(folder), stack)
    notes = (
        f"width {options.width}; p50, p99: us, single caller; rows/s: {options.callers} concurrent callers; "
        "compiled: the compiled call in process; echo: p50 of an echo server, same messages; "
        f"overhead: fraction of p50 above the compiled call; medians of {options.rounds} rounds"
    )
    details = {"loads": load_summaries(phases)}
    _record.report("calls by rows", rows, about=about, json_file=options.json, notes=notes, details=details)


def measure(options: Options, folder: Path, stack: ExitStack) -> tuple[list[Row], list[Phase]]:
    """Measure every depth and number of rows; return the rows of the table and the phases."""
    sizes = {"state_dim": options.state_dim, "goal_dim": options.goal_dim}
    command = echo_command(state_dim=options.state_dim, action_dim=options.action_dim)
    bench = Bench(
        stack.enter_context(load_generator()),
        stack.enter_context(running("echo", command, folder=folder)),
        rounds=options.rounds,
        seconds=options.seconds,
        warm_s=options.seconds / 5,
        phases=[],
        **sizes,
    )
    policies = [
        publish(folder, depth, width=options.width, action_dim=options.action_dim, **sizes) for depth in options.depths
    ]
    servers = start_all(options, policies, stack)
    table: list[Row] = []
    for policy, server in zip(policies, servers, strict=True):
        for rows in options.rows:
            print(f"depth {policy.depth}, {rows} rows ...", file=sys.stderr)
            compute = compiled_call(policy, rows, seconds=options.seconds)
            table.append(measure_calls(options, bench, server, policy.depth, rows=rows, compute=compute))
    return table, bench.phases


def start_all(options: Options, policies: list[Policy], stack: ExitStack) -> list[Target]:
    """Start a server for each policy. They compile concurrently, and each is idle unless it is measured."""
    largest = max(options.rows)
    settings = ServerSettings(max_call_rows=largest, max_batch_rows=largest, max_queue_rows=options.callers * largest)

    def start(policy: Policy) -> Target:
        command = server_command(policy.folder, settings)
        return stack.enter_context(running(f"server depth {policy.depth}", command, folder=policy.folder.parent))

    with ThreadPoolExecutor(len(policies)) as pool:
        return list(pool.map(start, policies))


def measure_calls(
    options: Options, bench: Bench, server: Target, depth: int, *, rows: int, compute: Callable[[], np.ndarray]
) -> Row:
    """Return one row of the table."""
    what = f"{rows} rows a call, depth {depth}"
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        compiled = np.percentile(compute(), (50, 99)) * 1e6
        echo = bench.load(bench.echo, what, mode="closed", rows=rows)
        single = bench.load(server, what, mode="closed", rows=rows)
        several = bench.load(server, what, mode="closed", rows=rows, callers=options.callers, channels=options.callers)
        rounds.append(
            {
                "p50": single["latency_us"]["p50"],
                "p99": single["latency_us"]["p99"],
                "compiled p50": float(compiled[0]),
                "compiled p99": float(compiled[1]),
                "echo p50": echo["latency_us"]["p50"],
                "overhead": 1 - float(compiled[0]) / single["latency_us"]["p50"],
                "rows/s": rows * several["answered_per_s"],
                "compiled rows/s": rows / float(compiled[0]) * 1e6,
                "of compiled": several["answered_per_s"] * float(compiled[0]) / 1e6,
            }
        )
    medians = {figure: statistics.median(each[figure] for each in rounds) for figure in rounds[0]}
    return {"depth": depth, "rows": rows, **medians}


if __name__ == "__main__":
    main()
