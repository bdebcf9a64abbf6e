"""The long form of the fault tests, and their record: `make soak`.

Real servers with a small policy: restarts, kills, hostile messages, very many calls, and versions published meanwhile.
It takes about 25 minutes on two cores. A check that fails ends it; the record then has the parts before it.
"""

import argparse
import datetime
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults import loaded_switches, new_versions, other_clients, scenarios
from tests.faults.bundle_mutator import array_mutants, file_mutants
from tests.faults.conftest import publish

REPOSITORY = Path(__file__).parents[2]
RECORD = REPOSITORY / "benchmarks/results/soak.md"
HEADER = (
    "# Servers under faults, for long",
    "",
    f"{platform.system()} on {platform.machine()}, {os.cpu_count()} shared cores, by `make soak`: real server processes"
    " with a policy of depth 4 and",
    "width 16. A row is written only if every check of its part holds; `scenarios.py`, `new_versions.py`"
    " and `loaded_switches.py` in `tests/faults` have the checks.",
    "Times depend on what else the cores did. There is no record beside this page.",
    "",
    "| part | date | events | result | processor time in all [s] | time [s] |",
    "|---|---|---|---|---|---|",
)


def main(arguments: Sequence[str]) -> None:
    """Run the parts, print the result of each, and write it into the record; rows of other parts stay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--record", type=Path, default=RECORD, help="the Markdown file to write")
    parser.add_argument("--share", type=float, default=1.0, help="of the number of events, such as 0.01 to try it out")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from: {', '.join(PARTS)}")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for name in given.parts or PARTS:
        row = _run(name, given.share)
        print(row, flush=True)
        rows = _recorded(given.record) | {name: row}
        given.record.write_text("\n".join([*HEADER, *(rows[each] for each in PARTS if each in rows)]) + "\n")


def _run(name: str, share: float) -> str:
    """Run a part in a folder of its own, and return its row of the record."""
    with tempfile.TemporaryDirectory(prefix="kilolayer-soak-") as scratch:
        folder = Path(scratch)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")  # for the servers; warm from the second on
        os.environ["XDG_STATE_HOME"] = str(folder / "states")
        os.environ["XDG_RUNTIME_DIR"] = scratch
        publish(folder / "policies", 1000)
        began_s, cpu_s = time.monotonic(), _cpu_s()
        result = PARTS[name](folder / "policies", folder, lambda count: max(1, round(count * share)))
        taken = f"{_cpu_s() - cpu_s:.0f} | {time.monotonic() - began_s:.0f}"
    return f"| {name} | {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d} | {result} | {taken} |"


def _recorded(record: Path) -> dict[str, str]:
    """Return the rows of an earlier record, by their part."""
    lines = record.read_text().splitlines() if record.exists() else []
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    return {name: row for name, row in rows.items() if name in PARTS}


def restarts(policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Stop two servers in turn with SIGTERM, under load."""
    count = scaled(100)
    outcome = scenarios.restart_in_turn(policies, folder, restarts=count)
    refused = ", ".join(f"{number:,} {reason}" for reason, number in sorted(outcome.refused.items()))
    return (
        f"{count} restarts of two servers in turn with SIGTERM, four callers that try again |"
        f" {outcome.answered:,} calls answered with the same bytes, {sum(outcome.lost.values())} lost; refused and sent"
        " to the other server:"
        f" {refused or 'none'}; longest time without an answer: {outcome.longest_gap_s:.2f} s; every exit code 0"
    )


