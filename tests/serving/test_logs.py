"""The lines of the log, whatever is in them."""

import asyncio
import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from serving.config import LogFormat
from serving.telemetry.logs import StderrHandler, dropped_lines, formatter, log_to_stderr
from tests.serving.server_process import full_pipe

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
def bare_root(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """The handlers and hooks of the test runner come back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # those of the test runner are closed by nobody but itself
    yield
    logging.captureWarnings(False)
    for handler in root.handlers:
        handler.close()  # ends its thread
    root.handlers[:] = handlers
    root.setLevel(level)


def written(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the log, all of them: the handler is closed."""
    logging.getLogger().handlers[0].close()
    return capfd.readouterr().err.splitlines()


@pytest.mark.usefixtures("bare_root")
def test_a_traceback_is_in_its_line_and_a_later_format_replaces_the_earlier(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log_to_stderr("text")
    log_to_stderr("json")
    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("serving.x").exception("failed")
    logging.getLogger("jax").warning("chatter")
    (line,) = written(capfd)
    assert "Traceback" in json.loads(line)["exc_info"]


def fail() -> None:
    raise ValueError(NASTY)


def fail_uncaught() -> None:
    try:
        fail()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)  # as the interpreter does at the end


def fail_in_thread() -> None:
    thread = threading.Thread(target=fail, name="compute")
    thread.start()
    thread.join()


def fail_unraisable() -> None:
    class Bad:
        def __del__(self) -> None:
            fail()

    Bad()
    gc.collect()


def fail_on_the_loop() -> None:
    async def run() -> None:
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(run())


def fail_to_format() -> None:
    logging.getLogger("serving.x").info("%d rows", "many")


def warn() -> None:
    warnings.warn("deprecated\nfor ever", DeprecationWarning, stacklevel=1)


@pytest.mark.usefixtures("bare_root")
@pytest.mark.parametrize(
    ("fault", "level", "text", "cause"),
    [
        (fail_uncaught, "CRITICAL", f"uncaught error: ValueError: {NASTY}", "in fail"),
        (fail_in_thread, "ERROR", f"uncaught error in thread compute: ValueError: {NASTY}", "in fail"),
        (fail_unraisable, "ERROR", f"ignored: ValueError: {NASTY}", "in fail"),
        (fail_on_the_loop, "ERROR", "Exception in callback fail()", "in fail"),
        (fail_to_format, "ERROR", "a log record of test_logs, line ", ""),
        (warn, "WARNING", "deprecated\nfor ever", ""),
    ],
)
def test_nothing_that_fails_writes_a_line_that_is_not_json(
    capfd: pytest.CaptureFixture[str], fault: Callable[[], None], level: str, text: str, cause: str
) -> None:
    log_to_stderr("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        fault()
    (line,) = written(capfd)
    fields = json.loads(line)
    assert fields["level"] == level
    assert text in fields["message"]
    assert cause in fields.get("exc_info", "")


@pytest.mark.usefixtures("bare_root")
def test_a_shortage_is_named_in_the_message(capfd: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("json")
    sys.excepthook(MemoryError, MemoryError(), None)
    (line,) = written(capfd)
    assert "uncaught error: too little memory" in json.loads(line)["message"]


@pytest.mark.usefixtures("bare_root")
def test_without_stderr_records_go_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    log_to_stderr("auto")
    assert sys.stderr.name == os.devnull
    logging.getLogger("serving.x").error("lost")
    sys.stderr.close()


@pytest.mark.usefixtures("bare_root")
def test_a_stderr_that_cannot_be_written_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        log_to_stderr("json")
        logging.getLogger("serving.x").error("lost")
        logging.getLogger().handlers[0].close()
        assert dropped_lines() == 1


def test_a_pipe_that_nobody_reads_blocks_no_caller_and_what_was_dropped_is_counted_and_told() -> None:
    reading, writing = full_pipe()
    handler = StderrHandler(logging.Formatter(), descriptor=writing, encoding="utf-8", max_waiting=10)
    for number in range(30):
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "line %d", (number,), None))
    # The thread has taken one line, or none yet. Ten more wait.
    assert handler.dropped in {19, 20}
    before_s = time.monotonic()
    handler.close()
    assert time.monotonic() - before_s < 60  # of the limit of 1 s; without one it would wait for ever
    text = b""
    while b"were dropped" not in text:
        text += os.read(reading, 65536).strip(b"\0")
    kept = 30 - handler.dropped
    about = f"{handler.dropped} lines of the log were dropped, because stderr was not read, or could not be written"
    assert text.decode().splitlines() == [*(f"line {number}" for number in range(kept)), about]
    for end in (reading, writing):
        os.close(end)


@pytest.mark.usefixtures("bare_root")
def test_without_a_thread_the_caller_writes(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail_to_start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail_to_start)
    log_to_stderr("json")
    logging.getLogger("serving.x").error("now")
    assert json.loads(capfd.readouterr().err)["message"] == "now"


def test_a_process_ends_although_nobody_reads_its_lines() -> None:
    code = "import logging; from serving.telemetry.logs import log_to_stderr; log_to_stderr('text')\n"
    code += "for _ in range(100): logging.error('x' * 1000)"
    reading, writing = full_pipe()
    with subprocess.Popen([sys.executable, "-c", code], stderr=writing) as process:
        assert process.wait(timeout=240) == 0
    for end in (reading, writing):
        os.close(end)
