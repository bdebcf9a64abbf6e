"""Versions that are loaded, made live and unloaded while a server's host answers."""

import asyncio
import dataclasses
import gc
import itertools
import logging
import shutil
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from policy import acting, bundle
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.errors import RefusedVersionError, StartupError, UnknownVersionError
from serving.policies import store
from serving.policies.host import PolicyHost
from serving.policies.registry import PolicyRegistry
from serving.telemetry.metrics import Metrics
from tests.parameters import fresh_params
from tests.samples import policy_spec
from tests.serving.conftest import wait_until
from tests.serving.sources import policy_source

SPEC = policy_spec()
NAME = SPEC.name
ROW = np.array([[0.5, -1, 2, 0, 1, 1]], np.float32)  # state, goal
Publish = Callable[..., Path]


@dataclasses.dataclass
class Hosted:
    """A host with version 1 live, and what belongs to it."""

    root: Path
    host: PolicyHost
    policies: PolicyRegistry
    collectors: CollectorRegistry

    async def action(self, version: str = "") -> tuple[str, np.ndarray]:
        """The version that answers a request for `version`, and its action."""
        served = self.policies.find("", version=version)
        return served.version, (await served.batcher.submit(ROW)).results

    def sample(self, name: str, **labels: str) -> float | None:
        return self.collectors.get_sample_value(f"kilolayer_{name}", labels)


@pytest.fixture
async def hosted(publish: Publish, tmp_path: Path) -> AsyncIterator[Hosted]:
    publish(tmp_path, 1)
    collectors = CollectorRegistry()
    policies = PolicyRegistry(frozenset({NAME}), default=NAME)
    host = PolicyHost(
        [policy_source(tmp_path, max_batch_rows=2, max_batch_delay_s=0.0)],
        {NAME: bundle.read(tmp_path / "1")},
        policies,
        config=ServeConfig(policies=(tmp_path,)),
        metrics=Metrics(collectors),
        on_broken=lambda policy, cause: pytest.fail(f"{policy}: {cause}"),
    )
    await host.compile_first()
    await host.compile_rest()
    host.open()
    yield Hosted(tmp_path, host, policies, collectors)
    assert await host.drain(grace_s=60)


def expected(version: int) -> np.ndarray:
    """The action of a published version for `ROW`."""
    params = fresh_params(version, SPEC)
    return np.asarray(acting.act(params, ROW[:, :4], ROW[:, 4:]))


def publish_other(root: Path, version: int, **changes: object) -> None:
    """Publish a version whose specification has these differences."""
    spec = dataclasses.replace(SPEC, **changes)
    bundle.write(
        root,
        version,
        spec=spec,
        params=fresh_params(version, spec),
        probe_state=np.ones((5, spec.state_dim)),
        probe_goal=np.ones((5, spec.goal_dim)),
        provenance={},
    )


async def test_a_canary_answers_a_share_of_the_robots_until_it_ends(hosted: Hosted, publish: Publish) -> None:
    publish(hosted.root, 2)
    await hosted.host.prepare(NAME, 2)
    robots = [f"robot {number}" for number in range(100)]

    def candidates() -> set[str]:
        return {robot for robot in robots if hosted.policies.find("", version="", robot=robot).version == "2"}

    await hosted.host.set_canary(NAME, 2, share=0.2)
    few = candidates()
    await hosted.host.set_canary(NAME, 2, share=0.6)
    assert 5 < len(few) < 40 < len(candidates()) < 80  # binomial, with standard deviations of 4 and 5
    assert few < candidates()
    await hosted.host.set_canary(NAME, 2, share=0)
    assert candidates() == set()


