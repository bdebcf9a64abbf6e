"""kilolayer-policy export: from the command line to a folder."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from policy import bundle
from policy.exchange import export as module
from policy.exchange.formats import FORMATS
from tests.policy.exchange.exports import bundle_of
from tests.samples import WITHOUT_CRITIC, policy_spec
from training.policy_command import export
from training.policy_command.run import main


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the versions 1000 and 2000 of a policy without a critic."""
    root, policy = tmp_path_factory.mktemp("policies"), bundle_of(policy_spec(**WITHOUT_CRITIC))
    for version in (1000, 2000):
        bundle.write(
            root,
            version,
            spec=policy.spec,
            params=policy.params,
            probe_state=policy.probes.state,
            probe_goal=policy.probes.goal,
            provenance={},
        )
    return root


def test_the_command_names_every_format() -> None:
    assert tuple(FORMATS) == export.FORMATS


def test_the_newest_version_is_exported(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(published), "--out", str(out), "--format", "safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"exported point_u_maze version 2000 to {out}"
    assert lines[-1] == "checked: safetensors with the 5 probes of the policy"
    assert [line.split()[0] for line in lines[1:-1]] == sorted(file.name for file in out.iterdir())


def test_json_has_the_version_that_was_asked_for(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["export", str(published), "--version", "1000", "--out", str(out), "--format", "safetensors", "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["version"], facts["formats"]) == ("point_u_maze", 1000, ["safetensors"])
    assert facts["files"] == {file.name: file.stat().st_size for file in out.iterdir()}


def test_what_cannot_be_exported_is_an_error_of_one_line(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(published), "--out", str(tmp_path / "out"), "--format", "safetensors"]
    assert main([*words, "--critic"]) == 1
    assert capsys.readouterr().err == "error: policy point_u_maze has no critic; export it without the critic\n"
    assert main([*words, "--format", "tflite"]) == 2
    assert "invalid choice: 'tflite'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("2000/exported", r"is in .*/2000, a folder with a manifest\.json, which another file would damage"),
        ("2000/params/new", r"is in .*/2000, a folder with a manifest\.json"),
        ("link/exported", r"is in .*/2000, a folder with a manifest\.json"),
        ("3000", r"would look like a version of the policy in .*; choose a name that is not a number"),
    ],
)
def test_an_export_never_touches_published_policies(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, out: str, message: str
) -> None:
    root = shutil.copytree(published, tmp_path / "policies")
    (root / "link").symlink_to("2000")
    assert main(["export", str(root), "--out", str(root / out), "--format", "safetensors"]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert sorted(entry.name for entry in root.iterdir()) == ["1000", "2000", "link"]
    assert bundle.read(root / "2000").version == 2000


def test_exports_may_be_numbered_and_lie_beside_versions(published: Path, tmp_path: Path) -> None:
    root = shutil.copytree(published, tmp_path / "policies")
    for out in (tmp_path / "1", tmp_path / "2", root / "exported"):
        assert main(["export", str(root), "--out", str(out), "--format", "safetensors"]) == 0


def test_sigterm_ends_an_export_without_a_trace(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, unfinished = signal.getsignal(signal.SIGTERM), list[str]()

    def stop(*_: object) -> None:
        unfinished.extend(entry.name for entry in tmp_path.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)  # the signal ends it

    monkeypatch.setattr(module, "require_equal", stop)
    assert main(["export", str(published), "--out", str(tmp_path / "out"), "--format", "safetensors"]) == 1
    assert capsys.readouterr().err == "error: stopped\n"
    assert [name.startswith(".writing-out-") for name in unfinished] == [True]
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
