"""Logs: one line per record on stderr, as a JSON object for collectors or as text for people.

Whatever a record holds, it stays one line: control characters of a client's text or of a traceback are escaped.
"""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from serving.config import LogFormat

_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n"}


class OneLine(logging.Formatter):
    """A record as text on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        return super().format(record).translate(_CONTROL_CHARACTERS)


def formatter(log_format: LogFormat, *, terminal: bool, worker: int | None = None) -> logging.Formatter:
    """The formatter for `log_format`; `auto` is text on a terminal and JSON anywhere else.

    A JSON object holds `time` (ISO 8601, UTC), `level`, `message`, of an error `exc_info`, and what a record was given
    as `extra`. A `worker`, one of several processes, adds its number.
    """
    if log_format == "text" or (log_format == "auto" and terminal):
        whose = "" if worker is None else f"worker {worker}: "
        return OneLine(f"%(asctime)s %(levelname)s {whose}%(message)s")
    renamed, static = {"levelname": "level"}, {} if worker is None else {"worker": worker}
    return JsonFormatter(
        "{levelname}{message}", style="{", timestamp="time", rename_fields=renamed, static_fields=static
    )


def log_to_stderr(log_format: LogFormat, *, worker: int | None = None) -> None:
    """From now on every record goes to stderr, in this format only; `worker` as in `formatter`."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format, terminal=sys.stderr.isatty(), worker=worker))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("absl", "jax", "orbax"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
