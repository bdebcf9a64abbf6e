"""What serving adds to the bare network, by depth and rows of a call.

    python benchmarks/serve_batches.py --json serve_batches.json

For every depth a server of its own (`serving/run.py`), all of them compiled before anything is measured. A lone caller
sends calls of so many rows one after another, then a few callers at once; before that, the same compiled call runs in
this process, and an echo server answers the same messages: what the wire costs without any computation.
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
from typing import Any

import _record
import jax
import numpy as np
import train_step
import tyro
from _serve_policies import Policy, compiled_call, publish
from _serve_processes import ServerSettings, Target, echo_command, load_generator, running, server_command
from _serve_rows import Bench, Row

TABLE_COLUMNS = "150"  # rich takes 80 where it sees no terminal


@dataclasses.dataclass(frozen=True)
class Options:
    """Calls of few and of many rows against the compiled call, by depth."""

    json: Path | None = None
    """File for the record."""
    depths: train_step.Depths = (64, 256, 1024)
    """Depths of the policies."""
    rows: train_step.Depths = (1, 16, 256, 4096)
    """Rows of a call; the most is also that of a batch."""
    callers: int = 4
    """Callers at once where rows per second are counted."""
    width: int = 256
    """Width of the policies."""
    state_dim: int = 29
    """Values in a state; the defaults are an ant's."""
    goal_dim: int = 2
    """Values in a goal."""
    action_dim: int = 8
    """Values in an action."""
    rounds: int = 3
    """Rounds; the median counts."""
    seconds: float = 1.0
    """Of each load in a round."""
    quick: bool = False
    """Tiny policies, short rounds: whether it works, not how fast."""


def main() -> None:
    """Measure and publish."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4, 8), rows=(1, 16), width=16, rounds=1, seconds=0.2)
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # as the server
    os.environ.setdefault("COLUMNS", TABLE_COLUMNS)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # servers and this process share an accelerator
    about = _record.machine()
    with tempfile.TemporaryDirectory(prefix="kilolayer-serve-") as folder, ExitStack() as stack:
        rows, phases = measure(options, Path(folder), stack)
    notes = (
        f"width {options.width}; p50, p99: us of a lone caller's calls; rows/s: of {options.callers} callers at once; "
        "alone: the compiled call in process; wire: an echo server's p50 on the same messages; "
        f"not network: the share of the p50 that is not the compiled call; medians of {options.rounds} rounds"
    )
    details = {"phases": phases}
    _record.publish("calls by rows", rows, about=about, json_file=options.json, notes=notes, details=details)


def measure(options: Options, folder: Path, stack: ExitStack) -> tuple[list[Row], list[dict[str, Any]]]:
    """Every depth and number of rows in turn: the table, and the outcome of every load."""
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
    """A server for each policy; they compile at the same time, and each is idle unless it is measured."""
    most = max(options.rows)
    settings = ServerSettings(max_call_rows=most, max_batch_rows=most, max_queue_rows=options.callers * most)

    def start(policy: Policy) -> Target:
        command = server_command(policy.folder, settings)
        return stack.enter_context(running(f"server depth {policy.depth}", command, folder=policy.folder.parent))

    with ThreadPoolExecutor(len(policies)) as pool:
        return list(pool.map(start, policies))


def measure_calls(
    options: Options, bench: Bench, server: Target, depth: int, *, rows: int, compute: Callable[[], np.ndarray]
) -> Row:
    """One line of the table."""
    what = f"{rows} rows a call, depth {depth}"
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        alone = np.percentile(compute(), (50, 99)) * 1e6
        echo = bench.load(bench.echo, what, mode="closed", rows=rows)
        lone = bench.load(server, what, mode="closed", rows=rows)
        several = bench.load(server, what, mode="closed", rows=rows, callers=options.callers, channels=options.callers)
        rounds.append(
            {
                "p50": lone["latency_us"]["p50"],
                "p99": lone["latency_us"]["p99"],
                "alone p50": float(alone[0]),
                "alone p99": float(alone[1]),
                "wire": echo["latency_us"]["p50"],
                "not network": 1 - float(alone[0]) / lone["latency_us"]["p50"],
                "rows/s": rows * several["answered_per_s"],
                "alone rows/s": rows / float(alone[0]) * 1e6,
                "of alone": several["answered_per_s"] * float(alone[0]) / 1e6,
            }
        )
    medians = {figure: statistics.median(each[figure] for each in rounds) for figure in rounds[0]}
    return {"depth": depth, "rows": rows, **medians}


if __name__ == "__main__":
    main()
