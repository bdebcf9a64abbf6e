"""Which folders a local policy uses, and with what: damaged ones are refused, and the message names what is wrong."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kilolayer import InvalidExport, LocalPolicy
from kilolayer._local import manifest
from tests.clients.exports import change_config, exported, publish, sign

BACKENDS = ("onnx", "numpy")
STATE, GOAL = [0.1] * 4, [0.1] * 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    return exported(publish(root / "policies"), root / "exported")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy, for a test to damage."""
    return shutil.copytree(whole, tmp_path / "copy")


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InvalidExport) as refused:
        LocalPolicy(folder, timeout_s=60, **options)
    message = str(refused.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "name", ["config.json", "probes.safetensors", "model.safetensors", "actor.onnx", "critic.onnx", "README.md"]
)
def test_a_flipped_bit_in_any_file_is_named(folder: Path, name: str) -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    assert f"{name} has changed since it was written" in refusal(folder)


def test_a_missing_and_a_truncated_file_are_named(folder: Path) -> None:
    size = (folder / "actor.onnx").stat().st_size
    with (folder / "actor.onnx").open("r+b") as file:
        file.truncate(size - 1)
    assert f"actor.onnx has {size - 1} bytes instead of {size}" in refusal(folder)
    (folder / "actor.onnx").unlink()
    assert "actor.onnx is missing" in refusal(folder)


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "model.safetensors"])
def test_a_pipe_is_refused_instead_of_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name} cannot be read (it is no plain file)" in refusal(folder)


def test_a_file_that_changes_after_the_verification_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = manifest.verify

    def verify_and_change(checked: Path) -> Any:
        entries = verify(checked)
        raw = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        return entries

    monkeypatch.setattr(manifest, "verify", verify_and_change)
    assert "model.safetensors has changed since it was written" in refusal(folder, backend="numpy")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    stored = json.loads((folder / "manifest.json").read_text())
    change(stored)
    (folder / "manifest.json").write_text(json.dumps(stored) + "\n")


def test_a_damaged_manifest_is_refused(folder: Path) -> None:
    edit(folder, lambda stored: stored["files"].pop("critic.onnx"))
    assert "manifest.json has changed since it was written" in refusal(folder)
    edit(folder, lambda stored: stored.pop("digest"))
    assert "manifest.json cannot be parsed" in refusal(folder)
    (folder / "manifest.json").write_text("{")
    assert "manifest.json cannot be parsed" in refusal(folder)


def test_a_folder_that_is_no_export_is_refused_with_what_to_type(whole: Path, tmp_path: Path) -> None:
    assert "is not an exported policy: manifest.json is missing; export one with kilolayer-policy" in refusal(tmp_path)
    assert "manifest.json is missing" in refusal(tmp_path / "nowhere")
    assert "kilolayer-policy export" in refusal(whole.parent / "policies/1000")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda config: config.update(format_version=2), "config.json has format"),
        (lambda config: config.pop("version"), "config.json cannot be read: KeyError('version')"),
        (lambda config: config["spec"].pop("energy"), "the specification in config.json lacks 'energy'"),
        (lambda config: config["spec"].update(news=1), "the specification in config.json has the unknown field 'news'"),
        (lambda config: config["spec"].update(action_chunk="1"), "config.json cannot be read: TypeError"),
        (lambda config: config["spec"].update(action_chunk=-1), "config.json cannot be read: ValueError"),
        (lambda config: config["spec"].update(action_chunk=2**70), "config.json cannot be read: ValueError"),
        (lambda config: config["spec"].update(name="\ud800"), "config.json cannot be read: UnicodeEncodeError"),
        (lambda config: config["spec"].update(action_chunk=2), "probes.safetensors has the shapes"),
    ],
)
def test_another_config_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any], complaint: str) -> None:
    change_config(folder, change)
    assert complaint in refusal(folder)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        ("action", "actions differ from the exported ones by 0.0002, more than 0.0001"),
        ("sampled_action", "sampled actions differ from the exported ones by 0.002, more than 0.001"),
        ("energy", "energies differ"),
        ("noise", "the noise of seed 0 differ"),
    ],
)
def test_probes_that_are_not_met_are_refused(folder: Path, backend: str, *, array: str, complaint: str) -> None:
    probes = load_file(folder / "probes.safetensors")
    by = {"action": 2e-4, "sampled_action": 2e-3}.get(array, 1.0)
    probes[array][2, 0] += -by if probes[array][2, 0] > 0 else by
    save_file(probes, folder / "probes.safetensors")
    sign(folder)
    assert f"computed by {backend}, {complaint}" in refusal(folder, backend=backend)


