"""Policies in a bucket are found, served and followed like those in a folder, whatever the network does."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kilolayer import PolicyClient
from policy import bundle
from serving.config import ServeConfig
from serving.errors import BucketError, StartupError
from serving.policies.deployment import Deployment
from serving.policies.restart import Restart, first_choices
from serving.policies.source import PolicySource, candidates, resolve
from serving.policies.store import load_all
from serving.policy_settings import NamedPath
from tests.faults.supervised import Supervised, serve_command
from tests.serving.decisions import FakeHost
from tests.serving.fake_bucket import FakeBucket
from tests.serving.server_process import launch

Publish = Callable[..., Path]
FOLDER = "run/policies"
NAME = "point_u_maze"


@pytest.fixture
def upload(remote: FakeBucket, publish: Publish, tmp_path: Path) -> Callable[..., None]:
    """Publish a version in the bucket."""

    def do(version: int, *, stay: float | None = None) -> None:
        remote.upload(publish(tmp_path / "local", version, stay=stay), f"{FOLDER}/{version}")

    return do


def source_of(remote: FakeBucket, folder: str = FOLDER, *, name: str = "", **settings: object) -> PolicySource:
    url = remote.url("gs", folder)
    policies = (NamedPath(name, url) if name else url,)
    (source,) = resolve(ServeConfig(policies=policies, **settings))  # pyright: ignore[reportArgumentType]
    return source


def copied(source: PolicySource) -> list[int]:
    return bundle.versions(source.folder)


def test_a_named_policy_is_found_without_copying_it(remote: FakeBucket, upload: Callable[..., None]) -> None:
    upload(7)
    upload(12)
    source = source_of(remote, name="maze")
    assert (source.name, str(source.place), source.wanted, source.follow) == (
        "maze",
        f"gs://{remote.name}/{FOLDER}",
        "latest",
        True,
    )
    assert candidates(source) == [12, 7]
    assert first_choices(source) == (12, 7)
    assert remote.count("get") == 0


def test_without_a_name_it_gets_that_of_its_newest_version_which_is_copied(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    upload(12)
    source = source_of(remote)
    assert source.name == NAME
    assert copied(source) == [12]


def test_only_the_version_that_is_served_is_copied(
    remote: FakeBucket, upload: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    for version in (7, 12, 20):
        upload(version)
    remote.objects[f"{FOLDER}/20/policy.json"] = b"{}"
    source, reasons = source_of(remote, name="maze"), list[str]()
    loaded = load_all([source], [first_choices(source)], on_rejected=reasons.append)
    assert (loaded["maze"].version, loaded["maze"].spec.name, loaded["maze"].path) == (12, "maze", source.path(12))
    assert reasons == ["hash"]
    assert copied(source) == [12]
    assert f"skipping version 20: gs://{remote.name}/{FOLDER}/20 is not a usable policy (hash): " in caplog.text


def test_a_copy_that_is_refused_is_copied_anew(remote: FakeBucket, upload: Callable[..., None]) -> None:
    upload(7)
    source, reasons = source_of(remote, name="maze", versions=("maze=7",)), list[str]()
    with source.held(7) as path:
        (path / "probes.npz").write_bytes(b"")  # a faulty disk
    with pytest.raises(StartupError, match="version 7 of maze cannot be served: "):
        load_all([source], [[7]], on_rejected=reasons.append)
    assert reasons == ["hash"]
    assert load_all([source], [[7]], on_rejected=pytest.fail)["maze"].version == 7


def test_the_best_version_is_found_by_the_descriptions_alone(remote: FakeBucket, upload: Callable[..., None]) -> None:
    for version, stay in ((7, 0.25), (8, 0.75), (9, None)):
        upload(version, stay=stay)
    source = source_of(remote, name="maze", versions=("maze=best",))
    assert candidates(source) == [8, 7, 9]
    assert remote.count("get") == 6
    assert copied(source) == []


def test_one_version_of_a_bucket_is_served_alone(remote: FakeBucket, upload: Callable[..., None]) -> None:
    upload(7)
    upload(8)
    source = source_of(remote, f"{FOLDER}/7")
    assert (source.name, source.wanted, source.follow, source.given) == (NAME, 7, False, source.folder / "7")
    assert copied(source) == [7]
    place = f"gs://{remote.name}/{FOLDER}"
    with pytest.raises(
        StartupError, match=f"{place}/7 is version 7 of maze, .* cannot be served; use --policies {place}"
    ):
        source_of(remote, f"{FOLDER}/7", name="maze", versions=("maze=8",))
    with pytest.raises(StartupError, match=f"{place} has no version 9 of maze; the newest ones are: 7, 8"):
        source_of(remote, name="maze", versions=("maze=9",))


def test_a_folder_without_versions_names_the_one_that_has_them(remote: FakeBucket, upload: Callable[..., None]) -> None:
    upload(7)
    place = f"gs://{remote.name}/run"
    for folder in ("run", f"{FOLDER}/8"):
        with pytest.raises(StartupError, match=f"no published version, but {place}/policies does; use --policies"):
            source_of(remote, folder)
    with pytest.raises(StartupError, match="/nowhere holds no published version; upload the folder policies/ of a run"):
        source_of(remote, "nowhere")


def test_a_server_does_not_start_while_the_bucket_cannot_be_read(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    source = source_of(remote, name="maze")
    remote.is_down = True
    for start in (lambda: source_of(remote, name="maze"), lambda: load_all([source], [[7]], on_rejected=pytest.fail)):
        with pytest.raises(BucketError, match="cannot read gs://"):
            start()


class Following:
    """A deployment that follows a bucket, with version 7 live, and a host that computes nothing."""

    def __init__(self, source: PolicySource) -> None:
        self.deployment = Deployment([source], FakeHost(), Restart(None, {}, ((7,),)), live={"maze": 7}, keep=0)

    @property
    def live(self) -> int:
        return self.deployment.status()[0].live

    async def look(self, times: int) -> None:
        for _ in range(times):
            await self.deployment.look()


async def test_a_bucket_is_looked_at_every_ten_seconds_and_immediately_on_request(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    following = Following(source_of(remote, name="maze"))
    remote.requests.clear()
    await following.look(20)
    assert remote.count("list") == 2
    upload(8)
    await following.look(1)
    assert following.live == 8
    upload(9)
    following.deployment.look_now()
    await following.look(1)
    assert following.live == 9


async def test_a_version_that_is_still_being_uploaded_is_not_taken_up(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    following = Following(source_of(remote, name="maze"))
    upload(8)
    manifest = remote.objects.pop(f"{FOLDER}/8/manifest.json")
    await following.look(11)
    assert following.live == 7
    remote.objects[f"{FOLDER}/8/manifest.json"] = manifest
    await following.look(10)
    assert following.live == 8


async def test_a_bucket_that_cannot_be_read_is_one_warning_and_is_looked_at_later(
    remote: FakeBucket, upload: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    upload(7)
    following = Following(source_of(remote, name="maze"))
    remote.is_down = True
    caplog.clear()
    await following.look(31)
    (line,) = caplog.messages
    assert re.fullmatch(r"cannot read gs://\S+ \(.*\); check the address, .*; looking again later", line)
    remote.is_down = False
    upload(8)
    await following.look(1)
    assert following.live == 8


@pytest.mark.slow
def test_two_workers_follow_a_bucket_and_outlive_an_outage(
    remote: FakeBucket, upload: Callable[..., None], tmp_path: Path
) -> None:
    upload(1)
    command = serve_command(remote.url("s3", FOLDER), workers=2)
    with Supervised(command, log=tmp_path / "log") as server:
        (address,) = server.wait_for(rf"ready: grpc=(\S+) .*policies={NAME}@1 workers=2")
        upload(2)
        server.wait_for("version 2 is live in place of version 1")
        remote.is_down = True
        server.wait_for(r"cannot read s3://\S+ .*; looking again later")
        with PolicyClient(address, timeout_s=30) as client:
            assert client.act([0.0] * 4, [0.0] * 2).version == "2"
        remote.is_down = False
        upload(3)
        server.wait_for("version 3 is live in place of version 2")


@pytest.mark.slow
def test_a_server_that_waits_for_a_bucket_stops_immediately(remote: FakeBucket, upload: Callable[..., None]) -> None:
    upload(1)
    remote.answers.clear()
    for workers in ("1", "2"):
        remote.waits.clear()
        with launch("--policies", str(remote.url("s3", FOLDER)), "--workers", workers) as process:
            assert remote.waits.wait(120)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=8)  # a request is given up after 10 s
        assert process.returncode == 0
        assert "Traceback" not in errors