def kills(policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Kill a supervised server with SIGKILL."""
    measured = scenarios.kill_and_wait(policies, folder, kills=scaled(10))
    taken_s, cpu_s = (sorted(getattr(kill, name) for kill in measured) for name in ("taken_s", "cpu_s"))
    middle = len(taken_s) // 2
    return (
        f"{len(taken_s)} kills with SIGKILL under a supervisor, warm cache, default batch sizes | answered again after"
        f" {taken_s[0]:.1f} to {taken_s[-1]:.1f} s, median {taken_s[middle]:.1f} s, of which the new server used"
        f" {cpu_s[middle]:.1f} s of processor time"
    )


def hostile_messages(policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Send malformed and hostile messages."""
    statuses, growth = scenarios.send_hostile_messages(policies, folder, count=scaled(100_000), warm_up=scaled(10_000))
    by_code = ", ".join(f"{count:,} {code.name}" for code, count in statuses.most_common())
    return (
        f"{statuses.total():,} malformed or hostile messages | {by_code}; memory grew by {growth.megabytes:.1f} MB,"
        f" descriptors by {growth.after.descriptors - growth.before.descriptors}, log by"
        f" {growth.after.log_bytes - growth.before.log_bytes} bytes"
    )


def coverage_guided(_policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Let atheris search for bytes that reach new lines of the decoders, if it is installed."""
    count = scaled(1_000_000)
    if importlib.util.find_spec("atheris") is None:
        return f"{count:,} messages found by coverage, in one process | left out: atheris is not installed"
    command = [sys.executable, "-m", "tests.faults.fuzz_decoders", str(folder / "corpus"), f"-runs={count}", "-seed=1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    covered = re.findall(r"cov: (\d+)", done.stderr)[-1]
    return (
        f"{count:,} messages found by coverage (atheris), in one process | every one is rows or a named error;"
        f" {covered} branches covered"
    )


def many_calls(policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Call over streams."""
    count = scaled(1_000_000)
    rate_per_s, growth = scenarios.call_many_times(policies, folder, count=count, warm_up=scaled(20_000))
    return (
        f"{count:,} calls over two streams | {rate_per_s:,.0f}/s, every answer checked; memory grew by"
        f" {growth.megabytes:.1f} MB"
    )


def flood(policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Call while one client floods the server."""
    seconds = scaled(20)
    flood = scenarios.call_beside_a_flood(policies, folder, seconds=seconds)
    before, during = (
        f"{other_clients.percentile_ms(calls, 0.5):.0f} and {other_clients.percentile_ms(calls, 0.99):.0f} ms"
        for calls in (flood.before, flood.during)
    )
    return (
        f"{other_clients.STREAMS:,} streams of one client send requests of {other_clients.ROWS:,} rows and read"
        f" nothing, for {seconds} s; three others call every 50 ms | median and 99th percentile of the others:"
        f" {before} before, {during} during it; {flood.late} of {len(flood.during)} had no answer within 1 s; memory"
        f" grew by {flood.growth_mb:.0f} MB at most"
    )


def incomplete(policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Leave the requests of calls incomplete."""
    calls, size = scaled(4000), 300_000
    growth_mb = scenarios.leave_calls_incomplete(policies, folder, calls=calls, size=size)
    return (
        f"{calls:,} calls on one connection send {size / 1000:.0f} KB each of a request that is longer,"
        f" --max-held-mb 64 | memory grew by {growth_mb:.0f} MB at most; all calls of another client were answered"
    )


def versions(policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Publish every mutant as a new version while another one serves."""
    mutants = [*file_mutants(policies / "1000"), *array_mutants(policies / "1000")]
    mutants = mutants[:: -(-len(mutants) // scaled(len(mutants)))]
    reasons, outcome = new_versions.publish_mutants(policies, folder, mutants)
    waiting = len(mutants) - reasons.total()
    by_reason = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return (
        f"{len(mutants)} damaged versions published while another one serves, four callers | refused once each, by"
        f" name: {by_reason}; {waiting} without a manifest are waited for; {outcome.answered:,} calls answered with the"
        " same bytes, 0 lost"
    )


def publishing(_policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Publish versions while servers start."""
    starts, count = scaled(50), scaled(20)
    late = new_versions.publish_while_starting(folder, starts=starts, versions=count)
    return (
        f"{count} versions published while {starts} servers start, two at a time on one folder | every one ended up on"
        f" the newest version, {late} of them after they had begun to serve; every exit code 0"
    )


def rollbacks(policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Roll servers back, with one worker and with two."""
    count, median_ms = scaled(50), list[float]()
    for workers, most_s in ((1, 0.010), (2, 0.250)):
        measured = new_versions.roll_back(policies, folder / f"workers-{workers}", workers=workers, times=count)
        taken_s = sorted(measured.taken_s)
        assert taken_s[0] < most_s, measured
        median_ms.append(1e3 * taken_s[len(taken_s) // 2])
    return (
        f"{count} rollbacks of a server, and of one with two workers | median {median_ms[0]:.0f} ms, and"
        f" {median_ms[1]:.0f} ms with two workers; the next answers named the former version"
    )


def switches(_policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Switch between two versions at half of the peak load."""
    count = scaled(1000)
    delays = loaded_switches.switch_often(folder, switches=count, seconds=60 * count / 1000)
    assert delays.ratio <= 2, delays
    return (
        f"{count:,} switches between two versions within {delays.change_s:.0f} s, at half of the peak load:"
        f" {delays.rate_per_s:.0f} calls/s | {delays.calls:,} calls, none lost or answered by two versions; 99th"
        f" percentile {delays.without_ms:.1f} ms without and {delays.during_ms:.1f} ms during the switches"
    )


def other_depth(_policies: Path, folder: Path, scaled: Callable[[int], int]) -> str:
    """Take up a version of another depth at half of the peak load."""
    delays = loaded_switches.take_up_other_depth(folder, depth=8, seconds=scaled(20))
    return (
        f"a version of depth 8 is taken up beside one of depth 4, at half of the peak load: {delays.rate_per_s:.0f}"
        f" calls/s | {delays.calls:,} calls, none lost or answered by two versions; 99th percentile"
        f" {delays.without_ms:.1f} ms before and {delays.during_ms:.1f} ms during {delays.change_s:.1f} s of loading"
    )


def _cpu_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


PARTS: dict[str, Callable[[Path, Path, Callable[[int], int]], str]] = {
    "restarts": restarts,
    "kills": kills,
    "messages": hostile_messages,
    "coverage": coverage_guided,
    "calls": many_calls,
    "flood": flood,
    "incomplete": incomplete,
    "versions": versions,
    "publishing": publishing,
    "rollbacks": rollbacks,
    "switches": switches,
    "depth": other_depth,
}

if __name__ == "__main__":
    main(sys.argv[1:])
