"""What the log says when a bug ends a watch, such as that of the tokens, and that its end with the server is no bug."""

import asyncio
import functools
import logging
import threading
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from serving.access import token_watch
from serving.access.token_watch import TokenWatch
from serving.config import ServeConfig
from serving.loading import load
from serving.telemetry.heartbeat import Heartbeat
from serving.telemetry.logs import log_failure
from serving.workers.control import controlled
from serving.workers.reload import Reload
from tests.serving.access import authority
from tests.serving.access.test_guarded_server import write
from tests.serving.access.token_samples import bearer
from tests.serving.batcher_bench import WaitUntil
from tests.serving.deployment_bench import Bench

TOKENS = "changes of --tokens are no longer taken; restart the server"
METRICS = "the metrics of memory and descriptors stand still; restart the server"
FOLLOWING = "no new version is taken up any more; restart the server"


class BugError(Exception):
    """Ends a watch."""


async def fail(*_: object) -> None:
    raise BugError


def critical(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages of critical lines; each has the traceback of the bug."""
    records = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert all(record.exc_info and record.exc_info[0] is BugError for record in records)
    return [record.getMessage() for record in records]


async def test_a_task_that_is_cancelled_or_returns_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def finish() -> None:
        pass

    cancelled, returned, failed = (asyncio.create_task(each) for each in (asyncio.sleep(60), finish(), fail()))
    cancelled.cancel()
    for task, problem in ((cancelled, "cancelled"), (returned, "returned"), (failed, "failed")):
        task.add_done_callback(functools.partial(log_failure, problem=problem))
    await asyncio.wait({cancelled, returned, failed})
    await asyncio.sleep(0)  # the callbacks run after the one of `wait`
    assert critical(caplog) == ["failed"]


@pytest.mark.parametrize(
    ("owner", "method", "line"),
    [(TokenWatch, "_poll", TOKENS), (Heartbeat, "beat", METRICS)],
    ids=["tokens", "metrics"],
)
async def test_a_watch_of_a_server_that_ends_is_named_and_the_others_go_on(
    *,
    owner: type,
    method: str,
    line: str,
    tmp_path: Path,
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
) -> None:
    here, original = threading.get_ident(), getattr(owner, method)

    def fail_here(*arguments: object) -> object:
        if threading.get_ident() == here:
            raise BugError
        return original(*arguments)  # of a server that other tests share, in a thread of its own

    monkeypatch.setattr(token_watch, "POLL_S", 0.01)
    monkeypatch.setattr(owner, method, fail_here)
    path = write(tmp_path / "tokens.toml", robot="act")
    config = ServeConfig(policies=(policies,), listen="127.0.0.1:0", metrics=False, metrics_port=0, tokens=path)
    server = await load(config, collectors=CollectorRegistry())
    await server.start()
    await wait_until(lambda: line in critical(caplog))
    assert server.tokens is not None
    if owner is Heartbeat:
        write(path.with_name("next.toml"), robot="act", console="admin").replace(path)
        accepted = bearer("console")[0][1].removeprefix("Bearer ").encode()
        tokens = server.tokens.tokens
        await wait_until(lambda: tokens.find(accepted) is not None)
    await server.drain()
    assert critical(caplog) == [line]  # the watches that a stopping server ends have no line


async def test_the_watches_of_a_supervisor_that_end_are_named(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
) -> None:
    monkeypatch.setattr(TokenWatch, "run", fail)
    deployment = bench.start()
    monkeypatch.setattr(deployment, "run", fail)
    files = authority.write(tmp_path, authority.Authority().sign())
    config = ServeConfig(
        policies=(Path("a"),),
        admin="127.0.0.1:0",
        tokens=write(tmp_path / "tokens.toml", console="admin"),
        tls_cert=files.cert,
        tls_key=files.key,
    )
    async with controlled(
        deployment,
        config,
        address=config.address,
        drain=lambda: None,
        collectors=CollectorRegistry(),
        reload=cast("Reload", fail),
    ):
        await wait_until(lambda: sorted(critical(caplog)) == sorted([TOKENS, FOLLOWING]))
