"""Policies in a bucket are found, served and followed like those in a folder, whatever the network does."""

import asyncio
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from policy import bundle, verified_folder
from serving.config import ServeConfig
from serving.errors import BucketError, DeploymentError, Reason, StartupError
from serving.policies.deployment import Deployment
from serving.policies.episode_reports import EpisodeReports
from serving.policies.restart import RestartPlan, first_choices
from serving.policies.source import PolicySource, candidates, resolve
from serving.policies.state_file import PolicyState, VersionRule
from serving.policies.store import load_all
from serving.policy_settings import NamedPath
from tests.serving.decisions import FakeHost
from tests.serving.fake_bucket import FOLDER, FakeBucket

Publish = Callable[..., Path]
NAME = "point_u_maze"


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
    assert (source.name, str(source.path), source.wanted, source.follow) == (
        "maze",
        f"gs://{remote.name}/{FOLDER}",
        "latest",
        True,
    )
    assert candidates(source) == [12, 7]
    assert first_choices(source) == (12, 7)
    assert remote.count("get") == 0


def test_without_a_name_it_gets_that_of_its_newest_version_without_copying_it(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    upload(12)
    remote.objects[f"{FOLDER}/12/policy.json"] = b"{}"
    source = source_of(remote)
    assert source.name == NAME
    assert copied(source) == []
    assert remote.count("get") == 4
    remote.objects.pop(f"{FOLDER}/7/manifest.json")
    path = re.escape(f"gs://{remote.name}/{FOLDER}")
    with pytest.raises(StartupError, match=rf"no version in {path} is valid, of 2; .*policy.json of {path}/12 has"):
        source_of(remote)


def test_only_the_version_that_is_served_is_copied(
    remote: FakeBucket, upload: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    for version in (7, 12, 20):
        upload(version)
    remote.objects[f"{FOLDER}/20/policy.json"] = b"{}"
    source, reasons = source_of(remote, name="maze"), list[str]()
    loaded = load_all([source], [first_choices(source)], on_rejected=reasons.append)
    assert (loaded["maze"].version, loaded["maze"].spec.name, loaded["maze"].path) == (12, "maze", source.folder_of(12))
    assert reasons == ["hash"]
    assert copied(source) == [12]
    assert f"skipping version 20: gs://{remote.name}/{FOLDER}/20 is not a usable policy (hash): " in caplog.text


def test_a_copy_that_a_faulty_disk_damaged_is_made_again(
    remote: FakeBucket, upload: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    upload(7)
    upload(8)
    source = source_of(remote, name="maze")
    with source.held(8) as path:
        (path / "probes.npz").write_bytes(b"")
    assert load_all([source], [[8, 7]], on_rejected=pytest.fail)["maze"].version == 8
    assert "8 is damaged, and is made again: probes.npz has 0 bytes instead of" in caplog.text
    assert copied(source) == [8]


def test_if_the_bucket_cannot_be_read_a_server_starts_with_an_intact_copy(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    upload(8)
    source = source_of(remote, name="maze")
    source.fetch(7)
    with source.held(8) as path:
        (path / "probes.npz").write_bytes(b"")
    remote.is_down = True
    assert load_all([source], [[8, 7]], on_rejected=pytest.fail)["maze"].version == 7


def test_a_version_that_is_refused_for_its_content_is_copied_once(
    remote: FakeBucket, publish: Publish, tmp_path: Path
) -> None:
    """Its copy has the hashes of its manifest."""
    published = publish(tmp_path / "local", 7)
    (published / "policy.json").write_text("{}")
    verified_folder.write_manifest(published, 3)
    remote.upload(published, f"{FOLDER}/7")
    source, reasons = source_of(remote, name="maze"), list[str]()
    with pytest.raises(StartupError, match="version 7 of maze cannot be served: "):
        load_all([source], [[7]], on_rejected=reasons.append)
    assert len(reasons) == 1
    assert remote.count(f"get {FOLDER}/7/manifest.json") == 1


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
    path = f"gs://{remote.name}/{FOLDER}"
    with pytest.raises(
        StartupError, match=f"{path}/7 is version 7 of maze, .* cannot be served; use --policies {path}"
    ):
        source_of(remote, f"{FOLDER}/7", name="maze", versions=("maze=8",))
    with pytest.raises(StartupError, match=f"{path} has no version 9 of maze; the newest ones are: 7, 8"):
        source_of(remote, name="maze", versions=("maze=9",))


def test_a_folder_without_versions_names_the_one_that_has_them(remote: FakeBucket, upload: Callable[..., None]) -> None:
    upload(7)
    path = f"gs://{remote.name}/run"
    for folder in ("run", f"{FOLDER}/8"):
        with pytest.raises(StartupError, match=f"no published version, but {path}/policies does; use --policies"):
            source_of(remote, folder)
    with pytest.raises(StartupError, match="/nowhere holds no published version; upload the folder policies/ of a run"):
        source_of(remote, "nowhere")


def test_without_copies_a_server_does_not_start_while_the_bucket_cannot_be_read(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    source = source_of(remote, name="maze")
    remote.is_down = True
    for start in (lambda: source_of(remote, name="maze"), lambda: load_all([source], [[7]], on_rejected=pytest.fail)):
        with pytest.raises(BucketError, match="cannot read gs://"):
            start()


def test_while_the_bucket_cannot_be_read_a_server_starts_with_copies(
    remote: FakeBucket, upload: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    for version, stay in ((7, 0.75), (8, 0.25), (9, 0.5)):
        upload(version, stay=stay)
    first = source_of(remote)
    for version in (7, 8):
        first.fetch(version)
    remote.is_down = True
    source = source_of(remote)
    assert source == first
    assert first_choices(source) == (8, 7)
    (line,) = caplog.messages
    assert line.startswith("cannot read gs://")
    assert line.endswith("; starting with the versions that were copied before")
    assert first_choices(source_of(remote, versions=(f"{NAME}=best",))) == (7, 8)
    assert load_all([source], [(8, 7)], on_rejected=pytest.fail)[NAME].version == 8
    kept = PolicyState(VersionRule("latest", follow=True), 8, previous=(7,), following=True)
    assert first_choices(source, kept) == (8, 7)
    assert first_choices(source, dataclasses.replace(kept, live=9)) == (8, 7)  # there is no copy of 9
    assert first_choices(source_of(remote, versions=(f"{NAME}=7",))) == (7,)
    with pytest.raises(BucketError, match="cannot read gs://"):
        source_of(remote, versions=(f"{NAME}=9",))
    only = source_of(remote, f"{FOLDER}/7")
    assert (only.wanted, only.given) == (7, first.folder / "7")
    with pytest.raises(BucketError, match="cannot read gs://"):
        source_of(remote, f"{FOLDER}/9")


def test_another_endpoint_has_other_copies(
    remote: FakeBucket, upload: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(7)
    before = source_of(remote, name="maze").folder
    monkeypatch.setenv("AWS_ENDPOINT", "http://other")
    assert source_of(remote, name="maze").folder != before


class Following:
    """A deployment that follows a bucket, with version 7 live, and a host that computes nothing."""

    def __init__(self, source: PolicySource) -> None:
        self.host = FakeHost()
        self.deployment = Deployment(
            [source], self.host, RestartPlan(None, {}, ((7,),)), live={"maze": 7}, keep=0, reports=EpisodeReports()
        )

    @property
    def live(self) -> int:
        return self.deployment.status()[0].live

    async def poll(self, times: int) -> None:
        for _ in range(times):
            await self.deployment.poll()


async def test_a_bucket_is_polled_every_ten_seconds_and_immediately_on_request(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    following = Following(source_of(remote, name="maze"))
    remote.requests.clear()
    await following.poll(20)
    assert remote.count("list") == 2
    upload(8)
    await following.poll(1)
    assert following.live == 8
    upload(9)
    following.deployment.poll_now()
    await following.poll(1)
    assert following.live == 9


async def test_a_version_whose_name_hides_others_does_not_keep_a_policy_from_following(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    following = Following(source_of(remote, name="maze"))
    upload(8)
    remote.objects[f"{FOLDER}/9/params//x"] = b"x"  # without a manifest
    await following.poll(1)
    assert following.live == 8


async def test_credentials_that_expire_during_a_download_cost_one_warning_and_no_version(
    remote: FakeBucket, upload: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    upload(7)
    source = source_of(remote, name="maze")
    following = Following(source)
    upload(8)
    download = following.host.prepare

    async def fetch(policy: str, version: int) -> None:
        await asyncio.to_thread(source.fetch, version)
        await download(policy, version)

    following.host.prepare = fetch
    remote.before = lambda request: remote.statuses.update(get=403) if "8/probes" in request else None
    caplog.clear()
    await following.poll(31)
    (line,) = caplog.messages
    assert re.fullmatch(r"cannot read gs://.*403.*; version 8 of maze is tried again later", line)
    assert (following.live, following.deployment.status()[0].refused, copied(source)) == (7, (), [])
    remote.before, remote.statuses = lambda _: None, {}
    await following.poll(1)
    assert following.live == 8


async def test_a_version_that_is_still_being_uploaded_is_not_taken_up(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    following = Following(source_of(remote, name="maze"))
    upload(8)
    manifest = remote.objects.pop(f"{FOLDER}/8/manifest.json")
    await following.poll(11)
    assert following.live == 7
    remote.objects[f"{FOLDER}/8/manifest.json"] = manifest
    await following.poll(10)
    assert following.live == 8


async def test_a_bucket_that_cannot_be_read_is_one_warning_and_polled_later(
    remote: FakeBucket, upload: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    upload(7)
    following = Following(source_of(remote, name="maze"))
    remote.is_down = True
    caplog.clear()
    await following.poll(31)
    (line,) = caplog.messages
    assert re.fullmatch(r"cannot read gs://\S+ \(.*\); check the address, .*; trying again later", line)
    with pytest.raises(DeploymentError, match=r"cannot read gs://.*; check the address, .*network$") as error:
        await following.deployment.switch("maze", 8)
    assert error.value.reason is Reason.BUSY
    remote.is_down = False
    upload(8)
    await following.poll(1)
    assert following.live == 8


async def test_while_the_bucket_cannot_be_read_an_operator_can_switch_to_a_copy(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    upload(8)
    source = source_of(remote, name="maze")
    source.fetch(8)
    remote.is_down = True
    following = Following(source)
    await following.deployment.switch("maze", 8)
    assert following.live == 8


async def test_a_new_rule_is_taken_once_also_without_following(remote: FakeBucket, upload: Callable[..., None]) -> None:
    upload(7)
    upload(8)
    following = Following(source_of(remote, name="maze", follow=False))
    await following.poll(11)
    assert following.live == 7
    following.deployment.take_rules([source_of(remote, name="maze", versions=("maze=best",), follow=False)])
    await following.poll(1)
    assert following.live == 8  # of those without eval/stay the newest
    following.deployment.take_rules([source_of(remote, name="maze", follow=False)])
    await following.poll(1)
    upload(9)
    await following.poll(11)
    assert following.live == 8


async def test_a_refused_version_is_copied_anew_once_its_files_change(
    remote: FakeBucket, upload: Callable[..., None]
) -> None:
    upload(7)
    source = source_of(remote, name="maze")
    following = Following(source)
    upload(3000)
    source.fetch(3000)  # as the real host does; the fake one refuses this version
    await following.poll(1)
    assert copied(source) == []
    await following.poll(10)  # once more, because the files of the copy were others than those in the bucket
    assert [each.version for each in following.deployment.status()[0].refused] == [3000]
    following.host.loading.clear()
    await following.poll(30)
    assert not following.host.loading.is_set()
    remote.objects[f"{FOLDER}/3000/probes.npz"] += b"x"
    await following.poll(10)
    assert following.host.loading.is_set()
