"""One signal asks a run to end and is reported immediately; a second Ctrl-C ends it."""

import io
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.training.fake_clock import FakeClock, set_times
from tests.training.flags import TINY_RUN
from training.run import main
from training.stop_signals import stop_requested, watched


class Called:
    """Notes by which thread it was called, and how often."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.thread, self.times = "", 0

    def __call__(self) -> None:
        self.times += 1
        self.thread = threading.current_thread().name
        self.event.set()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_interrupt_is_noticed_by_a_thread(first: signal.Signals) -> None:
    """The main thread may be in a compiled program, where it runs no handlers."""
    ended, before = Called(), signal.getsignal(signal.SIGINT)
    with watched(stopping=Called(), end=ended), stop_requested() as stop:
        signal.raise_signal(first)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert ended.event.wait(10)
    assert ended.thread == "signals"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]], ids=str)
def test_one_interrupt_or_two_terminations_do_not_end_at_once(signals: list[signal.Signals]) -> None:
    ended = Called()
    with watched(stopping=Called(), end=ended), stop_requested() as stop:
        for number in signals:
            signal.raise_signal(number)
    assert stop.is_set()
    assert not ended.event.is_set()  # the thread that reads the signals has ended


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_told_by_a_thread_while_the_main_thread_computes(first: signal.Signals) -> None:
    stopping = Called()
    with watched(stopping=stopping, end=Called()), stop_requested():
        signal.raise_signal(first)
        assert stopping.event.wait(10)  # the main thread does not look at the signal before
        signal.raise_signal(signal.SIGTERM)
    assert (stopping.thread, stopping.times) == ("signals", 1)


def test_a_signal_that_ends_the_process_is_not_told_as_one_that_saves() -> None:
    """Until the programs are compiled, Ctrl-C raises KeyboardInterrupt."""
    stopping = Called()
    with watched(stopping=stopping, end=Called()), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert stopping.times == 0  # the thread that reads the signals has ended


def test_other_threads_get_no_signals() -> None:
    found: list[bool] = []

    def run() -> None:
        with watched(stopping=Called(), end=Called()), stop_requested() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert found == [False]


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
        signal.raise_signal(signal.SIGINT)
        assert told.wait(10)

    out = Output()
    monkeypatch.setattr(sys, "stdout", out)
    set_times(monkeypatch, FakeClock(), after_learn=interrupt)
    assert main([*TINY_RUN, f"--out={tmp_path / 'run'}"]) == 0
    *_, stopping, stopped = out.getvalue().splitlines()
    assert stopping.endswith("or evaluation; a second Ctrl-C stops immediately, without saving")
    assert stopped == f"stopped; saved {tmp_path}/run/snapshots/3, continue with --resume --out {tmp_path}/run"
