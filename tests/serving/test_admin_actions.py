"""What operators ask for is logged and counted, and goes on without its caller."""

import asyncio
import contextlib
import io
import json
import logging
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kilolayer.v1 import admin_pb2 as pb
from serving.telemetry.logs import formatter
from tests.serving.admin_bench import Admin, refused, started
from tests.serving.decisions import DAMAGE


@pytest.fixture
def log() -> Generator[io.StringIO]:
    """The server's log, as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter("json", terminal=False))
    logger = logging.getLogger("serving.api.admin_actions")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


async def test_the_log_names_the_policy_and_what_is_ended_though_the_caller_left_them_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with started(tmp_path, "ant") as admin:
            await admin.call("Follow", off=True)
            await admin.call("Canary", off=True)
    lines = [record for record in caplog.records if record.getMessage().startswith("admin: ")]
    assert [record.getMessage().partition(" by ")[0] for record in lines] == [
        "admin: follow 'ant' off",
        "admin: canary 'ant' off",
    ]
    assert [(vars(record)["policy"], vars(record)["off"]) for record in lines] == [("ant", True), ("ant", True)]


async def test_an_action_goes_on_when_its_caller_leaves(admin: Admin, log: io.StringIO) -> None:
    admin.decisions.host.may_load.clear()
    request = pb.SwitchRequest(policy="ant", version="2500")
    call = admin.stub.Switch(request, timeout=60, metadata=[("kilolayer-admin-user", "ann")])
    async with asyncio.timeout(60):
        await admin.decisions.host.loading.wait()
        call.cancel()
        await admin.call("Status")  # the server has seen the cancellation
        admin.decisions.host.may_load.set()
        while admin.decisions.live("ant") != 2500:  # noqa: ASYNC110  driven by the server's own turns
            await asyncio.sleep(0.001)
    assert [(line["action"], line["user"], line["outcome"]) for line in lines(log)] == [("switch", "ann", "ok")]
    assert admin.count("switch", "ok") == 1


async def test_an_action_that_hangs_is_cancelled_when_the_server_stops(tmp_path: Path, log: io.StringIO) -> None:
    async with started(tmp_path, "ant") as admin:
        admin.decisions.publish("ant", 2500)
        admin.decisions.host.may_load.clear()
        call = admin.stub.Load(pb.LoadRequest(version="2500"), timeout=60)
        async with asyncio.timeout(60):
            await admin.decisions.host.loading.wait()
            call.cancel()
            await admin.server.stop()
        assert admin.count("load", "stopped") == 1
    assert [line["outcome"] for line in lines(log)] == ["stopped"]


@pytest.mark.parametrize("failure", [ValueError("a secret of the library"), asyncio.CancelledError("a secret")])
async def test_the_text_of_a_foreign_exception_stays_in_the_log(
    admin: Admin, log: io.StringIO, failure: BaseException
) -> None:
    admin.decisions.host.failure = failure
    with refused("INTERNAL", "internal", "the server failed on this call; its log says why"):
        await admin.call("Switch", policy="ant", version="2500")
    (line,) = lines(log)
    assert (line["level"], line["outcome"]) == ("ERROR", "internal")
    assert "a secret" in line["exc_info"]
    assert admin.count("switch", "internal") == 1


async def test_an_action_is_one_line_with_who_and_what(admin: Admin, log: io.StringIO) -> None:
    await admin.call("Switch", policy="ant", version="2500")
    with contextlib.suppress(grpc.aio.AioRpcError):
        await admin.call("Switch", policy="ant", version="3000")
    await admin.stub.Rollback(pb.RollbackRequest(policy="ant"), timeout=60)
    await admin.call("Status")
    switched, failed, rolled_back = lines(log)
    assert re.fullmatch(r"admin: switch 'ant' '2500' by 'ann' at unix: ok after \d+\.\d{3} s", switched["message"])
    facts = {"policy": "ant", "version": "2500", "user": "ann", "peer": "unix", "outcome": "ok", "level": "INFO"}
    assert facts.items() <= switched.items()
    assert 0 <= switched["seconds"] < 60
    assert (failed["level"], failed["outcome"]) == ("WARNING", "version_refused")
    assert failed["message"].endswith(f" s: {DAMAGE}")
    assert rolled_back["message"].startswith("admin: rollback 'ant' by an unnamed caller at unix: ok after ")
    assert rolled_back["user"] == ""


async def test_words_of_a_caller_do_not_break_the_log_and_are_no_labels(admin: Admin, log: io.StringIO) -> None:
    rude = "ann\x1b[2J\n" + "x" * 10_000
    with contextlib.suppress(grpc.aio.AioRpcError):
        metadata = [("kilolayer-admin-user", "'; ann " + "y" * 5000)]
        request = pb.SwitchRequest(policy=rude, version=rude)
        await admin.stub.Switch(request, timeout=60, metadata=metadata)
    (line,) = lines(log)
    assert line["policy"] == r"ann\x1b[2J\n" + "x" * 56 + "..."
    assert line["user"] == "'; ann " + "y" * 57 + "..."
    assert len(json.dumps(line)) < 1500
    labels = [sample.labels for metric in admin.metrics.collect() for sample in metric.samples]
    assert {label["action"] for label in labels} == {"switch"}
    assert {label["outcome"] for label in labels} == {"unknown_policy"}
