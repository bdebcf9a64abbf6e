"""Logs: one line per record on stderr, as a JSON object for programs or as text for people.

A record is always one line: control characters, which may occur in a client's text or in a traceback, are escaped.

A program that should read stderr may stop reading. Then writing a line blocks, for ever if the program never goes on.
So a thread of its own writes the lines, and what waits for it is bounded: lines beyond the limit are dropped and
counted.
"""

import asyncio
import logging
import logging.handlers
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pythonjsonlogger.json import JsonFormatter

from serving.errors import shortage

if TYPE_CHECKING:
    from serving.config import LogFormat

_LOGGER = logging.getLogger(__name__)

_MAX_WAITING = 4096  # lines
_CLOSE_S = 1.0  # at most, for the lines that wait when the process ends
_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n"}


class OneLine(logging.Formatter):
    """A record as text on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        return super().format(record).translate(_CONTROL_CHARACTERS)


def formatter(log_format: "LogFormat", *, terminal: bool, worker: int | None = None) -> logging.Formatter:
    """Return the formatter for `log_format`; `auto` is text on a terminal and JSON otherwise.

    A JSON object has `time` (ISO 8601, UTC), `level`, `message`, for an error `exc_info`, and the record's `extra`
    fields. With `worker`, the process number of a worker, it also has `worker`.
    """
    if log_format == "text" or (log_format == "auto" and terminal):
        whose = "" if worker is None else f"worker {worker}: "
        return OneLine(f"%(asctime)s %(levelname)s {whose}%(message)s")
    renamed, static = {"levelname": "level"}, {} if worker is None else {"worker": worker}
    return JsonFormatter(
        "{levelname}{message}", style="{", timestamp="time", rename_fields=renamed, static_fields=static
    )


def ready_line(addresses: Mapping[str, str], *, policies: str) -> str:
    """Return the line that says that a server is ready, with its addresses by name and its policies."""
    grpc, metrics, admin = (addresses.get(name, "off") for name in ("grpc", "metrics", "admin"))
    http = f" http={addresses['http']}" if "http" in addresses else ""
    return f"ready: grpc={grpc}{http} metrics={metrics} admin={admin} policies={policies}"


class StderrHandler(logging.handlers.QueueHandler):
    """Formats a record in the thread that logs it, and writes it in another thread.

    The queue is a `SimpleQueue`, because a signal handler or a destructor may log while its thread uses the queue.

    Args:
        formatter: of the lines.
        descriptor: where they are written.
        encoding: of the lines.
        max_waiting: lines that may wait to be written.
    """

    def __init__(
        self, formatter: logging.Formatter, *, descriptor: int, encoding: str, max_waiting: int = _MAX_WAITING
    ) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        super().__init__(self._lines)
        self.setFormatter(formatter)
        self._descriptor, self._encoding, self._max_waiting = descriptor, encoding, max_waiting
        self.dropped = 0
        """Lines that were not written: too many waited, or stderr cannot be written."""
        self._told = 0  # of them, in a line of the log
        self._thread: threading.Thread | None = threading.Thread(target=self._write_lines, name="log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the machine lacks what a thread needs
            self._thread = None

    def prepare(self, record: logging.LogRecord) -> Any:
        """Return the record's line."""
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        """Let the thread write a line, or drop it."""
        if self._thread is None:
            self._write(record)
        elif self._lines.qsize() < self._max_waiting:
            self._lines.put(record)
        else:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        """Log that a record cannot be formatted. The library's method writes a traceback of many lines to stderr."""
        about = "a log record of %s, line %d, could not be formatted"
        self.emit(logging.LogRecord(record.name, logging.ERROR, "", 0, about, (record.module, record.lineno), None))

    def close(self) -> None:
        """Wait until the lines are written, at most 1 s. The library calls this at the end of the process."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(_CLOSE_S)
        super().close()

    def _write_lines(self) -> None:
        written, line = True, ""
        while line is not None:
            line = self._lines.get()
            if line is not None:
                written = self._write(line)
            if written and (line is None or self._lines.empty()):
                self._tell_dropped()

    def _tell_dropped(self) -> None:
        """Write how many lines were dropped since the last time, if any."""
        dropped, self._told = self.dropped - self._told, self.dropped
        if dropped:
            text = "%d lines of the log were dropped, because stderr was not read, or could not be written"
            self._write(self.format(logging.LogRecord(__name__, logging.WARNING, "", 0, text, (dropped,), None)))

    def _write(self, line: str) -> bool:
        """Write a line; return whether it is written.

        Not through `sys.stderr`: the interpreter aborts if another thread holds its lock when the process ends.
        """
        left = f"{line}\n".encode(self._encoding, "backslashreplace")
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:  # there is no place for a message
            self.dropped += 1
        return not left


def dropped_lines() -> int:
    """Return how many lines of this process's log were dropped, because nothing reads stderr."""
    return sum(each.dropped for each in logging.getLogger().handlers if isinstance(each, StderrHandler))


def log_to_stderr(log_format: "LogFormat", *, worker: int | None = None) -> None:
    """Send every record, warning and uncaught exception to stderr in this format; replaces earlier handlers.

    Args:
        log_format: as for `formatter`.
        worker: as for `formatter`.
    """
    if sys.stderr is None:  # it was closed when this process started
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  open as long as the process
    lines = formatter(log_format, terminal=sys.stderr.isatty(), worker=worker)
    handler = StderrHandler(lines, descriptor=sys.stderr.fileno(), encoding=sys.stderr.encoding)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("absl", "jax", "orbax"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _LOGGER.critical("uncaught error: %s", _summary(error), exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "that has ended"
    error = args.exc_value or args.exc_type()
    _LOGGER.error(
        "uncaught error in thread %s: %s", name, _summary(error), exc_info=(args.exc_type, error, args.exc_traceback)
    )


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    error = unraisable.exc_value or unraisable.exc_type()
    exc_info = (unraisable.exc_type, error, unraisable.exc_traceback)
    _LOGGER.error("%s: %s", unraisable.err_msg or "ignored", _summary(error), exc_info=exc_info)


def _summary(error: BaseException) -> str:
    return shortage(error) or f"{type(error).__name__}: {error}"


def log_failure(task: asyncio.Task[None], *, problem: str) -> None:
    """Log a bug in a task, and what follows from it. The live versions go on."""
    if not task.cancelled() and (error := task.exception()):
        _LOGGER.critical("%s", problem, exc_info=error)