async def test_a_shadow_is_compared_with_the_live_version(hosted: Hosted, publish: Publish) -> None:
    publish(hosted.root, 2)
    await hosted.host.prepare(NAME, 2)
    await hosted.host.set_shadow(NAME, 2, share=1.0)
    live, other = hosted.policies.find("", version=""), hosted.policies.find("", version="2")
    assert hosted.policies.shadow(other) is None
    shadow = hosted.policies.shadow(live)
    assert shadow
    shadow.compare(ROW, expected(1))
    await wait_until(lambda: hosted.sample("shadow_distance_count", policy=NAME) == 1)
    distance = np.abs(expected(2) - expected(1)).max()
    assert distance > 0.01
    assert hosted.sample("shadow_distance_sum", policy=NAME) == pytest.approx(distance, abs=1e-6)
    await hosted.host.set_shadow(NAME, 2, share=0)
    assert hosted.policies.shadow(live) is None


async def test_a_loaded_version_answers_by_its_name_and_a_live_one_without(hosted: Hosted, publish: Publish) -> None:
    publish(hosted.root, 2)
    with pytest.raises(UnknownVersionError, match="has no version '2'; there are: 1"):
        hosted.policies.find("", version="2")
    await hosted.host.prepare(NAME, 2)
    version, action = await hosted.action("2")
    assert version == "2"
    np.testing.assert_allclose(action, expected(2), atol=1e-6)
    version, action = await hosted.action()
    assert version == "1"
    np.testing.assert_allclose(action, expected(1), atol=1e-6)
    await hosted.host.switch(NAME, 2)
    assert (await hosted.action())[0] == "2"
    assert (await hosted.action("1"))[0] == "1"


async def test_the_metrics_name_the_live_version(hosted: Hosted, publish: Publish) -> None:
    publish(hosted.root, 2)
    await hosted.host.prepare(NAME, 2)
    assert hosted.sample("live_version", policy=NAME) == 1
    await hosted.host.switch(NAME, 2)
    assert hosted.sample("live_version", policy=NAME) == 2
    described = {
        sample.labels["version"]: sample.value
        for metric in hosted.collectors.collect()
        if metric.name == "kilolayer_policy_info"
        for sample in metric.samples
    }
    assert described == {"2": 1}
    await hosted.host.switch(NAME, 2)  # again, without an effect
    assert hosted.sample("live_version", policy=NAME) == 2


async def test_a_version_of_the_same_sizes_is_loaded_without_a_compilation(
    hosted: Hosted, publish: Publish, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(hosted.root, 2)
    monkeypatch.setattr(Engine, "build", lambda *_: pytest.fail("compiled"))
    clock = itertools.count()  # 1 s for reading, and 1 s for each of three stages
    monkeypatch.setattr(hosted.host, "_clock", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO):
        await hosted.host.prepare(NAME, 2)
    line = f"loaded {NAME}@2 in 4.0 s, of which reading and verifying took 1.0 s: "
    assert caplog.messages[-1].startswith(line)


async def test_a_deeper_version_is_compiled_and_computes_its_own_action(
    hosted: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    publish_other(hosted.root, 2, actor_depth=8)
    with caplog.at_level(logging.INFO):
        await hosted.host.prepare(NAME, 2)
    assert caplog.messages[-1].startswith(f"loaded and compiled {NAME}@2 in ")
    deeper = fresh_params(2, dataclasses.replace(SPEC, actor_depth=8))
    np.testing.assert_allclose((await hosted.action("2"))[1], acting.act(deeper, ROW[:, :4], ROW[:, 4:]), atol=1e-6)


async def test_a_version_is_known_by_the_served_name_whatever_its_own_is(hosted: Hosted, publish: Publish) -> None:
    publish(hosted.root, 2, name="another")
    await hosted.host.prepare(NAME, 2)
    assert hosted.policies.find(NAME, version="2").name == NAME


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        (lambda root: publish_other(root, 2, success_radius=9.0), "interface", "success_radius is 9.0 instead of 0.3"),
        (lambda root: (root / "2").mkdir(), "manifest", "manifest.json"),
        (lambda _root: None, "missing", "there is no published version of that name"),
    ],
)
async def test_a_version_that_must_not_be_served_is_refused_and_the_live_one_goes_on(
    hosted: Hosted, change: Callable[[Path], object], reason: str, message: str
) -> None:
    change(hosted.root)
    with pytest.raises(RefusedVersionError, match=message) as caught:
        await hosted.host.prepare(NAME, 2)
    assert caught.value.reason == reason
    assert hosted.sample("bundles_rejected_total", reason=reason) == 1
    assert (await hosted.action())[0] == "1"


