"""The formats of an export: each file is what its library takes it for, and wrong ones are refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.bundle import Bundle
from policy.exchange import formats
from policy.exchange.export import export
from policy.exchange.formats import FORMATS, ExportError
from tests.policy.exchange.exports import bundle_of, code_under, run_code
from tests.samples import policy_spec


@pytest.fixture(scope="module")
def policy() -> Bundle:
    return bundle_of(policy_spec(action_chunk=2))


@pytest.fixture(scope="module")
def folder(policy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(policy, tmp_path_factory.mktemp("exports") / "out", critic=True)


@pytest.mark.parametrize("name", ["actor.onnx", "actor.jax", "model.safetensors"])
def test_the_code_of_the_card_gives_the_actions_of_the_policy(
    policy: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code = code_under((folder / "README.md").read_text(), name)
    variables = run_code(code, folder, script=tmp_path / "code.py", monkeypatch=monkeypatch)
    np.testing.assert_allclose(variables["action"], policy.probes.action, atol=1e-5)


@pytest.mark.parametrize("name", ["critic.onnx", "critic.jax"])
def test_the_code_of_the_card_gives_the_energies_of_the_policy(
    policy: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code = code_under((folder / "README.md").read_text(), name)
    variables = run_code(code, folder, script=tmp_path / "code.py", monkeypatch=monkeypatch)
    np.testing.assert_allclose(variables["energy"], policy.probes.energy[:, 0], rtol=1e-5)


def test_the_card_lists_every_file_but_itself_and_the_manifest(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for file in folder.iterdir():
        assert (f"| {file.name} | {file.stat().st_size} |" in text) == (file.name not in {"README.md", "manifest.json"})


def test_no_file_has_a_path_of_this_machine(folder: Path) -> None:
    for file in folder.iterdir():
        assert str(Path(__file__).parents[3]).encode() not in file.read_bytes(), file.name


def test_without_the_critic_there_is_the_actor_alone(policy: Bundle, tmp_path: Path) -> None:
    out = export(policy, tmp_path / "out", formats=["onnx"])
    assert sorted(file.name for file in out.iterdir()) == [
        *("README.md", "actor.onnx", "config.json", "manifest.json", "probes.safetensors"),
    ]


def other_parameters(policy: Bundle, network: str, *, add: float) -> Bundle:
    """The policy with another bias at the end of one network."""
    changed = getattr(policy.params, network)
    output = changed.params["output"]
    tree = changed.params | {"output": output | {"bias": output["bias"] + np.float32(add)}}
    return dataclasses.replace(
        policy, params=policy.params._replace(**{network: dataclasses.replace(changed, params=tree)})
    )


@pytest.mark.parametrize("name", ["onnx", "jax"])
@pytest.mark.parametrize(
    ("network", "message"),
    [("actor", "its actions differ from the published ones by"), ("goal_encoder", "its energies differ from")],
)
def test_graphs_of_other_parameters_are_refused(
    policy: Bundle, tmp_path: Path, name: str, network: str, message: str
) -> None:
    FORMATS[name].write(tmp_path, other_parameters(policy, network, add=0.1), True)
    with pytest.raises(ExportError, match=f"the format {name} does not give the results of the policy: {message}"):
        FORMATS[name].check(tmp_path, policy, True)


@pytest.mark.parametrize(
    ("name", "message"), [("onnx", "onnxruntime .* cannot run the exported files"), ("jax", "jax .* cannot run")]
)
def test_a_damaged_graph_is_refused(policy: Bundle, folder: Path, tmp_path: Path, name: str, message: str) -> None:
    damaged = tmp_path / f"actor.{name}"
    damaged.write_bytes((folder / damaged.name).read_bytes()[:1000])
    with pytest.raises(ExportError, match=message) as error:
        FORMATS[name].check(tmp_path, policy, False)
    assert "\n" not in str(error.value)


def test_a_graph_for_another_chunk_is_refused_by_its_shape(
    policy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Any = (policy.probes.action[:, :2], policy.probes.sampled_action[:, :2], None)
    monkeypatch.setattr(formats, "_running", lambda *_: rows)
    with pytest.raises(ExportError, match=r"the format onnx gives actions of shape \(5, 2\) instead of \(5, 4\)"):
        FORMATS["onnx"].check(tmp_path, policy, False)


def test_a_policy_without_room_in_a_format_is_refused(
    policy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("the parameters have 3.00 GB")

    monkeypatch.setattr(formats.jax_artefact, "write_actor", refuse)
    with pytest.raises(ExportError, match="the parameters have 3.00 GB"):
        export(policy, tmp_path / "out", formats=["jax"])
    assert list(tmp_path.iterdir()) == []
