"""What a log file gets while a run computes: never silence for half a minute."""

import io
import threading

import pytest
import rich.console

from tests.training.fake_clock import FakeClock
from training import progress_display
from training.progress_display import ConsoleProgress, Status


def log_of(clock: FakeClock) -> tuple[ConsoleProgress, io.StringIO]:
    file = io.StringIO()
    return ConsoleProgress(rich.console.Console(file=file, width=200), clock=clock), file


def test_a_log_file_gets_the_status_after_25_silent_seconds() -> None:
    clock = FakeClock()
    progress, file = log_of(clock)
    progress.advance(Status("compiling", of=6))
    for seconds, lines in ((24.9, 0), (25.0, 1), (49.9, 1), (50.0, 2)):
        clock.now = seconds
        progress.heartbeat()
        assert file.getvalue().count("\n") == lines, seconds
    clock.now = 60.0
    progress.say("a line")
    clock.now = 84.0
    progress.advance(
        Status("training", done=2, of=6, detail="gradient step 300 of 800", steps_per_s=5300.4, left_s=200)
    )
    progress.heartbeat()
    clock.now = 85.0
    progress.heartbeat()
    assert file.getvalue().splitlines() == [
        "25 s  compiling: iteration 0 of 6",
        "50 s  compiling: iteration 0 of 6",
        "a line",
        "1 min 25 s  training: iteration 2 of 6, gradient step 300 of 800, 5,300 steps/s, 3 min 20 s left",
    ]


def test_a_thread_writes_it_while_the_main_thread_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_display, "_LOOK_EVERY_S", 0.001)
    written, clock = threading.Event(), FakeClock()

    class File(io.StringIO):
        def write(self, text: str) -> int:
            written.set()
            return super().write(text)

    with ConsoleProgress(rich.console.Console(file=File(), width=200), clock=clock):
        clock.now = 25.0
        assert written.wait(60)


def test_a_log_file_gets_the_time_left_with_each_evaluation_and_a_terminal_in_its_bar() -> None:
    names = ("stay", "stay_low", "stay_high", "touched", "touched_low", "touched_high")
    metrics = {"env_steps": 40} | {f"eval/{name}": 0.5 for name in names}
    status = Status("evaluating", done=1, of=6, left_s=61)
    progress, file = log_of(FakeClock())
    progress.advance(status)
    progress.evaluated(metrics)
    assert file.getvalue().rstrip("\n").endswith("touched 0.50 (0.50 to 0.50)  1 min 1 s left")
    terminal = rich.console.Console(file=io.StringIO(), width=200, force_terminal=True)
    with ConsoleProgress(terminal, clock=FakeClock()) as progress:
        progress.advance(status)
        progress.evaluated(metrics)
    shown = terminal.file.getvalue()
    assert "touched 0.50 (0.50 to 0.50)\n" in shown
    assert "1 min 1 s left" in shown
