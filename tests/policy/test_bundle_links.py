"""A policy of symbolic links is read if they end under the folder that is trusted, and as it was when it was hashed."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from policy import bundle
from policy.bundle import BundleError, arrays
from tests.policy.bundles import recompute_manifest, refusal

FILES = ("manifest.json", "policy.json", "probes.npz", "params/_METADATA", "params/manifest.ocdbt")


def refused(path: Path, *, root: Path) -> BundleError:
    with pytest.raises(BundleError) as error:
        bundle.read(path, root=root)
    return error.value


def as_blobs(version: Path, blobs: Path) -> None:
    """Move every file of a version to a file that is named after its content, as model stores do."""
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in version.rglob("*") if path.is_file())):
        file.rename(blobs / f"sha256-{number}")
        file.symlink_to(os.path.relpath(blobs / f"sha256-{number}", file.parent))


def as_volume(version: Path, mount: Path, *, date: str) -> Path:
    """Show a version as Kubernetes shows it in a volume, in place of what the volume showed before."""
    shutil.copytree(version, mount / f"..{date}" / "policies" / version.name)
    (mount / "..data_tmp").symlink_to(f"..{date}")
    (mount / "..data_tmp").rename(mount / "..data")
    if not (mount / "policies").is_symlink():
        (mount / "policies").symlink_to("..data/policies")
    return mount / "policies"


def test_a_volume_of_kubernetes_is_read_before_and_after_it_changes(damaged: Path, tmp_path: Path) -> None:
    policies = as_volume(damaged, tmp_path / "mount", date="2026_01_01")
    assert bundle.versions(policies) == [200]
    read = bundle.read(policies / "200", root=policies)
    assert (read.path, read.version) == (policies / "200", 200)
    as_volume(damaged.rename(damaged.parent / "300"), tmp_path / "mount", date="2026_02_02")
    shutil.rmtree(tmp_path / "mount" / "..2026_01_01")
    assert bundle.versions(policies) == [300]
    assert bundle.read(policies / "300", root=policies).manifest_sha256 == read.manifest_sha256


def test_the_files_of_a_version_may_be_links_to_files_named_after_their_content(damaged: Path) -> None:
    expected = bundle.read(damaged)
    as_blobs(damaged, damaged.parent / "blobs")
    read = bundle.read(damaged, root=damaged.parent)
    assert read.manifest_sha256 == expected.manifest_sha256
    assert read.probes.action.tobytes() == expected.probes.action.tobytes()
    assert refusal(damaged).reason == "manifest"  # the version alone is not trusted with what is beside it


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_outside_is_refused_even_to_the_same_content(damaged: Path, tmp_path: Path, name: str) -> None:
    outside = (damaged / name).rename(tmp_path / "outside")
    (damaged / name).symlink_to(outside)
    error = refused(damaged, root=damaged.parent)
    assert error.reason == ("manifest" if name == "manifest.json" else "files")
    assert f"{name} is a symbolic link to {outside}, outside of {damaged.parent}" in str(error)


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_other_content_is_refused(damaged: Path, name: str) -> None:
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).unlink()
    (damaged.parent / "blob").write_bytes(content)
    (damaged / name).symlink_to("../" * name.count("/") + "../blob")
    error = refused(damaged, root=damaged.parent)
    assert error.reason in ({"manifest", "files", "hash"} if name == "manifest.json" else {"hash"})


def test_a_folder_of_a_version_may_be_a_link_to_one_inside_and_not_to_one_outside(
    damaged: Path, tmp_path: Path
) -> None:
    inside = (damaged / "params").rename(damaged.parent / "blobs")
    (damaged / "params").symlink_to("../blobs")
    assert bundle.read(damaged, root=damaged.parent).version == 200
    (inside / "more").write_bytes(b"")
    assert "params/more does not belong to it" in str(refused(damaged, root=damaged.parent))
    (inside / "more").unlink()
    (damaged / "params").unlink()
    (damaged / "params").symlink_to(inside.rename(tmp_path / "outside"))
    assert "is a symbolic link to" in str(refused(damaged, root=damaged.parent))


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("nowhere", "params is not a folder"),
        ("params", "params is not a folder"),  # to itself
        (".", "does not belong to it"),  # in a circle: params/manifest.json, or params/params
    ],
)
def test_a_link_that_leads_to_no_content_is_refused(damaged: Path, target: str, problem: str) -> None:
    shutil.rmtree(damaged / "params")
    for file in ("policy.json", "probes.npz"):
        (damaged / file).unlink()  # whichever entry is found first, the message is the same
    (damaged / "params").symlink_to(target)
    error = refused(damaged, root=damaged.parent)
    assert error.reason == "files"
    assert problem in str(error)


def test_a_file_that_is_a_link_to_nothing_is_refused(damaged: Path) -> None:
    (damaged / "policy.json").unlink()
    (damaged / "policy.json").symlink_to("nowhere")
    assert "policy.json is a symbolic link to nothing" in str(refusal(damaged))


def test_a_version_may_be_a_link_and_has_the_number_of_the_link(damaged: Path, tmp_path: Path) -> None:
    link = damaged.parent / "3000"
    link.symlink_to("200")
    assert bundle.read(link, root=damaged.parent).version == 3000
    other = tmp_path / "other"
    other.mkdir()
    (other / "200").symlink_to(damaged)
    error = refused(other / "200", root=other)
    assert error.reason == "files"
    assert f"it is a symbolic link to {damaged}, outside of {other}" in str(error)
    assert bundle.read(other / "200").version == 200  # given alone, it is the trusted folder itself


def test_the_manifest_names_no_file_outside_of_the_version(damaged: Path) -> None:
    (damaged.parent / "beside").write_text("x")
    recompute_manifest(damaged)
    content = (damaged / "manifest.json").read_text()
    for name in ("../beside", "params/../../beside", str(damaged.parent / "beside")):
        (damaged / "manifest.json").write_text(content.replace('"policy.json"', f'"{name}"'))
        assert refused(damaged, root=damaged.parent).reason == "files"


def test_what_is_loaded_is_what_was_hashed(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = arrays.read

    def change_and_read(path: Path, spec: Any) -> Any:
        shutil.rmtree(damaged)
        return read(path, spec)

    monkeypatch.setattr(arrays, "read", change_and_read)
    assert bundle.read(damaged).version == 200
    assert not damaged.exists()


def test_a_link_that_changes_between_the_check_and_the_opening_is_noticed(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, opened = tmp_path / "secret", os.open
    secret.mkdir()
    shutil.copy(damaged / "policy.json", secret / "policy.json")

    def change_and_open(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == "policy.json":
            damaged.rename(tmp_path / "away")
            damaged.symlink_to(secret)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", change_and_open)
    assert "policy.json was replaced while it was read" in str(refused(damaged, root=damaged.parent))


def test_of_a_file_that_grows_only_what_the_manifest_states_is_read(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstat = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        for file in (damaged / "policy.json", damaged / "probes.npz"):
            if os.path.samestat(status, file.stat()):
                with file.open("ab") as growing:
                    growing.write(b"more")
        return status

    monkeypatch.setattr(os, "fstat", grow)
    assert bundle.read(damaged).version == 200
    monkeypatch.undo()
    assert refusal(damaged).reason == "hash"


def test_the_copy_is_removed_and_no_message_names_it(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    bundle.read(damaged)
    (damaged / "params" / "manifest.ocdbt").write_text("{}")
    recompute_manifest(damaged)
    error = refusal(damaged)
    assert error.reason == "arrays"
    assert str(temporary) not in str(error)
    assert list(temporary.iterdir()) == []


def test_a_disk_without_space_for_the_copy_is_no_fault_of_the_policy(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        bundle.read(damaged)
