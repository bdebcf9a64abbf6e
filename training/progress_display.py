"""Where a run reports its progress while it runs: on a terminal, in a log file, or nowhere."""

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import rich.console
import rich.progress

from training.budgets.time_budget import in_words

HEARTBEAT_S = 25.0  # a log file gets a line at least this often
_LOOK_EVERY_S = 1.0
_EVALUATION = (
    "{env_steps:>12,} steps  stay {eval/stay:.2f} ({eval/stay_low:.2f} to {eval/stay_high:.2f})"
    "  touched {eval/touched:.2f} ({eval/touched_low:.2f} to {eval/touched_high:.2f})"
)
_LOSSES = "  critic {loss/critic:.3f}  actor {loss/actor:.3f}"
_DIVERGED = "  {eval/diverged_count:,} diverged"


class Status(NamedTuple):
    """Where a run is."""

    what: str  # what it is doing, such as "training"
    of: int  # iterations of the whole run
    done: int = 0  # iterations that have begun
    detail: str = ""  # where it is within the iteration
    steps_per_s: float | None = None  # environment steps per second of training
    left_s: float | None = None  # seconds until it ends

    def __str__(self) -> str:
        """Return one line."""
        parts = [f"{self.what}: iteration {self.done:,} of {self.of:,}", self.detail]
        parts.append(f"{self.steps_per_s:,.0f} steps/s" if self.steps_per_s else "")
        return ", ".join(filter(None, (*parts, self.left)))

    @property
    def left(self) -> str:
        """The time left in words; empty if it is not known."""
        return "" if self.left_s is None else f"{in_words(self.left_s)} left"


class Progress(Protocol):
    """What training calls as it goes. Any object with these methods will do."""

    def say(self, text: str) -> None:
        """Handle a line of text about the run."""
        ...

    def advance(self, status: Status) -> None:
        """Handle a new status of the run."""
        ...

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Handle the metrics of an evaluation, named as in metrics.jsonl."""
        ...


class NoProgress:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """See `Progress`."""

    def advance(self, status: Status) -> None:
        """See `Progress`."""

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """See `Progress`."""


class ConsoleProgress:
    """Lines of text; below them a progress bar on a terminal, and heartbeats in a log file. A context manager.

    A console that is not a terminal, such as a log file, gets a line with the status whenever it got none for
    `HEARTBEAT_S`. A thread writes it, because a compiled program or the compiler may take minutes.

    Args:
        console: where to print.
        clock: seconds that never go back.
        began: when the command started, by `clock`; None: now.
    """

    def __init__(
        self,
        console: rich.console.Console,
        *,
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        self._console, self._clock = console, clock
        self._began = clock() if began is None else began
        self._printed = self._began  # when the last line was
        self._status = Status("starting", of=0)
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._console.is_terminal:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line above the progress bar."""
        with self._lock:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
            self._printed = self._clock()

    def advance(self, status: Status) -> None:
        """Move the progress bar to `status`."""
        self._status = status
        if self._task is None:
            self._task = self._bar.add_task(status.what, total=status.of, left="")
        description = f"{status.what}, {status.detail}" if status.detail else status.what
        self._bar.update(self._task, description=description, completed=status.done, total=status.of, left=status.left)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Print one line with the most important metrics, and the time left where no progress bar shows it."""
        parts = [_EVALUATION]
        parts += [_LOSSES] if "loss/critic" in metrics else []
        parts += [_DIVERGED] if metrics.get("eval/diverged_count") else []
        left = "" if self._console.is_terminal or not self._status.left else f"  {self._status.left}"
        self.say("".join(parts).format_map(metrics) + left)

    def heartbeat(self) -> None:
        """Print the status if no line was printed for `HEARTBEAT_S`."""
        with self._lock:
            if self._clock() - self._printed >= HEARTBEAT_S:
                self.say(f"{in_words(self._clock() - self._began)}  {self._status}")

    def _beat(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            self.heartbeat()
