"""Logs: one line per record on stderr, as a JSON object for programs or as text for people.

A record is always one line: control characters, which may occur in a client's text or in a traceback, are escaped.
"""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from serving.config import LogFormat

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


def log_to_stderr(log_format: LogFormat, *, worker: int | None = None) -> None:
    """Send every record to stderr in this format. Replaces earlier handlers. `worker` as for `formatter`."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format, terminal=sys.stderr.isatty(), worker=worker))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("absl", "jax", "orbax"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
