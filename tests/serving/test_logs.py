"""The lines of the log, whatever is in them."""

import json
import logging
import re
from collections.abc import Generator

import pytest

from serving.config import LogFormat
from serving.telemetry.logs import formatter, log_to_stderr

NASTY = "a\nb\x1b[31m\x00\x9b\u2028"


def record(**extra: str) -> logging.LogRecord:
    made = logging.LogRecord("x", logging.WARNING, "", 0, "from %s", (NASTY,), None)
    vars(made).update(extra)
    return made


@pytest.mark.parametrize(("log_format", "terminal"), [("text", False), ("auto", True)])
def test_text_is_one_plain_line(log_format: LogFormat, terminal: bool) -> None:
    line = formatter(log_format, terminal=terminal).format(record())
    assert re.fullmatch(r"[-0-9]{10} [0-9:,]{12} WARNING from a\\nb\\x1b\[31m\\x00\\x9b\u2028", line)


@pytest.mark.parametrize(("log_format", "terminal"), [("json", True), ("auto", False)])
def test_json_is_one_object_in_plain_ascii(log_format: LogFormat, terminal: bool) -> None:
    line = formatter(log_format, terminal=terminal).format(record(grpc="127.0.0.1:1"))
    assert line.isascii()
    assert line.isprintable()
    fields = json.loads(line)
    assert re.fullmatch(r"[-0-9]{10}T[0-9:.]{15}\+00:00", fields.pop("time"))
    assert fields == {"level": "WARNING", "message": f"from {NASTY}", "grpc": "127.0.0.1:1"}


def test_a_worker_is_named_in_its_lines() -> None:
    assert formatter("text", terminal=False, worker=7).format(record())[24:].startswith("WARNING worker 7: from a")
    assert json.loads(formatter("json", terminal=False, worker=7).format(record()))["worker"] == 7


@pytest.fixture
def bare_root() -> Generator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # those of the test runner are closed by nobody but itself
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("bare_root")
def test_a_traceback_is_in_its_line_and_a_later_format_replaces_the_earlier(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_to_stderr("text")
    log_to_stderr("json")
    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("serving.x").exception("failed")
    logging.getLogger("jax").warning("chatter")
    (line,) = capsys.readouterr().err.splitlines()
    assert "Traceback" in json.loads(line)["exc_info"]
