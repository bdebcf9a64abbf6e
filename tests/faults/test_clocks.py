"""A jump of the wall clock changes nothing: only monotonic clocks measure, in every file that a robot depends on."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
WALL_CLOCKS = frozenset({"time.time", "time.time_ns", "time.clock_gettime", "time.localtime", "time.gmtime"})
NOW = frozenset({"now", "today", "utcnow"})


def wall_clocks(source: str) -> list[str]:
    """Return where `source` uses a wall clock, other than as the default of a parameter that is named as one."""
    found: list[str] = []
    tree = ast.parse(source)
    named = {id(default) for default in named_defaults(tree)}
    for node in ast.walk(tree):
        if id(node) in named:
            continue
        match node:
            case ast.Attribute() if ast.unparse(node) in WALL_CLOCKS:
                found.append(ast.unparse(node))
            case ast.Attribute(attr=name) if name in NOW and "date" in ast.unparse(node.value):
                found.append(ast.unparse(node))
            case ast.ImportFrom(module="time", names=names):
                found += [f"time.{name.name}" for name in names if f"time.{name.name}" in WALL_CLOCKS]
            case _:
                pass
    return found


def named_defaults(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the defaults of keyword-only parameters `wall_clock...`, for dates in files and protocols."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            for parameter, default in zip(node.kwonlyargs, node.kw_defaults, strict=True):
                if default is not None and parameter.arg.startswith("wall_clock"):
                    yield default


def modules() -> Iterator[Path]:
    for folder in ("serving", "policy", "clients"):
        yield from sorted((REPOSITORY / folder).rglob("*.py"))


def test_the_server_the_policies_and_the_clients_use_no_wall_clock() -> None:
    """The time of a line of the log comes from Python's own logging."""
    assert {REPOSITORY / "serving/server.py", REPOSITORY / "clients/python/kilolayer/_client.py"} <= set(modules())
    used = {str(path.relative_to(REPOSITORY)): wall_clocks(path.read_text()) for path in modules()}
    assert not {path: found for path, found in used.items() if found}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\nstarted = time.time()", ["time.time"]),
        ("from time import time_ns", ["time.time_ns"]),
        ("import time\nclock = time.time", ["time.time"]),
        ("import datetime\ndatetime.datetime.now(tz=datetime.UTC)", ["datetime.datetime.now"]),
        ("from datetime import date\ndate.today()", ["date.today"]),
        ("import time\ndef f(*, wall_clock=time.time): pass", []),
        ("import time\ndef f(*, clock=time.time): pass", ["time.time"]),
        ("import time\ntime.monotonic() + time.perf_counter()", []),
    ],
)
def test_a_wall_clock_is_noticed(source: str, found: list[str]) -> None:
    assert wall_clocks(source) == found
