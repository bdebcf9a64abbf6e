import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pytest

from policy import bundle, verified_folder
from policy.bundle import Bundle
from serving.config import ServeConfig
from serving.engine.engine import Kind
from serving.policies import bucket as bucket_module
from tests.parameters import fresh_params
from tests.samples import policy_spec
from tests.serving import in_process
from tests.serving.admin_bench import Admin, started
from tests.serving.deployment_bench import Bench
from tests.serving.fake_bucket import FOLDER, FakeBucket, fake_bucket
from tests.serving.in_process import Running

if TYPE_CHECKING:
    from obstore.store import BackoffConfig

SPEC = policy_spec()


class Publish(Protocol):
    """Write a policy of its own, random parameters: `publish(root, 1000, name="other")`."""

    def __call__(self, root: Path, version: int, *, name: str = SPEC.name, stay: float | None = None) -> Path: ...


@pytest.fixture(scope="session")
def publish() -> Publish:
    def write(root: Path, version: int, *, name: str = SPEC.name, stay: float | None = None) -> Path:
        spec = dataclasses.replace(SPEC, name=name)
        rng = np.random.default_rng(version)
        return bundle.write(
            root,
            version,
            spec=spec,
            params=fresh_params(version, SPEC),  # the name changes none
            probe_state=rng.normal(size=(5, spec.state_dim)),
            probe_goal=rng.normal(size=(5, spec.goal_dim)),
            provenance={} if stay is None else {"metrics": {"eval/stay": stay}},
        )

    return write


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory, publish: Publish) -> Path:
    """A folder with one published version, 1000. Nobody changes it."""
    root = tmp_path_factory.mktemp("policies")
    publish(root, 1000)
    return root


@pytest.fixture(scope="session")
def served_bundle(policies: Path) -> Bundle:
    return bundle.read(policies / "1000")


@pytest.fixture(scope="session")
def running(policies: Path) -> Iterator[Running]:
    """One server for all tests that only call it: batches and calls of at most 8 rows, metrics without a port.

    Calls may wait for longer than by default: the machine may be busy.
    """
    config = ServeConfig(
        policies=(policies,),
        listen="127.0.0.1:0",
        http_port=0,
        metrics_port=0,
        metrics=False,
        max_batch_rows=8,
        max_call_rows=8,
        max_queue_age_s=60.0,
    )
    with in_process.served(config) as running:
        yield running


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncGenerator[Admin]:
    """An admin server of the policies ant and bee."""
    async with started(tmp_path, "bee", "ant") as admin:
        await admin.decisions.publish_more_of_ant()
        yield admin


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A deployment of one policy, not started."""
    return Bench(tmp_path)


class FakeEngine:
    """Gives each row [sum, 10 * sum], unless it is held until `release`, and records its batches.

    The clock, `now_s`, moves only when a test moves it, and by `compute_s` in every batch; that is also what a batch
    is expected to take.
    """

    def __init__(self, max_rows: int = 8, *, full_rows: int | None = None, max_concurrency: int = 1) -> None:
        self.max_rows = max_rows
        self.full_rows = full_rows or max_rows
        self.max_concurrency = max_concurrency
        self.batches: list[list[list[float]]] = []  # batch, row, value
        self.kinds: list[Kind] = []
        self.failure: BaseException | None = None
        self.now_s = 100.0
        self.compute_s = 0.0
        self.row_s = 0.0  # expected for each row, in addition
        self._may_compute = threading.Event()
        self._may_compute.set()

    def hold(self) -> None:
        self._may_compute.clear()

    def release(self) -> None:
        self._may_compute.set()

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        self.batches.append(rows.tolist())
        self.kinds.append(kind)
        self._may_compute.wait(timeout=120)
        self.now_s += self.compute_s
        if self.failure is not None:
            raise self.failure
        total = rows.sum(axis=1)
        return np.stack([total, 10 * total], axis=1)

    def padding(self, kind: Kind, rows: int) -> int:
        return self.max_rows - rows

    def expected_s(self, kind: Kind, rows: int) -> float:
        assert 1 <= rows <= self.max_rows
        return self.compute_s + self.row_s * rows

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def make_engine() -> type[FakeEngine]:
    return FakeEngine


async def wait_until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "waited for 60 s"
        await asyncio.sleep(0.001)


@pytest.fixture(name="wait_until", scope="session")
def wait_until_fixture() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return wait_until


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBucket]:
    """An empty bucket, to which the environment variables lead; copies of it are kept in a temporary folder.

    This process repeats requests after shorter pauses than a server does, waits longer for a reply, and does not wait
    for the disk.
    """
    monkeypatch.setattr(verified_folder, "fsync", lambda _: None)
    backoff: BackoffConfig = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
    monkeypatch.setitem(bucket_module.RETRY, "backoff", backoff)
    monkeypatch.setitem(bucket_module.RETRY, "retry_timeout", timedelta(seconds=300))
    for limit in ("connect_timeout", "read_timeout"):
        monkeypatch.setitem(bucket_module.CLIENT, limit, "300s")  # the bucket's thread may be late
    with fake_bucket() as bucket:
        for name, value in bucket.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield bucket


@pytest.fixture
def upload(remote: FakeBucket, policies: Path, publish: Publish, tmp_path: Path) -> Callable[..., None]:
    """Publish a version in the bucket; those without `stay` have the same files."""

    def do(version: int, *, stay: float | None = None) -> None:
        local = policies / "1000" if stay is None else publish(tmp_path / "local", version, stay=stay)
        remote.upload(local, f"{FOLDER}/{version}")

    return do
