"""The model card of an exported policy: what the hub's own tools read of it, and that its code works."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_load

from policy.exchange import card
from policy.exchange.card import ExportedPolicy
from policy.exchange.export import export
from tests.policy.exchange.exports import bundle_of, cells, code_under, run_code
from tests.policy.exchange.test_markdown import HOSTILE
from tests.samples import WITHOUT_CRITIC, policy_spec

METRICS = {
    "eval/stay": 0.91,
    "eval/touched": 1,
    "eval/final_distance": 1e-05,
    "eval/diverged_count": 3,
    "loss/critic": 2.5,
    "loss/actor": float("nan"),
    "flag": True,
    "huge": 10**400,
    "text": "no number",
}
QUATERNIONS_AND_NORMALIZATION: dict[str, Any] = {
    "state_names": ("x [m]", "qw", "qx", "qy", "qz"),
    "goal_names": ("qw", "qx", "qy", "qz"),
    "state_quaternions": (1,),
    "goal_quaternions": (0,),
    "normalize_observations": True,
    "normalization_mean": (0.5, 0.25, 0.125, 0.0, -0.5),
    "normalization_std": (2.0, 1.5, 1.0, 0.5, 0.25),
}
PLAIN: dict[str, Any] = {"layer_norm": False, "residual": False, "activation": "relu"}


def text_of(provenance: Any = None, *, license_id: str = "", **changes: Any) -> str:
    return card.text(
        ExportedPolicy(
            spec=policy_spec(**changes),
            version=2000,
            provenance=provenance or {},
            manifest_sha256="ab" * 32,
            license_id=license_id,
            is_residual=True,
            parameter_count=1428,
            file_sizes={"model.safetensors": 5712, "config.json": 10},
        )
    )


def hub_card(text: str) -> Any:
    return ModelCard(text, ignore_metadata_errors=False)


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next one of the same rank."""
    return re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]


def test_the_hub_reads_the_metadata() -> None:
    data = hub_card(text_of({"metrics": METRICS})).data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("kilolayer", "reinforcement-learning")
    assert {"reinforcement-learning", "robotics", "safetensors", "point_u_maze"} <= set(data["tags"])
    assert not {"onnx", "jax"} & set(data["tags"])  # there are no such files
    assert "license" not in data  # nothing is known about it


def test_a_license_that_was_given_is_in_the_metadata() -> None:
    assert hub_card(text_of(license_id="apache-2.0")).data.license == "apache-2.0"


def test_the_hub_reads_the_metrics_of_the_evaluation(tmp_path: Path) -> None:
    text = text_of({"metrics": METRICS})
    results = hub_card(text).data.eval_results
    assert [(each.metric_type, each.metric_value) for each in results] == [
        ("stay", 0.91),
        ("touched", 1),
        ("final_distance", 1e-05),
    ]
    assert {(each.task_type, each.dataset_name) for each in results} == {("reinforcement-learning", "point_u_maze")}
    (tmp_path / "README.md").write_text(text)
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata is not None
    assert metadata["model-index"][0]["name"] == "point_u_maze"


def test_metrics_of_another_layout_name_that_layout() -> None:
    results = hub_card(text_of({"metrics": METRICS, "config": {"eval_env": "point_spiral"}})).data.eval_results
    assert {each.dataset_name for each in results} == {"point_spiral"}


@pytest.mark.parametrize("provenance", [{}, {"metrics": None}, {"metrics": {"eval/stay": float("inf")}, "versions": 3}])
def test_a_policy_without_metrics_has_a_card_without_results(provenance: Any) -> None:
    text = text_of(provenance)
    assert hub_card(text).data.eval_results is None
    assert "Metrics" not in text


def test_all_metrics_that_are_finite_numbers_are_in_the_text() -> None:
    text = section(text_of({"metrics": METRICS}), "Provenance").partition("Metrics")[2]
    assert {name: value for name, value, _ in cells(text)} == {
        "eval/stay": "0.91",
        "eval/touched": "1",
        "eval/final_distance": "1e-05",
        "eval/diverged_count": "3",
        "loss/critic": "2.5",
    }


def test_inputs_and_outputs_have_names_units_and_limits() -> None:
    text = text_of(action_low=(-4.0, -1.5), rest_action=(0.0, 0.25), actuator_kind=("torque", "position"))
    state, goal = section(text, "Inputs").split("`goal`")
    assert cells(state) == [["0", "x", "m"], ["1", "y", "m"], ["2", "vx", "m/s"], ["3", "vy", "m/s"]]
    assert cells(goal) == [["0", "x", "m"], ["1", "y", "m"]]
    assert cells(section(text, "Output")) == [
        ["0", "force x", "N", "-4", "4", "0", "torque", "absolute"],
        ["1", "force y", "N", "-1.5", "4", "0.25", "position", "absolute"],
    ]
    properties = dict(cells(text.partition("## Inputs")[0]))
    assert properties["control period"] == "0.08 s"
    assert properties["success radius, in the unit of the goal"] == "0.3"
    assert properties["layers"] == "swish, LayerNorm, residual"


