"""kilolayer-policy verify."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from policy import bundle, verified_folder
from policy.bundle import FORMAT_VERSION
from policy.exchange.export import export
from tests.training.policy_command.conftest import Command
from training.policy_command.run import main


@pytest.fixture
def one_damaged(policies: Path, tmp_path: Path) -> Path:
    """A folder whose version 1000 gives other actions than its probes say. All its hashes are right."""
    root = shutil.copytree(policies, tmp_path / "policies")
    with np.load(root / "1000" / "probes.npz", allow_pickle=False) as stored:
        probes = dict(stored)
    probes["action"][0, 0] += 0.5
    np.savez(root / "1000" / "probes.npz", **probes)
    (root / "1000" / "manifest.json").unlink()
    verified_folder.write_manifest(root / "1000", FORMAT_VERSION)
    return root


def test_every_version_of_a_folder_is_checked(policies: Path, command: Command) -> None:
    code, found = command("verify", policies)
    assert (code, found["intact"]) == (0, True)
    assert [(each["version"], each["intact"]) for each in found["versions"]] == [(1000, True), (2000, True)]
    assert found["versions"][0]["manifest_sha256"] != found["versions"][1]["manifest_sha256"]
    for words in (("--version", 1000), ()):
        code, found = command("verify", policies if words else policies / "1000", *words)
        assert [each["version"] for each in found["versions"]] == [1000]


def test_it_says_what_was_checked(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(policies / "2000")]) == 0
    first, *checks = capsys.readouterr().out.splitlines()
    assert first == f"{policies / '2000'}: intact"
    assert [line.split(":")[0].strip() for line in checks] == ["files", "specification", "arrays", "probes"]
    assert checks[2].endswith("4,356 parameters, with the shapes of the specification, all finite")
    assert checks[3].startswith("  probes: 3 rows give the published actions (within 0.0001), sampled actions")


def test_a_damaged_version_is_named_and_the_others_are_checked(
    one_damaged: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = command("verify", one_damaged)
    assert (code, found["intact"]) == (1, False)
    assert [each["intact"] for each in found["versions"]] == [False, True]
    assert "actions differ from the published ones by 0.5, more than 0.0001" in found["versions"][0]["error"]
    assert main(["verify", str(one_damaged)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{one_damaged / '1000'}: damaged"
    assert lines[-1] == "2 versions checked, 1 damaged"


def test_a_folder_that_misses_a_file_is_damaged(policies: Path, tmp_path: Path, command: Command) -> None:
    version = shutil.copytree(policies / "2000", tmp_path / "2000")
    (version / "params" / "manifest.ocdbt").unlink()
    code, found = command("verify", version)
    assert code == 1
    assert "params/manifest.ocdbt is missing" in found["versions"][0]["error"]


def test_the_files_of_an_export_are_checked(
    policies: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = export(bundle.read(policies / "2000"), tmp_path / "exported", formats=["safetensors"])
    code, found = command("verify", exported)
    digest = hashlib.sha256((exported / "manifest.json").read_bytes()).hexdigest()
    assert (code, found["intact"], found["export"]["manifest_sha256"]) == (0, True, digest)
    assert main(["verify", str(exported)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{exported}: intact, an exported policy",
        "  files: 4, with the sizes and SHA-256 of the manifest, and no others",
    ]
    assert main(["verify", str(exported), "--version", "2000"]) == 2
    assert "is an exported policy, which is one version; leave out --version" in capsys.readouterr().err
    with (exported / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    code, found = command("verify", exported)
    assert (code, found["intact"]) == (1, False)
    assert "model.safetensors has " in found["export"]["error"]


def test_the_folder_of_a_run_is_no_export(policies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(policies, tmp_path / "policies")
    (tmp_path / "config.json").write_text("{}")
    assert main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is a run; use {tmp_path / 'policies'}\n"