async def test_a_worker_leaves_the_count_of_refused_versions_to_its_supervisor(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted.host, "_config", ServeConfig(policies=(hosted.root,), workers=2))
    with pytest.raises(RefusedVersionError):
        await hosted.host.prepare(NAME, 2)
    assert hosted.sample("bundles_rejected_total", reason="missing") is None


async def test_a_version_that_gives_other_actions_here_is_refused(
    hosted: Hosted, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hosted.root, 2)
    compute = Engine.compute
    monkeypatch.setattr(Engine, "compute", lambda *arguments: compute(*arguments) + np.float32(0.05))
    with pytest.raises(RefusedVersionError, match="actions differ from the published ones by 0.05") as caught:
        await hosted.host.prepare(NAME, 2)
    assert caught.value.reason == "probes"


async def test_what_the_machine_lacks_is_not_blamed_on_the_version(
    hosted: Hosted, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hosted.root, 2)

    def lack_memory(_path: Path, *, root: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(store.bundle, "read", lack_memory)
    with pytest.raises(StartupError, match="too little memory"):
        await hosted.host.prepare(NAME, 2)


async def test_a_version_is_loaded_once_though_two_ask_for_it(
    hosted: Hosted, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hosted.root, 2)
    read, real = list[tuple[Path, Path]](), bundle.read

    def note(path: Path, *, root: Path) -> bundle.Bundle:
        read.append((path, root))
        return real(path, root=root)

    monkeypatch.setattr(store.bundle, "read", note)
    await asyncio.gather(hosted.host.prepare(NAME, 2), hosted.host.prepare(NAME, 2))
    assert read == [(hosted.root / "2", hosted.root)]


async def test_an_unloaded_version_answers_what_it_has_admitted_and_nothing_more(
    hosted: Hosted, publish: Publish
) -> None:
    publish(hosted.root, 2)
    await hosted.host.prepare(NAME, 2)
    await hosted.host.switch(NAME, 2)
    admitted = hosted.policies.find("", version="1").batcher.admit(ROW)
    await hosted.host.unload(NAME, 1)
    np.testing.assert_allclose((await admitted.result).results, expected(1), atol=1e-6)
    with pytest.raises(UnknownVersionError, match="has no version '1'; there are: 2"):
        hosted.policies.find("", version="1")
    await hosted.host.unload(NAME, 1)  # no effect


async def test_a_drain_waits_for_a_version_that_is_being_unloaded(hosted: Hosted, publish: Publish) -> None:
    publish(hosted.root, 2)
    await hosted.host.prepare(NAME, 2)
    admitted = hosted.policies.find("", version="2").batcher.admit(ROW)
    unloading = asyncio.create_task(hosted.host.unload(NAME, 2))
    await asyncio.sleep(0)
    unloading.cancel()  # as when a server stops
    assert await hosted.host.drain(grace_s=60)
    assert admitted.result.done()
    np.testing.assert_allclose(admitted.result.result().results, expected(2), atol=1e-6)


async def test_a_version_whose_folder_is_gone_goes_on(hosted: Hosted) -> None:
    shutil.rmtree(hosted.root / "1")
    assert (await hosted.action())[0] == "1"


async def test_an_unloaded_version_leaves_no_memory_behind(hosted: Hosted, publish: Publish) -> None:
    """Also the one that was live at the start."""
    first = weakref.ref(hosted.policies.find("", version="1").bundle)
    publish(hosted.root, 2)
    await hosted.host.prepare(NAME, 2)
    await hosted.host.switch(NAME, 2)
    await hosted.host.unload(NAME, 1)
    gc.collect()
    assert first() is None