def test_ablations_and_chunks_are_said() -> None:
    text = text_of(**PLAIN, action_chunk=3)
    properties = dict(cells(text.partition("## Inputs")[0]))
    assert (properties["layers"], properties["consecutive actions of one inference"]) == ("relu", "3")
    assert "A row has 3 actions of 2 values" in section(text, "Output")


def test_what_training_has_seen_is_in_the_table() -> None:
    seen: dict[str, Any] = {
        "seen_mean": (0.5,) * 4,
        "seen_std": (0.25,) * 4,
        "seen_low": (-1.0,) * 4,
        "seen_high": (2.0,) * 4,
    }
    assert cells(section(text_of(**seen), "Inputs"))[0] == ["0", "x", "m", "-1", "2", "0.5", "0.25"]


def test_the_largest_change_of_an_action_is_in_the_table_if_there_is_one() -> None:
    assert [row[-1] for row in cells(section(text_of(max_action_change=(0.5, 2.0)), "Output"))] == ["0.5", "2"]


def test_hostile_labels_are_shown_as_they_are() -> None:
    labels = tuple(text for text in HOSTILE if text != "x [m]")
    text = text_of(state_names=labels, goal_names=labels)
    for part in section(text, "Inputs").split("\n`goal`: float32"):
        assert cells(part) == [[str(index), label, ""] for index, label in enumerate(labels)]
    assert hub_card(text).data.to_dict()["library_name"] == "kilolayer"


def test_hostile_provenance_stays_in_its_cell() -> None:
    hostile = "\n---\n# x | `y` <b>\n```\x1b[31m\udcff"
    provenance: Any = {"commit": hostile, "versions": {hostile: hostile}, "config": {"eval_env": hostile}}
    text = text_of(provenance | {"metrics": {hostile: 1.0, "eval/stay": 0.5}})
    shown = "--- # x | `y` <b> ```\ufffd[31m\ufffd"
    facts, metrics = section(text, "Provenance").split("Metrics")
    assert dict(cells(facts)).items() >= {"commit": shown, f"version of {shown}": shown}.items()
    assert cells(metrics)[0] == [shown, "1", ""]
    (result,) = hub_card(text).data.eval_results
    assert result.dataset_name == "\n---\n# x | `y` <b>\n```\x1b[31m\ufffd"


def test_an_imported_policy_says_where_it_comes_from() -> None:
    facts = cells(section(text_of({"imported": {"layout": "jaxgcrl", "parameters_sha256": "0a1b"}}), "Provenance"))
    assert ["imported from", "jaxgcrl"] in facts
    assert ["SHA-256 of the imported parameters", "0a1b"] in facts


def test_changes_since_the_commit_are_said() -> None:
    assert ["changes since the commit", "yes"] in cells(text_of({"commit": "0123abc", "dirty": True}))
    assert "changes since" not in text_of({"commit": "0123abc", "dirty": False})


def test_the_code_for_units_takes_the_limits_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = policy_spec(action_low=(-4.0, 0.0), action_high=(4.0, 1.0), action_chunk=2)
    (tmp_path / "config.json").write_text(json.dumps({"spec": dataclasses.asdict(spec)}))
    code = code_under(text_of(), "Output")
    in_units = run_code(code, tmp_path, script=tmp_path / "code.py", monkeypatch=monkeypatch)["in_units"]
    assert in_units(np.array([[-1.0, 1.0, 0.5, 0.0]])).tolist() == [[[-4.0, 1.0], [2.0, 0.5]]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        WITHOUT_CRITIC | QUATERNIONS_AND_NORMALIZATION | {"actor_depth": 8, "action_chunk": 3},
        WITHOUT_CRITIC | PLAIN,
    ],
)
def test_the_numpy_code_gives_the_actions_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    policy = bundle_of(policy_spec(**changes))
    folder = export(policy, tmp_path / "out", formats=["safetensors"])
    code = code_under((folder / "README.md").read_text(), "model.safetensors")
    variables = run_code(code, folder, script=tmp_path / "code.py", monkeypatch=monkeypatch)
    np.testing.assert_allclose(variables["action"], policy.probes.action, atol=1e-5)
