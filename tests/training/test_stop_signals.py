"""One signal asks a run to save and end, and is reported immediately; where nothing is to be saved it ends the process.

`test_signals_of_the_command` sends signals to real processes.
"""

import contextlib
import io
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.training.fake_clock import FakeClock, set_times
from tests.training.flags import TINY_RUN
from training.run import main
from training.stop_signals import (
    STOPPING,
    ExitCodeError,
    Listener,
    StopRequest,
    stop_requested,
    take_exit_code,
)

SAVING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Recorder:
    """A listener that notes what it would have done, and by which thread."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.lines: list[str] = []
        self.thread = ""
        self.changed = threading.Event()
        self.listener = Listener(exit_process=self._exit)
        self.listener.say = self._say

    def _exit(self, code: int) -> None:
        self.codes.append(code)
        self.changed.set()

    def _say(self, line: str) -> None:
        self.thread = threading.current_thread().name
        self.lines.append(line)
        self.changed.set()


@contextlib.contextmanager
def saving() -> Generator[tuple[Recorder, StopRequest]]:
    """A run that looks at signals."""
    recorder = Recorder()
    with recorder.listener, recorder.listener.saving() as request:
        yield recorder, request


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_told_by_a_thread_while_the_main_thread_computes(number: signal.Signals) -> None:
    with saving() as (recorder, request):
        signal.raise_signal(number)
        assert recorder.changed.wait(60)  # the main thread does not look at the request before
        assert request.signal == number
    assert recorder.thread == "signals"
    (line,) = recorder.lines
    assert line.startswith(f"{number.name}: stopping after the current unroll, slice of gradient steps (about 5 s) or ")
    assert recorder.codes == []
    assert recorder.listener.code_of(None) == (130 if number == signal.SIGINT else 75)


@pytest.mark.parametrize("first", STOPPING)
def test_ctrl_c_after_any_signal_ends_the_process(first: signal.Signals, capsys) -> None:
    with saving() as (recorder, _):
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
    assert recorder.codes == [130]
    assert len(recorder.lines) == 1
    assert capsys.readouterr().err == "\nSIGINT: ended before training began\n"


@pytest.mark.parametrize("first", STOPPING)
@pytest.mark.parametrize("second", SAVING)
def test_other_signals_do_not_disturb_a_run_that_saves(first: signal.Signals, second: signal.Signals) -> None:
    """A shell that gets SIGHUP sends it once more; SLURM sends SIGTERM after SIGUSR1."""
    with saving() as (recorder, request):
        for number in (first, second, second):
            signal.raise_signal(number)
    assert request.signal == first
    assert (recorder.codes, len(recorder.lines)) == ([], 1)  # the thread that reads the signals has ended


@pytest.mark.parametrize("number", STOPPING)
def test_while_there_is_nothing_to_save_a_signal_ends_the_process(number: signal.Signals, capsys) -> None:
    recorder, order = Recorder(), []
    recorder.listener.exit_code = 3
    recorder.listener.last_words = lambda: order.append("said") or "nothing was saved"
    recorder.listener.before_end = lambda: order.append("cursor")
    with recorder.listener:
        signal.raise_signal(number)
        assert recorder.changed.wait(60)
    assert recorder.codes == [130 if number == signal.SIGINT else 3]
    assert order == ["cursor", "said"]
    assert capsys.readouterr().err == f"\n{number.name}: nothing was saved\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_cannot_be_printed_does_not_keep_the_process_from_ending() -> None:
    recorder = Recorder()
    recorder.listener.last_words = lambda: str(1 / 0)
    with recorder.listener:
        signal.raise_signal(signal.SIGTERM)
        assert recorder.changed.wait(60)
    assert recorder.codes == [75]


@pytest.mark.parametrize("listens", [lambda: Listener(exit_process=pytest.fail), stop_requested])
def test_handlers_and_the_wakeup_descriptor_are_given_back(listens) -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with listens():
        assert signal.getsignal(signal.SIGUSR2) != before[-1]
    assert [signal.getsignal(number) for number in STOPPING] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("listens", [lambda: Listener(exit_process=pytest.fail), stop_requested])
def test_a_signal_that_was_ignored_or_handled_stays_so(listens) -> None:
    """SIGHUP is ignored under nohup, and a program that calls `train` may use SIGUSR1 itself."""
    got: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    try:
        with listens():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR1, before[1])
    assert got == [1]


@pytest.mark.parametrize("first", STOPPING)
def test_a_program_that_trains_gets_keyboard_interrupt_at_the_second_ctrl_c(first: signal.Signals) -> None:
    with stop_requested() as request:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert request.signal == first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_threads_get_no_signals() -> None:
    found: list[bool] = []

    def run() -> None:
        with Listener(exit_process=pytest.fail), stop_requested() as stop:
            found.append(stop.is_set())
            found.append(signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert found == [False, True]


@pytest.mark.parametrize(
    ("given", "code", "others"),
    [
        (["--env", "ant"], 75, ["--env", "ant"]),
        (["--env", "ant", "--stopped-exit-code", "0"], 0, ["--env", "ant"]),
        (["--stopped_exit_code=255", "--resume"], 255, ["--resume"]),
    ],
)
def test_the_exit_code_is_taken_from_the_arguments(given: list[str], code: int, others: list[str]) -> None:
    assert take_exit_code(given) == (code, others)


@pytest.mark.parametrize("value", [["256"], ["-1"], ["all"], ["²"], []])
def test_an_exit_code_that_is_none_is_refused(value: list[str], capsys) -> None:
    with pytest.raises(ExitCodeError, match="--stopped-exit-code must be a whole number from 0 to 255, got"):
        take_exit_code(["--stopped-exit-code", *value])
    assert main(["--env=ant", "--out=runs/x", "--stopped-exit-code", *value]) == 2
    assert capsys.readouterr().err.startswith("error: --stopped-exit-code must be a whole number from 0 to 255, got")


@pytest.mark.usefixtures("without_physics")
def test_a_run_says_that_it_stops_while_it_still_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first gradient steps end only once the line is there."""
    told = threading.Event()

    class Output(io.StringIO):
        def write(self, text: str) -> int:
            if "stopping after the current unroll" in text:
                told.set()
            return super().write(text)

    def interrupt() -> None:
        signal.raise_signal(signal.SIGHUP)
        assert told.wait(60)

    out = Output()
    monkeypatch.setattr(sys, "stdout", out)
    set_times(monkeypatch, FakeClock(), after_learn=interrupt)
    assert main([*TINY_RUN, f"--out={tmp_path / 'run'}", "--stopped-exit-code=7"]) == 7
    *_, stopping, stopped = out.getvalue().splitlines()
    assert stopping.startswith("SIGHUP: stopping after the current unroll")
    assert stopping.endswith("or evaluation; a second Ctrl-C stops immediately, without saving")
    assert stopped == f"stopped; saved {tmp_path}/run/snapshots/3, continue with --resume --out {tmp_path}/run"
