"""The demonstration behind `make demo`: train, publish, serve and drive with the commands that a user would type.

It serves the best version of the run, which training names in its last line.

It takes no arguments. It writes into the folder runs/demo and replaces a run that is there.

Each command runs in a session of its own, so Ctrl-C reaches only this process. This process then stops the command:
SIGTERM first, SIGKILL after a grace period. A signal handler only sets a flag, and every wait checks the flag. A signal
that arrives while a command starts is therefore never lost.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("runs/demo")
ENV = "point_u_maze"
MIN_STAY_RATE = 0.9  # the gate: share of the time since their first arrival that the robots must stay at their goals
_GRACE_S = 15.0
_POLL_S = 0.1


class Interrupted(Exception):  # noqa: N818 - it reports a request, not an error
    """A signal asked this process to stop."""


class StageFailed(Exception):  # noqa: N818 - named for what happened
    """A stage exited with an error. The stage itself has printed the reason."""

    def __init__(self, stage: str, code: int) -> None:
        super().__init__(stage, code)

    def __str__(self) -> str:
        return "{} failed with exit code {}".format(*self.args)


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    began = time.monotonic()
    address, metrics_port = f"127.0.0.1:{free_port()}", free_port()
    try:
        say(f"1 of 3: train on {ENV} and publish (about a minute)")
        run_stage("training", ["training/run.py", "--env", ENV, "--out", str(OUT), "--overwrite"], stop=stop)
        say(f"2 of 3: serve the best version in {OUT / 'policies'} on {address}")
        serve = ["serving/run.py", "--policies", str(OUT / "policies"), "--listen", address]
        serve += ["--versions", f"{ENV}=best", "--state-dir", str(OUT / "state")]  # the port is another one each time
        with running("the server", [*serve, "--metrics-port", str(metrics_port)], log=OUT / "server.log") as server:
            say("3 of 3: 32 simulated robots drive 128 episodes, every action fetched with Act")
            drive = ["clients/sim/run.py", "--env", ENV, "--address", address, "--robots", "32", "--episodes", "128"]
            least = ["--out", str(OUT), "--min-stay-rate", str(MIN_STAY_RATE)]
            run_stage("driving", [*drive, *least], stop=stop, beside=server)
    except Interrupted:
        print("interrupted; all started processes have ended", file=sys.stderr)
        return 130
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary = json.loads((ROOT / OUT / "summary.json").read_text())
    figures = f"stay {summary['stay']:.3f}, {summary['touched']:.3f} of the goals touched"
    say(f"{figures}, {time.monotonic() - began:.0f} s in all")
    say(f"figures in {OUT / 'summary.json'}, pictures in {OUT / 'curves.png'} and {OUT / 'paths.png'}")
    return 0


def run_stage(
    name: str, arguments: list[str], *, stop: threading.Event, beside: subprocess.Popen[bytes] | None = None
) -> None:
    """Run one command and wait until it ends.

    Args:
        name: what error messages call the command.
        arguments: of the Python interpreter.
        stop: set by a signal handler to stop the command.
        beside: a process that must keep running meanwhile.

    Raises:
        Interrupted: `stop` was set; the command has been stopped.
        StageFailed: the command failed, or the process `beside` it ended.
    """
    with running(name, arguments) as process:
        while process.poll() is None:
            if stop.wait(_POLL_S):
                raise Interrupted
            if beside is not None and beside.poll() is not None:
                raise StageFailed(f"the server, see {OUT / 'server.log'},", beside.returncode)
    if stop.is_set():
        raise Interrupted
    if process.returncode != 0:
        raise StageFailed(name, process.returncode)


@contextlib.contextmanager
def running(name: str, arguments: list[str], *, log: Path | None = None) -> Generator[subprocess.Popen[bytes]]:
    """Start a child process and stop it when the context ends.

    Args:
        name: what error messages call the process.
        arguments: of the Python interpreter.
        log: file for the process's output; None sends it to this process's own output.

    Raises:
        StageFailed: a process with a log did not exit with code 0 when the context ended without another error.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context((ROOT / log).open("wb")) if log is not None else None
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        finally:
            end(process)
    if log is not None and process.returncode != 0:
        raise StageFailed(f"{name}, see {log},", process.returncode)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a child process and its own children: SIGTERM first, SIGKILL after the grace period."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            print(f"process {process.pid} did not stop within {_GRACE_S:.0f} s; killing it", file=sys.stderr)
    with contextlib.suppress(ProcessLookupError):  # no process of its session is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return a free TCP port, so that the demonstration does not collide with a running server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def say(text: str) -> None:
    """Print a line and flush it, so that it appears before the output of the next child."""
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
