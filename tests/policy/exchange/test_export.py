"""Exports: complete or absent, checked by the library of each format before they have their name."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from policy.exchange import export as module
from policy.exchange import formats, safetensors_file
from policy.exchange.export import ExportError, export, verify
from policy.verified_folder import DamageError
from tests.policy.exchange.exports import bundle_of
from tests.samples import WITHOUT_CRITIC, policy_spec


@pytest.fixture(scope="module")
def policy() -> Any:
    provenance = {"metrics": {"eval/stay": 0.5, "loss": float("nan")}, "versions": {"jax": "0.10"}}
    return bundle_of(policy_spec(), provenance=provenance)


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_folder_has_a_manifest_with_the_hash_of_each_file(tmp_path: Path, policy: Any) -> None:
    out = export(policy, tmp_path / "out", formats=["safetensors"])
    assert out == tmp_path / "out"
    assert left_in(tmp_path) == ["out"]
    files = ["README.md", "config.json", "manifest.json", "model.safetensors", "probes.safetensors"]
    assert left_in(out) == files
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert sorted(manifest["files"]) == [name for name in files if name != "manifest.json"]
    model = (out / "model.safetensors").read_bytes()
    assert manifest["files"]["model.safetensors"]["sha256"] == hashlib.sha256(model).hexdigest()


def test_the_configuration_says_what_the_published_policy_is(tmp_path: Path, policy: Any) -> None:
    config = json.loads((export(policy, tmp_path / "out", formats=["safetensors"]) / "config.json").read_text())
    assert (config["format"], config["format_version"], config["version"]) == ("kilolayer-export", 1, 2000)
    assert type(policy.spec).from_fields(config["spec"]) == policy.spec
    assert config["manifest_sha256"] == policy.manifest_sha256
    assert config["has_critic_exported"] is False
    # NaN is not JSON
    assert config["provenance"] == {"metrics": {"eval/stay": 0.5, "loss": None}, "versions": {"jax": "0.10"}}


def test_the_probes_have_the_noise_of_their_sampled_actions(tmp_path: Path, policy: Any) -> None:
    probes = load_file(export(policy, tmp_path / "out", formats=["safetensors"]) / "probes.safetensors")
    for name, array in policy.probes._asdict().items():
        assert probes[name].tobytes() == array.tobytes(), name
    # mean and log-std before squashing, from the definition: sampled = tanh(mean + exp(log_std) * noise)
    raw = np.arctanh(probes["sampled_action"].astype(np.float64)) - np.arctanh(probes["action"].astype(np.float64))
    log_std = np.log(raw / probes["noise"])
    assert np.all((log_std > -5) & (log_std < 2))


def test_a_policy_without_a_critic_has_no_energies(tmp_path: Path) -> None:
    policy = bundle_of(policy_spec(**WITHOUT_CRITIC))
    out = export(policy, tmp_path / "out", formats=["safetensors"])
    assert load_file(out / "probes.safetensors")["energy"].shape == (5, 0)
    with pytest.raises(ExportError, match="point_u_maze has no critic"):
        export(policy, tmp_path / "critic", formats=["safetensors"], critic=True)


def test_the_critic_is_exported_on_request(tmp_path: Path, policy: Any) -> None:
    out = export(policy, tmp_path / "out", formats=["safetensors"], critic=True)
    assert "goal_encoder.output.bias" in load_file(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text())["has_critic_exported"] is True


def test_two_exports_of_one_policy_have_the_same_bytes(tmp_path: Path, policy: Any) -> None:
    first, second = (export(policy, tmp_path / name, critic=True) for name in ("first", "second"))
    assert left_in(first) == left_in(second)
    for name in left_in(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.slow  # another process
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from policy.exchange.export import export\n"
        "from tests.policy.exchange.exports import bundle_of\n"
        "from tests.samples import policy_spec\n"
        "export(bundle_of(policy_spec()), pathlib.Path(sys.argv[1]), critic=True)\n"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program, str(tmp_path / seed)]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, timeout=480)
    for name in left_in(tmp_path / "1"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_an_existing_folder_is_refused_and_stays_as_it_is(tmp_path: Path, policy: Any) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="out exists already"):
        export(policy, tmp_path / "out", formats=["safetensors"])
    assert left_in(tmp_path / "out") == []


def test_a_link_to_nothing_is_refused(tmp_path: Path, policy: Any) -> None:
    (tmp_path / "out").symlink_to("nothing")
    with pytest.raises(ExportError, match="out exists already"):
        export(policy, tmp_path / "out", formats=["safetensors"])


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path, policy: Any) -> None:
    with pytest.raises(ExportError, match="the format must be .*safetensors.*, got 'tflite'"):
        export(policy, tmp_path / "out", formats=["tflite"])


@pytest.mark.parametrize("license_id", ["Apache License", "mit\n", "a: b", "-", "x" * 65])
def test_a_license_that_is_no_identifier_is_refused(tmp_path: Path, policy: Any, license_id: str) -> None:
    with pytest.raises(ExportError, match="the license must be an identifier such as apache-2.0 or other, got "):
        export(policy, tmp_path / "out", formats=["safetensors"], license_id=license_id)
    assert left_in(tmp_path) == []


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ExportError, match=r"needs safetensors of the extra `export`: pip install -e '\.\[export\]'"):
        export(policy, tmp_path / "out", formats=["safetensors"])
    assert left_in(tmp_path) == []


def change_one_bit(folder: Path, policy: Any, critic: bool) -> None:
    arrays = safetensors_file.named_arrays(policy.params, critic=critic)
    bias = arrays["actor.output.bias"].copy()
    bias.view(np.uint32)[0] ^= 1
    safetensors_file.write(folder / "model.safetensors", arrays | {"actor.output.bias": bias})


def leave_out_an_array(folder: Path, policy: Any, critic: bool) -> None:
    arrays = safetensors_file.named_arrays(policy.params, critic=critic)
    del arrays["actor.input.bias"]
    safetensors_file.write(folder / "model.safetensors", arrays)


def write_half(folder: Path, policy: Any, critic: bool) -> None:
    (folder / "model.safetensors").write_bytes(b"\x90\x00\x00\x00\x00\x00\x00\x00{")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (change_one_bit, "model.safetensors has other numbers in the array actor.output.bias"),
        (leave_out_an_array, "model.safetensors has another array actor.input.bias"),
        (write_half, "model.safetensors is not a complete safetensors file"),
    ],
)
def test_a_file_that_is_not_the_policy_is_refused_before_the_folder_has_its_name(
    tmp_path: Path, policy: Any, monkeypatch: pytest.MonkeyPatch, write: Any, message: str
) -> None:
    wrong = formats.FORMATS["safetensors"]._replace(write=write)
    monkeypatch.setattr(module, "FORMATS", {"safetensors": wrong})
    with pytest.raises(ExportError, match=message):
        export(policy, tmp_path / "out")
    assert left_in(tmp_path) == []


def test_an_export_that_changes_later_is_noticed(tmp_path: Path, policy: Any) -> None:
    out = export(policy, tmp_path / "out", formats=["safetensors"])
    verify(out)
    with (out / "README.md").open("a") as file:
        file.write("license: mine\n")
    with pytest.raises(DamageError, match="README.md has"):
        verify(out)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, policy: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/out"):
        export(policy, tmp_path / "file" / "out", formats=["safetensors"])


def test_the_folders_above_are_made(tmp_path: Path, policy: Any) -> None:
    assert export(policy, tmp_path / "a" / "b" / "out", formats=["safetensors"]).is_dir()


def test_a_folder_that_appears_during_the_export_stays_as_it_is(
    tmp_path: Path, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    plain = formats.FORMATS["safetensors"]

    def check(folder: Path, policy: Any, critic: bool) -> None:
        plain.check(folder, policy, critic)
        out.mkdir()
        (out / "mine").write_text("work")

    monkeypatch.setattr(module, "FORMATS", {"safetensors": plain._replace(check=check)})
    with pytest.raises(FileExistsError, match=r"the export .*/out cannot be written: it exists, or was made meanwhile"):
        export(policy, out)
    assert left_in(tmp_path) == ["out"]
    assert (out / "mine").read_text() == "work"
