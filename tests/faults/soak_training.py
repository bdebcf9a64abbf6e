"""The long form of the tests of killed runs, and its record: `make soak-training`.

Real processes of a small run, killed and stopped at random instants, with damaged snapshots: 20 parts of 10 rounds
each. A check that fails ends it; the record then has the parts before it.
"""

import argparse
import datetime
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults import interrupted_training

REPOSITORY = Path(__file__).parents[2]
RECORD = REPOSITORY / "benchmarks/results/soak_training.md"
PARTS = tuple(map(str, range(20)))  # seeds
ROUNDS = 10
HEADER = (
    "# Training under faults, for long",
    "",
    f"{platform.system()} on {platform.machine()}, {os.cpu_count()} shared cores, by `make soak-training`: real"
    " processes of a small run without physics.",
    "They save after every slice of gradient steps, and keep 3 policies. A round is one process that is interrupted;"
    " afterwards the newest",
    "snapshot may be damaged. A row is written only if every run ended with the same policies, the same last snapshot"
    " (bit for bit) and the",
    "same evaluations as a run without interruption, which saves only after evaluations.",
    "Times depend on what else the cores did. There is no record beside this page.",
    "",
    "| seed | date | rounds | interruptions | damages of the newest snapshot | result | time [s] |",
    "|---|---|---|---|---|---|---|",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, print the result of each, and write it into the record; rows of other parts stay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("parts", nargs="*", metavar="SEED", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--record", type=Path, default=RECORD, help="the Markdown file to write")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each part")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no seed {', '.join(sorted(unknown))}; choose from: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="kilolayer-soak-") as scratch:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(scratch) / "cache"))  # of all processes
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")  # compiles faster, as in the other tests
        reference = interrupted_training.run_to_the_end(Path(scratch) / "straight")
        for seed in given.parts or PARTS:
            row = _run(Path(scratch) / seed, int(seed), rounds=given.rounds, reference=reference)
            print(row, flush=True)
            rows = _recorded(given.record) | {seed: row}
            given.record.write_text("\n".join([*HEADER, *(rows[each] for each in PARTS if each in rows)]) + "\n")


def _run(folder: Path, seed: int, *, rounds: int, reference: Path) -> str:
    """Run a part in a folder of its own, and return its row of the record."""
    began_s = time.monotonic()
    ended = interrupted_training.interrupt(folder, rounds=rounds, seed=seed, reference=reference)
    counts = ended.counts
    damages = {name: counts.pop(name) for name in ("flipped bit", "cut file", "passed over") if name in counts}
    interruptions = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return (
        f"| {seed} | {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d} | {rounds} | {interruptions} |"
        f" {', '.join(f'{count} {name}' for name, count in damages.items())} |"
        f" {len(ended.runs)} of {len(ended.runs)} runs bit for bit equal | {time.monotonic() - began_s:.0f} |"
    )


def _recorded(record: Path) -> dict[str, str]:
    """Return the rows of an earlier record, by their seed."""
    lines = record.read_text().splitlines() if record.exists() else []
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    return {seed: row for seed, row in rows.items() if seed in PARTS}


if __name__ == "__main__":
    main()
