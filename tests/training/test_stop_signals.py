"""One signal asks a run to end, a second Ctrl-C ends it at once."""

import signal
import threading

import pytest

from training.stop_signals import second_interrupt, stop_requested


class Ended:
    """Notes by which thread the end was called."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.thread = ""

    def __call__(self) -> None:
        self.thread = threading.current_thread().name
        self.event.set()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_interrupt_is_noticed_by_a_thread(first: signal.Signals) -> None:
    """The main thread may be in a compiled program, where it runs no handlers."""
    ended, before = Ended(), signal.getsignal(signal.SIGINT)
    with second_interrupt(ended), stop_requested() as stop:
        signal.raise_signal(first)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert ended.event.wait(10)
    assert ended.thread == "second-interrupt"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]], ids=str)
def test_one_interrupt_or_two_terminations_do_not_end_at_once(signals: list[signal.Signals]) -> None:
    ended = Ended()
    with second_interrupt(ended), stop_requested() as stop:
        for number in signals:
            signal.raise_signal(number)
    assert stop.is_set()
    assert not ended.event.is_set()  # the thread that reads the signals has ended


def test_other_threads_get_no_signals() -> None:
    found: list[bool] = []

    def run() -> None:
        with second_interrupt(Ended()), stop_requested() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert found == [False]
