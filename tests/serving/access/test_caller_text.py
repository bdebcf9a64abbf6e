"""What callers write into their requests makes no metric series, and no broken or long line of the log."""

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from serving.access.token_watch import TokenWatch
from serving.api.rpc import RpcContext
from serving.api.tracing import Tracing
from serving.errors import ServingError
from serving.telemetry.logs import formatter
from tests.serving.access.caller_text import methods, raw_request, request
from tests.serving.access.services import Services, outcome, started
from tests.serving.access.token_samples import bearer

WATCH = "/grpc.health.v1.Health/Watch"
NAMES = 100
NASTY = {
    "newline": 'a\n{"level": "ERROR", "message": "forged"}\r\n',
    "ansi": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "nul": "a\x00b",
    "line separator": "a\u2028b\u2029c\x85d",
    "megabyte": "x" * 2**20,
    "quotes": '"}\\',
}
SURROGATE = b"\xed\xa0\x80"


def series(services: Services) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every series that a scrape shows, by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in services.collectors.collect()
        for sample in family.samples
        if "le" not in sample.labels
    }


async def serve(services: Services, path: str, raw: bytes, text: str) -> None:
    """Call a method as a transport does whose caller writes `text` into every part of the metadata."""
    keys = ("kilolayer-admin-user", "user-agent", "traceparent", "tracestate", "baggage", "authorization", text)
    context = RpcContext(path, metadata=lambda: dict.fromkeys(keys, text))
    service_name, name = path[1:].split("/")
    (service,) = (
        each for each in services.services if each.name == service_name and name in {**each.unary, **each.streams}
    )

    async def requests() -> AsyncIterator[bytes]:
        yield raw

    with contextlib.suppress(ServingError):
        if name in service.unary:
            await service.unary[name](raw, context)
        elif path != WATCH:
            async with contextlib.aclosing(service.streams[name](requests(), context)) as replies:
                async for _ in replies:
                    pass


async def call_every_method(services: Services, text: str) -> None:
    """Call every method with `text` in every field."""
    for path in services.paths():
        await serve(services, path, request(path, text), text)


async def test_unknown_names_make_no_metric_series(tmp_path: Path) -> None:
    services = Services(tmp_path)
    assert set(services.paths()) <= set(methods())
    await services.decisions.restore()
    await call_every_method(services, "unknown-first")
    before = series(services)
    assert ("kilolayer_requests_total", (("code", "NOT_FOUND"), ("method", "Act"), ("policy", "(unknown)"))) in before
    for number in range(NAMES):
        await call_every_method(services, f"unknown-{number}")
    assert series(services) == before
    assert NAMES * len(services.paths()) == 3000
    counted = services.count("requests_total", method="Act", policy="(unknown)", code="NOT_FOUND")
    assert counted == NAMES + 1


async def test_unknown_methods_and_tokens_make_no_metric_series(tmp_path: Path) -> None:
    services = Services(tmp_path)
    async with started(services):
        before = series(services)
        for number in range(50):
            text = f"unknown-{number}"
            for path in (f"/kilolayer.v1.Policy/{text}", f"/{text}/Act"):
                assert (await outcome(services.call(path, metadata=bearer("of-act"))))[0] == "UNIMPLEMENTED"
            metadata = (*bearer(text), ("user-agent", text), ("x-" + text, text))
            assert (await outcome(services.call("/kilolayer.v1.Policy/Act", metadata=metadata)))[0] == "UNAUTHENTICATED"
        assert series(services) == before
        assert services.count("refused_total", reason="unknown") == 50


class Lines(logging.Handler):
    """Formats records as the log on stderr does."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.json: list[str] = []
        self.text: list[str] = []
        self.loggers: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name)
        self.json.append(formatter("json", terminal=False).format(record))
        self.text.append(formatter("text", terminal=False).format(record))


@contextlib.contextmanager
def logged() -> Generator[Lines]:
    lines, root = Lines(), logging.getLogger()
    before = root.level
    root.addHandler(lines)
    root.setLevel(logging.INFO)
    yield lines
    root.removeHandler(lines)
    root.setLevel(before)


def assert_lines_are_sound(lines: Lines) -> None:
    for line in lines.json:
        assert line.isascii()
        assert line.isprintable()
        assert isinstance(json.loads(line), dict)
        assert len(line) < 2000, line[:3000]
        assert "the-secret" not in line
    for line in lines.text:
        assert "\n" not in line
        assert "\x1b" not in line


@pytest.mark.parametrize("kind", NASTY)
async def test_a_line_of_the_log_is_one_short_object_whatever_a_caller_writes(tmp_path: Path, kind: str) -> None:
    text = NASTY[kind]
    services = Services(tmp_path, tracing=Tracing(TracerProvider()))
    await services.decisions.restore()
    with logged() as lines:
        for path in services.paths():
            await serve(services, path, request(path, text), text)
            await serve(services, path, raw_request(path, SURROGATE), "\ud800")
    assert len(lines.json) > 10
    assert lines.loggers == {"serving.api.admin_actions"}  # a malformed header writes no line
    assert_lines_are_sound(lines)


@pytest.mark.parametrize("kind", NASTY)
async def test_a_refused_call_is_one_short_line_without_its_header(tmp_path: Path, kind: str) -> None:
    text = NASTY[kind]
    path = tmp_path / "tokens.toml"
    services = Services(tmp_path / "policies")
    guard: Any = services.guard
    with logged() as lines:
        for value in (text, f"Bearer {text}", f"Basic {text}"):
            with contextlib.suppress(ServingError):
                guard.admit("act", [("authorization", value)], method="/a.B/C", peer="ipv4:1.2.3.4:5")
        assert all(text not in line for line in lines.json)
        path.write_text('[tokens.a]\ntoken = "0123456789abcdef"\nroles = ["act"]')
        TokenWatch(path).take(f"[tokens.{json.dumps(text)}]\nx = {json.dumps(text)}".encode())
    assert len(lines.json) >= 2
    assert_lines_are_sound(lines)
