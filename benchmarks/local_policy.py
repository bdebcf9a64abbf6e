"""Compare a policy on the robot itself with a served one: latency of a single caller, and the difference of actions.

    python benchmarks/local_policy.py --json local_policy.json

The ways take turns in short rounds: LocalPolicy with ONNX Runtime and with numpy in this process, and PolicyClient with
a server (`serving/run.py`, a process of its own) over loopback and over a Unix socket. Everything runs on one core, the
servers too, and numpy and ONNX Runtime use one thread. The policies have random parameters.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of numpy; read when it is imported

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import _record
import numpy as np
import tyro
from _serve_policies import Policy, publish
from _serve_processes import ServerSettings, running, server_command

from kilolayer import LocalPolicy, PolicyClient
from policy import bundle
from policy.exchange.export import export

SIZES = {"state_dim": 29, "goal_dim": 2, "action_dim": 8}  # as in the ant environment
LIMIT_S = 60.0
BACKENDS = ("onnx", "numpy")
COMPARED_ROWS = 256
SEED = 7


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare a policy on the robot itself with a served one."""

    json: Path | None = None
    """File for the record."""
    depths: tuple[int, ...] = (4, 64)
    """Depths of the policies whose latency is measured."""
    compared_depths: tuple[int, ...] = (4, 64, 1024)
    """Depths of the policies whose actions are compared with those of the server."""
    width: int = 256
    """Width of the policies."""
    rounds: int = 7
    """Number of rounds in which the ways take turns. Figures are medians over rounds."""
    seconds: float = 3.0
    """Duration of each way in a round, in seconds."""
    quick: bool = False
    """Narrow policies and short rounds: checks that the script works; the figures mean nothing."""


class Setup(NamedTuple):
    """One policy in all its ways."""

    local: dict[str, LocalPolicy]  # by backend
    served: dict[str, PolicyClient]  # by the kind of address
    opened_s: dict[str, float]  # that it took to open a local policy, its verification included


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, width=16, rounds=2, seconds=0.2)
    about = _record.machine()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this process; those that it starts inherit it
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for depth in sorted({*options.depths, *options.compared_depths}):
        with tempfile.TemporaryDirectory(prefix="kilolayer-local-") as folder:
            policy = publish(Path(folder), depth, width=options.width, **SIZES)
            with opened(policy, Path(folder)) as setup:
                if depth in options.compared_depths:
                    differences += [compare(setup, backend, depth=depth) for backend in BACKENDS]
                if depth in options.depths:
                    rows += measure(setup, depth, options=options)
    for each in differences:
        print("largest difference to the server:", ", ".join(f"{name} {value}" for name, value in each.items()))
    notes = (
        f"one row of {SIZES['state_dim']} + {SIZES['goal_dim']} values, width {options.width}, one core for all"
        f" processes; medians of {options.rounds} rounds of {options.seconds:g} s"
    )
    _record.report(
        "a policy on the robot itself and a served one",
        rows,
        about=about,
        json_file=options.json,
        notes=notes,
        details={"largest_differences": differences},
    )


@contextlib.contextmanager
def opened(policy: Policy, folder: Path) -> Generator[Setup]:
    """Export and serve `policy` until the block ends."""
    (version,) = policy.folder.iterdir()
    exported = export(bundle.read(version), folder / "exported", formats=("onnx", "safetensors"))
    settings = ServerSettings(max_call_rows=COMPARED_ROWS, max_batch_rows=COMPARED_ROWS)
    command = server_command(policy.folder, settings)
    socket = f"unix:{folder}/act.sock"
    on_socket = [socket if word == "127.0.0.1:0" else word for word in command]
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(running("loopback", command, folder=folder))
        stack.enter_context(running("Unix socket", on_socket, folder=folder))
        served = {
            name: stack.enter_context(PolicyClient(address, timeout_s=LIMIT_S))
            for name, address in (("loopback", tcp.address), ("Unix socket", socket))
        }
        local: dict[str, LocalPolicy] = {}
        opened_s: dict[str, float] = {}
        for backend in BACKENDS:
            began_s = time.perf_counter()
            local[backend] = stack.enter_context(LocalPolicy(exported, backend=backend, timeout_s=LIMIT_S))
            opened_s[backend] = time.perf_counter() - began_s
        yield Setup(local, served, opened_s)


def compare(setup: Setup, backend: str, *, depth: int) -> dict[str, Any]:
    """Return the largest differences between the local policy and the server over many random rows."""
    random = np.random.default_rng(depth)
    state, goal = (random.normal(size=(COMPARED_ROWS, SIZES[name])) for name in ("state_dim", "goal_dim"))
    local, served = setup.local[backend], setup.served["loopback"]

    def largest(**how: int) -> float:
        return float(np.abs(local.act(state, goal, **how).chunk - served.act(state, goal, **how).chunk).max())

    return {
        "depth": depth,
        "backend": backend,
        "rows": COMPARED_ROWS,
        "action": largest(),
        "sampled_action": largest(seed=SEED),
    }


def measure(setup: Setup, depth: int, *, options: Options) -> list[dict[str, Any]]:
    """Return the rows of the table for one policy: one for each way."""
    random = np.random.default_rng(0)
    state, goal = (random.normal(size=SIZES[name]).astype(np.float32) for name in ("state_dim", "goal_dim"))
    ways: dict[str, Callable[..., Any]] = {f"local, {name}": each.act for name, each in setup.local.items()}
    ways |= {f"served, {name}": each.act for name, each in setup.served.items()}

    def repeat(act: Callable[..., Any], seconds: float) -> np.ndarray:
        """Return the latency of each call, in microseconds."""
        moments = [time.perf_counter()]
        while moments[-1] < moments[0] + seconds:
            act(state, goal)
            moments.append(time.perf_counter())
        return np.diff(moments) * 1e6

    for act in ways.values():
        repeat(act, options.seconds / 5)
    rounds = [{name: repeat(act, options.seconds) for name, act in ways.items()} for _ in range(options.rounds)]
    return [
        {
            "depth": depth,
            "way": name,
            "p50 us": float(np.median([np.percentile(each[name], 50) for each in rounds])),
            "p99 us": float(np.median([np.percentile(each[name], 99) for each in rounds])),
            "to open s": setup.opened_s.get(name.removeprefix("local, ")),
        }
        for name in ways
    ]


if __name__ == "__main__":
    main()
