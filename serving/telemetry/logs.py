"""Logs: one line per record on stderr, as a JSON object for programs or as text for people.

A record is always one line: control characters, which may occur in a client's text or in a traceback, are escaped.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

from serving.config import LogFormat
from serving.errors import shortage

_LOGGER = logging.getLogger(__name__)

_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n"}


class OneLine(logging.Formatter):
    """A record as text on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        return super().format(record).translate(_CONTROL_CHARACTERS)


def formatter(log_format: LogFormat, *, terminal: bool, worker: int | None = None) -> logging.Formatter:
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
    return f"ready: grpc={addresses['grpc']} metrics={addresses.get('metrics', 'off')} policies={policies}"


class OneLineHandler(logging.StreamHandler[TextIO]):
    """Writes to stderr. A record that cannot be formatted becomes another record, not a traceback of many lines."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        """Replace the library's method, which writes a traceback to stderr."""
        if isinstance(sys.exception(), OSError):
            return  # stderr cannot be written, so there is no place for a message
        about = "a log record of %s, line %d, could not be formatted"
        self.emit(logging.LogRecord(record.name, logging.ERROR, "", 0, about, (record.module, record.lineno), None))


def log_to_stderr(log_format: LogFormat, *, worker: int | None = None) -> None:
    """Send every record, warning and uncaught exception to stderr in this format; replaces earlier handlers.

    Args:
        log_format: as for `formatter`.
        worker: as for `formatter`.
    """
    if sys.stderr is None:  # it was closed when this process started
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  open as long as the process
    handler = OneLineHandler()
    handler.setFormatter(formatter(log_format, terminal=sys.stderr.isatty(), worker=worker))
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
