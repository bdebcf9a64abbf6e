"""Which policies --policies names, and which of their versions."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policy.verified_folder import write_manifest
from serving.config import ServeConfig
from serving.errors import StartupError
from serving.policies.source import PolicySource, candidates, resolve
from serving.policy_settings import NamedPath, PolicySettings
from tests.serving.sources import policy_source


@pytest.fixture(scope="session")
def root(publish: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the versions 90, 1000 and 2000, of which 1000 is the best. Nobody changes it."""
    folder = tmp_path_factory.mktemp("versions") / "policies"
    for version, stay in ((90, 0.5), (1000, 0.75), (2000, 0.5)):
        publish(folder, version, stay=stay)
    return folder


def resolve_one(policy: Path | NamedPath, **fields: Any) -> PolicySource:
    (source,) = resolve(ServeConfig(policies=(policy,), **fields))
    return source


def test_a_folder_is_served_under_the_stored_name_and_followed(root: Path) -> None:
    assert resolve_one(root) == policy_source(root, follow=True)


def test_a_name_replaces_the_stored_one(root: Path) -> None:
    assert resolve_one(NamedPath("maze", root)) == policy_source(root, name="maze", follow=True)


@pytest.mark.parametrize(
    ("fields", "wanted", "follow"),
    [
        ({}, "latest", True),
        ({"follow": False}, "latest", False),
        ({"versions": ("maze=best",)}, "best", False),
        ({"versions": ("maze=best",), "follow": True}, "best", True),
        ({"versions": ("maze=90",), "follow": True}, 90, False),
        ({"policy_settings": (PolicySettings(name="maze", versions=90),)}, 90, False),
        ({"policy_settings": (PolicySettings(name="maze", versions=90),), "versions": ("maze=1000",)}, 1000, False),
        ({"policy_settings": (PolicySettings(name="maze", versions="best", follow=True),)}, "best", True),
        ({"policy_settings": (PolicySettings(name="maze", follow=False),), "follow": True}, "latest", False),
        ({"policy_settings": (PolicySettings(name="ant", versions=90, follow=False),)}, "latest", True),
    ],
)
def test_the_latest_version_is_followed_and_others_on_request(
    root: Path, fields: dict[str, Any], wanted: object, follow: bool
) -> None:
    source = resolve_one(NamedPath("maze", root), **fields)
    assert (source.wanted, source.follow) == (wanted, follow)


def test_the_settings_of_a_policy_replace_those_of_the_server_for_it_alone(root: Path) -> None:
    own = PolicySettings(name="maze", max_batch_rows=1, max_batch_delay_s=0.0, max_queue_rows=5000, device="cpu")
    policies = (NamedPath("maze", root), root)
    sources = resolve(ServeConfig(policies=policies, max_batch_rows=64, device="gpu", policy_settings=(own,)))
    assert sources == (
        policy_source(
            root, name="maze", follow=True, max_batch_rows=1, max_batch_delay_s=0.0, max_queue_rows=5000, device="cpu"
        ),
        policy_source(root, follow=True, max_batch_rows=64, device="gpu"),
    )


def test_links_must_end_in_the_folder_that_was_given(root: Path) -> None:
    assert resolve_one(root).root(1000) == root
    alone = resolve_one(root / "1000")
    assert (alone.root(1000), alone.root(2000)) == (root / "1000", root)


def test_one_version_is_served_alone_and_not_followed(root: Path) -> None:
    expected = policy_source(root, wanted=1000, given=root / "1000")
    assert resolve_one(root / "1000") == expected
    assert resolve_one(root / "1000", follow=True, versions=("point_u_maze=1000",)) == expected
    message = (
        f"{root / '1000'} is version 1000 of point_u_maze, so version best cannot be served; use --policies {root}"
    )
    with pytest.raises(StartupError, match=message):
        resolve_one(root / "1000", versions=("point_u_maze=best",))


def test_the_order_of_the_candidates_is_that_of_the_wish(root: Path) -> None:
    assert candidates(policy_source(root)) == [2000, 1000, 90]
    assert candidates(policy_source(root, wanted="best")) == [1000, 2000, 90]
    assert candidates(policy_source(root, wanted=90)) == [90]


def test_the_name_comes_from_a_description_with_the_hash_of_its_manifest(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(root, tmp_path / "policies"))
    description = folder / "2000" / "policy.json"
    description.write_bytes(description.read_bytes().replace(b"point_u_maze", b"point_v_maze"))
    assert resolve_one(folder).name == "point_u_maze"
    write_manifest(folder / "2000", 3)
    assert resolve_one(folder).name == "point_v_maze"
    for version in ("90", "1000", "2000"):
        (folder / version / "policy.json").unlink()
    message = f"no version in {folder} is valid, of 3; of the newest one: {description} is not a file"
    with pytest.raises(StartupError, match=message):
        resolve_one(folder)
    assert resolve_one(NamedPath("maze", folder)).name == "maze"


def test_two_policies_of_one_name_are_refused(root: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(root, tmp_path / "b"))
    message = f"{root} and {other} both hold a policy named point_u_maze; .* --policies NAME={other}"
    with pytest.raises(StartupError, match=message):
        resolve(ServeConfig(policies=(root, other)))
    assert [each.name for each in resolve(ServeConfig(policies=(root, NamedPath("b", other))))] == ["point_u_maze", "b"]


def test_a_version_that_is_not_there_and_a_policy_that_is_not_served_are_named(root: Path) -> None:
    message = f"{root} has no version 7 of point_u_maze; the newest ones are: 90, 1000, 2000"
    with pytest.raises(StartupError, match=message):
        resolve_one(root, versions=("point_u_maze=7",))
    with pytest.raises(StartupError, match="--versions names 'maze', which is not served; there are: point_u_maze"):
        resolve_one(root, versions=("maze=90",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (str, "does not exist; train a policy first"),
        (lambda folder: folder.write_text(""), "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no published version; train a policy first"),
    ],
)
def test_a_folder_without_policies_is_an_error_that_says_what_to_do(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "policies"
    make(folder)
    with pytest.raises(StartupError, match=message):
        resolve_one(folder)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(StartupError, match=rf"cannot read {tmp_path / 'x'} .Permission denied.; check its permissions"):
        resolve_one(tmp_path / "x")


@pytest.mark.parametrize("given", ["run", "run/policies/3000"])
def test_a_folder_one_off_is_told_the_right_one(root: Path, tmp_path: Path, given: str) -> None:
    shutil.copytree(root, tmp_path / "run" / "policies")
    (tmp_path / "run" / "policies" / "3000").mkdir()  # not a version: it has no manifest
    with pytest.raises(StartupError, match=r"holds no published version, but .*run/policies does"):
        resolve_one(tmp_path / given)
