"""A small training run that is killed, stopped and damaged again and again, until it ends: how does it end?

    reference = run_to_the_end(folder / "straight")
    interrupt(folder, rounds=50, seed=0, reference=reference)

A round is one process: it goes on with the run and is interrupted, at a random time or at a random operation on its
files; sometimes the newest snapshot is damaged afterwards. When a run has come to its end, it is compared with the
reference, and the next one begins.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from tests.faults.training_kills import EPOCHS, FLAGS, differences
from training.stop_signals import STOPPED_EXIT_CODE

LAST = EPOCHS * 2  # the iteration of the last snapshot
KEPT = 3
STOPPED = (0, STOPPED_EXIT_CODE)  # exit codes of a run that a signal may have stopped
# of a process that saves after every slice of gradient steps
SAVING_OFTEN = ("--snapshot-minutes=1e-9", "--resume", "auto")
OPERATIONS = 400  # on files, about as many as a run has that saves after every gradient step
_EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"})
_LONGEST_S = 900.0
_STARTING_S, _TRAINING_S = 4.0, 3.0  # about how long a process takes until it trains, and to the end of the run

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.training.probes", "training.run", "training.trainer"])


@dataclasses.dataclass(frozen=True)
class Ending:
    """What happened to the runs of all rounds."""

    counts: collections.Counter[str]  # of interruptions and damages, by kind
    runs: list[Path]  # that came to their end


def run_to_the_end(out: Path) -> Path:
    """Train without interruption, with the usual snapshots, and return the folder of the run."""
    process = _start(out, (), kill_at=0)
    process.join(_LONGEST_S)
    assert process.exitcode == 0, _log(out)
    return out


def interrupt(folder: Path, *, rounds: int, seed: int, reference: Path) -> Ending:
    """Interrupt runs in `folder` for so many rounds, bring the last one to its end, and compare each with `reference`.

    A round whose run ends before the interruption counts, too.
    """
    generator, counts, runs = random.Random(seed), collections.Counter[str](), list[Path]()
    out = folder / "run-0"
    for _ in range(rounds):
        counts[_interrupt_once(out, generator)] += 1
        if _ended(out):
            require_same_end(reference, out)
            runs.append(out)
            out = folder / f"run-{len(runs)}"
        elif generator.random() < 0.5 and (damage := _damage_newest(out / "snapshots", generator)):
            counts[damage] += 1
    if out.exists():
        process = _start(out, SAVING_OFTEN, kill_at=0)
        process.join(_LONGEST_S)
        assert process.exitcode == 0, _log(out)
        require_same_end(reference, out)
        runs.append(out)
    counts["passed over"] = sum(_log(run).count("is damaged (") for run in runs)
    return Ending(counts, runs)


def require_same_end(one: Path, other: Path) -> None:
    """Compare policies and the last snapshots of two runs bit for bit, and their evaluations."""
    assert differences(one, other) == []
    with (
        np.load(one / "snapshots" / str(LAST) / "state.npz") as ours,
        np.load(other / "snapshots" / str(LAST) / "state.npz") as theirs,
    ):
        assert ours.files == theirs.files
        for name in ours.files:
            assert ours[name].tobytes() == theirs[name].tobytes(), name
    for folder in (other / "policies", other / "snapshots"):
        assert not [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def _interrupt_once(out: Path, generator: random.Random) -> str:
    """Go on with the run, or begin it, and interrupt it; return how."""
    number = generator.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    if number == signal.SIGKILL and generator.random() < 0.5:
        process = _start(out, SAVING_OFTEN, kill_at=generator.randint(1, OPERATIONS))
        process.join(_LONGEST_S)
        how = "SIGKILL at an operation on files"
    else:
        process = _start(out, SAVING_OFTEN, kill_at=0)
        if generator.random() < 0.2:
            process.join(generator.uniform(0, _STARTING_S))
        elif _wait_for_training(out, process):
            process.join(generator.uniform(0, _TRAINING_S))
        if process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)
        process.join(_LONGEST_S)
        how = f"{number.name} at a time"
    assert process.exitcode in {*STOPPED, -number}, (process.exitcode, _log(out))
    assert "Traceback" not in _log(out)
    return "came to its end before" if _ended(out) else how


def _wait_for_training(out: Path, process: BaseProcess) -> bool:
    """Wait until this process has compiled its programs; return whether it has."""
    lines = _log(out).count("compiled; ")
    deadline = time.monotonic() + _LONGEST_S
    while _log(out).count("compiled; ") == lines:
        assert time.monotonic() < deadline
        if process.exitcode is not None:
            return False
        process.join(0.02)
    return True


def _ended(out: Path) -> bool:
    """Return whether the last process said that the run is at its end."""
    return bool(_log(out).rstrip().rpartition("\n")[2].startswith("policy in "))


def _log(out: Path) -> str:
    path = out.parent / f"{out.name}.log"
    return path.read_text() if path.exists() else ""


def _damage_newest(snapshots: Path, generator: random.Random) -> str:
    """Damage the newest snapshot if there is another one; return how, or an empty string.

    The last snapshot of a run stays whole: a run that was killed after its last evaluation is at its end, and no later
    process reads its snapshots.
    """
    iterations = sorted((int(path.name) for path in snapshots.glob("*") if path.name.isdecimal()), reverse=True)
    if len(iterations) < 2 or iterations[0] == LAST:
        return ""
    file = snapshots / str(iterations[0]) / generator.choice(("state.npz", "state.npz", "manifest.json"))
    content = bytearray(file.read_bytes())
    if not content:  # cut by an earlier round, whose next process was killed before it looked
        return ""
    position = generator.randrange(len(content))
    if generator.random() < 0.5:
        content[position] ^= 1 << generator.randrange(8)
        file.write_bytes(content)
        return "flipped bit"
    file.write_bytes(content[:position])
    return "cut file"


def _start(out: Path, flags: Sequence[str], *, kill_at: int) -> BaseProcess:
    """Start a process of the run, which kills itself at that operation on the run's files, or never if it is 0."""
    out.parent.mkdir(parents=True, exist_ok=True)
    process = _PROCESSES.Process(
        target=_train, args=(out, [*FLAGS, f"--keep-policies={KEPT}", *flags, f"--out={out}"], kill_at)
    )
    process.start()
    return process


def _train(out: Path, flags: list[str], kill_at: int) -> None:
    from tests.training import probes
    from training.envs import registry
    from training.run import main

    with (out.parent / f"{out.name}.log").open("ab") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    line = probes.Line()
    registry.make = lambda *_, **__: line
    if kill_at:
        _kill_at(kill_at, str(out))
    code = main(flags)
    sys.stdout.flush()
    os._exit(code)


def _kill_at(number: int, fragment: str) -> None:
    left = number

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _EVENTS and any(fragment in str(argument) for argument in arguments):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