@pytest.mark.parametrize("name", ["actor.blocks.kernel", "goal_encoder.output.bias"])
def test_parameters_of_another_shape_are_refused(folder: Path, name: str) -> None:
    arrays = load_file(folder / "model.safetensors")
    arrays[name] = np.ascontiguousarray(arrays[name][..., :-1])
    save_file(arrays, folder / "model.safetensors")
    sign(folder)
    assert f"model.safetensors: the array {name} is [" in refusal(folder, backend="numpy")
    arrays[name] = arrays[name].astype(np.float64)
    save_file(arrays, folder / "model.safetensors")
    sign(folder)
    assert f"the array {name} of model.safetensors is not float32" in refusal(folder, backend="numpy")


def test_a_graph_that_cannot_be_loaded_is_refused(folder: Path) -> None:
    (folder / "actor.onnx").write_bytes(b"no graph")
    sign(folder)
    assert "cannot load actor.onnx" in refusal(folder)
    assert LocalPolicy(folder, backend="numpy").backend == "numpy"


def test_files_of_others_and_symbolic_links_are_no_damage(whole: Path, tmp_path: Path) -> None:
    """A model hub adds files of its own, and its cache consists of links."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in whole.iterdir():
        (linked / file.name).symlink_to(file)
    (linked / ".gitattributes").write_text("*.onnx filter=lfs\n")
    (linked / "critic.jax").write_bytes(b"not in the manifest")
    assert LocalPolicy(linked).act(STATE, GOAL, timeout_s=60).policy == "point_u_maze"


@pytest.mark.parametrize(
    ("formats", "used", "other", "missing"),
    [
        (["onnx"], "onnx", "numpy", "model.safetensors is missing"),
        (["safetensors"], "numpy", "onnx", "actor.onnx is missing"),
        (["onnx", "safetensors"], "onnx", None, ""),
    ],
)
def test_onnx_is_used_where_it_is_and_numpy_elsewhere(
    whole: Path, tmp_path: Path, *, formats: list[str], used: str, other: str | None, missing: str
) -> None:
    folder = exported(whole.parent / "policies/1000", tmp_path / "exported", formats=formats)
    policy = LocalPolicy(folder, timeout_s=60)
    assert policy.backend == used
    energies = [policy.score(STATE, policy.act(STATE, GOAL).action, goal=GOAL).energy]
    energies.append(LocalPolicy(whole).score(STATE, policy.act(STATE, GOAL).action, goal=GOAL, timeout_s=60).energy)
    np.testing.assert_allclose(*energies, rtol=1e-5)
    if other:
        assert missing in refusal(folder, backend=other)


def test_without_onnx_runtime_numpy_is_used_and_onnx_names_the_extra(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_alone = exported(whole.parent / "policies/1000", tmp_path / "graph", formats=["onnx"])
    find_spec = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    assert LocalPolicy(whole).backend == "numpy"
    with pytest.raises(ImportError, match=r"needs onnxruntime.*pip install 'kilolayer\[local\]'"):
        LocalPolicy(whole, backend="onnx")
    with pytest.raises(ImportError, match=r"needs onnxruntime.*pip install 'kilolayer\[local\]'"):
        LocalPolicy(graph_alone)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"backend": "torch"}, "backend must be 'onnx' or 'numpy', got 'torch'"),
        ({"threads": 0}, "threads must be a positive integer, got 0; try 1"),
        ({"threads": True}, "threads must be a positive integer, got True"),
        ({"threads": 2, "backend": "numpy"}, "threads is a setting of the backend onnx"),
        ({"timeout_s": 0}, "timeout_s must be a positive number"),
    ],
)
def test_a_wrong_argument_is_refused(whole: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LocalPolicy(whole, **options)


def test_several_threads_give_the_same_actions(whole: Path) -> None:
    state = np.random.default_rng(0).normal(size=(64, 4))
    one, two = (LocalPolicy(whole, threads=threads).act(state, GOAL, timeout_s=60).chunk for threads in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)
