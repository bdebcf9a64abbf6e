"""kilolayer-policy diff: where two versions of a policy act differently.

Compared are the deterministic actions, on the probes of both, on recorded rows, and on random states.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from policy import published
from policy.spec import PolicySpec
from training.policy_command import folders
from training.policy_command.differences import Difference
from training.policy_command.input_rows import InputRows, of_probes, random_rows, recorded_rows
from training.policy_command.result import CommandError, Result, UsageError

if TYPE_CHECKING:
    from policy import LoadedPolicy

HELP = "show where two versions act differently"
_RANDOM, _WORST = 1000, 5
_SIZES = ("state_dim", "goal_dim", "action_dim", "action_chunk")
_MAX_ROWS = 1024  # of one computation, which bounds the memory
_MAX_SEED = 2**63 - 1
_DIFFERENT = 3  # exit code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two policies, and what to compare them on."""
    for name in ("first", "second"):
        parser.add_argument(
            name, metavar=name.upper(), type=Path, help="a published version, or a folder of versions: the newest one"
        )
    parser.add_argument(
        "--rows", metavar="FILE", type=Path, nargs="+", default=[], help=".npz files with the arrays state and goal"
    )
    parser.add_argument(
        "--random",
        metavar="N",
        type=int,
        help=f"random states within the range of training (default: {_RANDOM} if both policies have a range)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random states (default: 0)")
    parser.add_argument(
        "--worst", type=int, default=_WORST, metavar="K", help=f"rows to show, the worst first (default: {_WORST})"
    )
    parser.add_argument(
        "--within",
        type=float,
        metavar="D",
        help=f"exit with {_DIFFERENT} if an action in [-1, 1] differs by more than D",
    )


def run(arguments: argparse.Namespace) -> Result:
    """Compare the two policies.

    Raises:
        UsageError: the policies have other sizes, an argument is out of range, or a file of rows does not fit.
        MissingVersionError, CommandError, OSError: a policy cannot be read.
    """
    _check(arguments)
    paths = [published.find(folder) for folder in (arguments.first, arguments.second)]
    first, second = map(folders.load, paths)
    _require_same_sizes(first.spec, second.spec)
    found = [
        Difference(rows, (first.spec, second.spec), _act(first, rows), _act(second, rows))
        for rows in _inputs(arguments, first, second)
    ]
    largest = max(float(each.largest.max()) for each in found)
    is_above = arguments.within is not None and largest > arguments.within
    changed = _spec_differences(first.spec, second.spec)
    facts = {
        "first": str(paths[0]),
        "second": str(paths[1]),
        "spec_differences": changed,
        "max": largest,
        "within": None if arguments.within is None else not is_above,
        "compared": [each.facts(worst=arguments.worst) for each in found],
    }
    lines = [f"{paths[0]} and {paths[1]}", *_describe_spec(changed)]
    lines += [line for each in found for line in ("", *each.describe(worst=arguments.worst))]
    if arguments.within is not None:
        verdict = "more than" if is_above else "within"
        lines += ["", f"the largest difference is {largest:.3g}, {verdict} {arguments.within:g}"]
    return Result(lines, facts, exit_code=_DIFFERENT if is_above else 0)


def _check(arguments: argparse.Namespace) -> None:
    for name, least, most in (("random", 0, 10**6), ("seed", 0, _MAX_SEED), ("worst", 0, 10**6)):
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name} must be from {least} to {most}, got {value}")
    if arguments.within is not None and not (math.isfinite(arguments.within) and arguments.within >= 0):
        raise UsageError(f"--within must be a number of 0 or more, got {arguments.within:g}")


def _require_same_sizes(first: PolicySpec, second: PolicySpec) -> None:
    for size in _SIZES:
        if getattr(first, size) != getattr(second, size):
            raise UsageError(
                f"the policies cannot be compared: {size} is {getattr(first, size)} and {getattr(second, size)}; name "
                "two policies for the same robot"
            )


def _inputs(arguments: argparse.Namespace, first: "LoadedPolicy", second: "LoadedPolicy") -> Iterator[InputRows]:
    """Yield the rows to compare the policies on."""
    yield of_probes(first.bundle.probes, second.bundle.probes)
    if arguments.rows:
        yield recorded_rows(arguments.rows, first.spec)
    specs = first.spec, second.spec
    count = (_RANDOM if all(spec.seen_low for spec in specs) else 0) if arguments.random is None else arguments.random
    if count:
        goals = np.concatenate([policy.bundle.probes.goal for policy in (first, second)])
        yield random_rows(count, specs, goals=goals, seed=arguments.seed)


def _act(policy: "LoadedPolicy", rows: InputRows) -> np.ndarray:
    """Return the actions [rows, action_chunk, action_dim] in [-1, 1].

    Raises:
        CommandError: a row gives NaN, which would count as no difference.
    """
    starts = range(0, len(rows.state), _MAX_ROWS)
    parts = [slice(start, start + _MAX_ROWS) for start in starts]
    actions = np.concatenate([policy.act(rows.state[part], rows.goal[part]) for part in parts])
    finite = np.isfinite(actions).all(axis=1)
    if not finite.all():
        raise CommandError(
            f"{policy.bundle.path} gives NaN for row {int(np.argmin(finite))} (the first is 0) of {rows.about}: the "
            "values may be too large for float32"
        )
    return actions.reshape(len(actions), policy.spec.action_chunk, policy.spec.action_dim)


def _spec_differences(first: PolicySpec, second: PolicySpec) -> dict[str, list[Any]]:
    """Return the fields that differ, each with its two values."""
    ours, theirs = dataclasses.asdict(first), dataclasses.asdict(second)
    return {name: [ours[name], theirs[name]] for name in ours if ours[name] != theirs[name]}


def _describe_spec(changed: dict[str, list[Any]]) -> Sequence[str]:
    """Return a line for each field that differs, without the values of statistics, which are long."""
    statistics = [name for name in changed if name.startswith(("seen_", "normalization_"))]
    lines = [f"  {name}: {ours} and {theirs}" for name, (ours, theirs) in changed.items() if name not in statistics]
    if statistics:
        lines.append(f"  {', '.join(statistics)}: other values, see --json")
    return ["the specifications differ:", *lines] if lines else ["the specifications are equal"]
