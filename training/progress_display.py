"""Where a run reports its progress while it runs: on a terminal, or nowhere."""

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

import rich.console
import rich.progress

_EVALUATION = (
    "{env_steps:>12,} steps  stay {eval/stay:.2f} ({eval/stay_low:.2f} to {eval/stay_high:.2f})"
    "  touched {eval/touched:.2f} ({eval/touched_low:.2f} to {eval/touched_high:.2f})"
)
_LOSSES = "  critic {loss/critic:.3f}  actor {loss/actor:.3f}"
_DIVERGED = "  {eval/diverged_count:,} diverged"


class Progress(Protocol):
    """What training calls as it goes. Any object with these methods will do."""

    def say(self, text: str) -> None:
        """Handle a line of text about the run."""
        ...

    def advance(self, description: str, *, done: int, of: int) -> None:
        """Handle progress: `done` of `of` iterations, and what the run is doing."""
        ...

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Handle the metrics of an evaluation, named as in metrics.jsonl."""
        ...


class NoProgress:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """See `Progress`."""

    def advance(self, description: str, *, done: int, of: int) -> None:
        """See `Progress`."""

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """See `Progress`."""


class ConsoleProgress:
    """Lines of text, and below them a progress bar if the console is a terminal. A context manager.

    Args:
        console: where to print.
    """

    def __init__(self, console: rich.console.Console) -> None:
        self._console = console
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line above the progress bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self, description: str, *, done: int, of: int) -> None:
        """Move the progress bar to `done` of `of`."""
        if self._task is None:
            self._task = self._bar.add_task(description, total=of)
        self._bar.update(self._task, description=description, completed=done, total=of)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Print one line with the most important metrics."""
        parts = [_EVALUATION]
        parts += [_LOSSES] if "loss/critic" in metrics else []
        parts += [_DIVERGED] if metrics.get("eval/diverged_count") else []
        self.say("".join(parts).format_map(metrics))
