"""What SIGHUP takes from settings that have changed, and what it says about the rest."""

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from serving.config import ConfigError, ServeConfig
from serving.errors import StartupError
from serving.policies.deployment import Deployment
from serving.policies.source import PolicySource
from serving.workers import reload as reload_module
from serving.workers.reload import Reload
from tests.serving.sources import policy_source

CONFIG = ServeConfig(policies=(Path("a"), Path("b")), follow=True)
SOURCES = (policy_source(Path("a"), name="ant"), policy_source(Path("b"), name="bee"))


class Deployed:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.rules: list[PolicySource] = []
        self.polled = 0

    def take_rules(self, sources: Sequence[PolicySource]) -> None:
        self.rules += sources

    def poll_now(self) -> None:
        self.polled += 1


async def reload(
    monkeypatch: pytest.MonkeyPatch,
    config: ServeConfig | Exception,
    sources: Sequence[PolicySource] | Exception = SOURCES,
) -> Deployed:
    """Read these settings, which name these policies."""

    def read() -> ServeConfig:
        if isinstance(config, Exception):
            raise config
        return config

    def resolve(given: ServeConfig) -> Sequence[PolicySource]:
        assert given is config
        if isinstance(sources, Exception):
            raise sources
        return sources

    monkeypatch.setattr(reload_module, "resolve", resolve)
    deployed = Deployed()
    await Reload(CONFIG, SOURCES, read)(cast("Deployment", deployed))
    return deployed


async def test_rules_about_versions_are_taken_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ant = dataclasses.replace(SOURCES[0], wanted=3, follow=False)
    config = dataclasses.replace(CONFIG, versions=("ant=3",), follow=False)
    deployed = await reload(monkeypatch, config, [ant, SOURCES[1]])
    assert deployed.rules == [ant, SOURCES[1]]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_what_needs_a_restart_is_named_and_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ant = dataclasses.replace(SOURCES[0], max_batch_rows=8)
    config = dataclasses.replace(CONFIG, grace_s=5.0, policies=(Path("a"), Path("c")))
    deployed = await reload(monkeypatch, config, [ant, policy_source(Path("c"), name="cat")])
    assert deployed.rules == [ant]
    assert caplog.messages == [
        "a restart is needed to take what has changed: policies, grace_s, policies.bee, policies.cat,"
        " policies.ant.max_batch_rows"
    ]


@pytest.mark.parametrize(
    ("config", "sources"),
    [(ConfigError("key x is wrong"), ()), (CONFIG, StartupError("a does not exist"))],
)
async def test_wrong_settings_change_nothing_and_the_folders_are_polled(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    config: ServeConfig | Exception,
    sources: Exception,
) -> None:
    deployed = await reload(monkeypatch, config, sources)
    assert (deployed.rules, deployed.polled) == ([], 1)
    problem = config if isinstance(config, Exception) else sources
    assert caplog.messages == [f"the settings stay as they are: {problem}"]


async def test_signals_during_a_reload_are_one_reload_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started, may_end, reads = threading.Event(), threading.Event(), list[int]()

    def read() -> ServeConfig:
        reads.append(1)
        started.set()
        assert may_end.wait(60)
        return CONFIG

    monkeypatch.setattr(reload_module, "resolve", lambda _: SOURCES)
    deployed, reload_settings = Deployed(), Reload(CONFIG, SOURCES, read)
    first = asyncio.create_task(reload_settings(cast("Deployment", deployed)))
    await asyncio.to_thread(started.wait, 60)
    later = [asyncio.create_task(reload_settings(cast("Deployment", deployed))) for _ in range(50)]
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.gather(first, *later)
    assert len(reads) == 2
