"""What a running server does at SIGHUP."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from serving.config import ServeConfig
from serving.policies.deployment import Deployment
from serving.workers import control
from serving.workers.reload import Reload
from tests.serving.conftest import wait_until
from tests.serving.deployment_bench import Bench


async def test_a_reload_that_fails_is_logged_and_the_next_one_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handlers: list[Callable[[], None]] = []
    monkeypatch.setattr(control, "on_hangup", handlers.append)
    deployment = bench.start()
    reloaded: list[Deployment] = []

    async def reload(given: Deployment) -> None:
        reloaded.append(given)
        if len(reloaded) == 1:
            raise RuntimeError("a bug")

    config = ServeConfig(policies=(Path("a"),), admin="off")
    controlled = control.controlled(
        deployment,
        config,
        address=config.address,
        drain=lambda: None,
        collectors=CollectorRegistry(),
        reload=cast("Reload", reload),
    )
    async with controlled:
        (hangup,) = handlers
        hangup()
        await wait_until(lambda: caplog.messages == ["the settings stay as they are"])
        hangup()
        await wait_until(lambda: reloaded == [deployment, deployment])
