"""kilolayer-policy diff."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import policy
from tests.samples import WITHOUT_CRITIC, policy_spec
from tests.training.policy_command.conftest import SPEC, Command, publish
from training.policy_command.differences import Difference
from training.policy_command.input_rows import InputRows, random_rows
from training.policy_command.run import main


def by_hand(**changes: Any) -> Difference:
    """Four rows, two actions of -4 N to 4 N, and of -1 m/s to 3 m/s."""
    spec = policy_spec(action_names=("f [N]", "v [m/s]"), action_low=(-4.0, -1.0), action_high=(4.0, 3.0))
    first = np.array([[0, 0], [0.5, 0], [-1, 1], [0, 0]], np.float32)[:, None]
    second = np.array([[0, 0], [0.25, 0], [1, 1], [0, 0.05]], np.float32)[:, None]
    state, goal = np.arange(16, dtype=np.float32).reshape(4, 4), np.arange(8, dtype=np.float32).reshape(4, 2)
    rows = InputRows("recorded", "the rows in a file", state, goal)
    return Difference(rows, (spec, dataclasses.replace(spec, **changes)), first, second)


def test_figures_are_of_the_absolute_difference_in_the_range_of_actions_and_in_units() -> None:
    """The eight differences are 0, 0, 0.25, 0, 2, 0, 0, 0.05; half of the actions' ranges are 4 N and 2 m/s."""
    facts = by_hand().facts(worst=2)
    assert (facts["source"], facts["rows"], facts["max"]) == ("recorded", 4, 2)
    assert facts["mean"] == pytest.approx(2.3 / 8)
    assert facts["quantiles"]["0.5"] == 0
    assert facts["quantiles"]["0.9"] == pytest.approx(0.25 + 0.3 * (2 - 0.25))
    force, speed = facts["actions"]
    assert (force["name"], force["max"], force["in_units"]["max"]) == ("f [N]", 2, 8)
    assert force["in_units"]["mean"] == pytest.approx((0 + 1 + 8 + 0) / 4)
    assert (speed["name"], speed["in_units"]["max"]) == ("v [m/s]", pytest.approx(0.1))


def test_the_worst_rows_come_first_with_their_inputs_and_both_actions() -> None:
    assert by_hand().facts(worst=2)["worst"] == [
        {
            "row": 2,
            "difference": 2.0,
            "state": [8, 9, 10, 11],
            "goal": [4, 5],
            "first": [-1, 1],
            "second": [1, 1],
        },
        {
            "row": 1,
            "difference": 0.25,
            "state": [4, 5, 6, 7],
            "goal": [2, 3],
            "first": [0.5, 0],
            "second": [0.25, 0],
        },
    ]


def test_the_histogram_counts_rows_by_their_largest_difference() -> None:
    difference = by_hand()
    histogram = difference.facts(worst=0)["histogram"]
    assert histogram == {
        "edges": [0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.2, 0.5, 1, 2],
        "rows": [1, 0, 0, 0, 0, 1, 0, 1, 0, 1],
    }
    lines = list(difference.describe(worst=0))
    assert "      0.01 to 0.1           1  " + 40 * "#" in lines


def test_rows_without_a_difference_are_not_listed() -> None:
    lines = list(by_hand().describe(worst=4))
    assert [line.split()[:2] for line in lines if " differs by " in line] == [["row", "2"], ["row", "1"], ["row", "3"]]


def test_policies_with_other_limits_are_compared_in_units_by_their_own() -> None:
    """Row 1: 0.5 of 4 N is 2 N, 0.25 of 8 N is 2 N, too."""
    difference = by_hand(action_low=(-8.0, -1.0), action_high=(8.0, 3.0))
    assert difference.in_units[:, 0, 0].tolist() == [0, 0, 4 + 8, 0]


def test_random_states_are_in_the_range_of_training_and_goals_in_that_of_the_probes() -> None:
    narrow, wide = SPEC, dataclasses.replace(SPEC, seen_low=(-2.0, -1.0, -1.0, -1.0), seen_high=(0.0, 8.0, 1.0, 1.0))
    goals = np.array([[1.0, -1.0], [2.0, -3.0]])
    rows = random_rows(4000, (narrow, wide), goals=goals, seed=1)
    np.testing.assert_allclose(rows.state.min(axis=0), [-2, -2, -3, -4], atol=0.02)
    np.testing.assert_allclose(rows.state.max(axis=0), [1, 8, 3, 4], atol=0.02)
    assert (rows.state.min(axis=0) >= [-2, -2, -3, -4]).all()
    np.testing.assert_allclose(rows.goal.min(axis=0), [1, -3], atol=0.01)
    np.testing.assert_allclose(rows.goal.max(axis=0), [2, -1], atol=0.01)
    np.testing.assert_array_equal(rows.state, random_rows(4000, (narrow, wide), goals=goals, seed=1).state)
    assert (rows.state != random_rows(4000, (narrow, wide), goals=goals, seed=2).state).all(axis=1).any()


def test_random_quaternions_have_length_one() -> None:
    spec = dataclasses.replace(SPEC, state_quaternions=(0,))
    rows = random_rows(50, (spec, spec), goals=np.zeros((1, 2)), seed=0)
    np.testing.assert_allclose(np.linalg.norm(rows.state, axis=1), 1, atol=1e-6)


def test_two_versions_are_compared_on_probes_recorded_rows_and_random_states(
    policies: Path, tmp_path: Path, command: Command
) -> None:
    rng = np.random.default_rng(0)
    state, goal = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32)
    for name, part in (("one", slice(2)), ("two", slice(2, 3))):
        np.savez(tmp_path / name, state=state[part], goal=goal[part], robot_id=np.array(["r"]))
    words = (policies / "1000", policies / "2000", "--random", 7, "--rows", tmp_path / "one.npz", tmp_path / "two.npz")
    code, found = command("diff", *words)
    assert code == 0
    assert [(each["source"], each["rows"]) for each in found["compared"]] == [
        ("probes", 3),  # both have the same inputs
        ("recorded", 3),
        ("random", 7),
    ]
    first, second = (policy.load(policies, version) for version in (1000, 2000))
    expected = np.abs(first.act(state, goal) - second.act(state, goal))
    recorded = found["compared"][1]
    assert recorded["mean"] == pytest.approx(expected.mean())
    assert recorded["worst"][0]["row"] == expected.max(axis=1).argmax()
    assert found["max"] == max(each["max"] for each in found["compared"])
    assert found["spec_differences"] == {}


def test_a_version_equals_itself_and_differs_from_another(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = str(policies / "1000"), str(policies / "2000")
    assert main(["diff", one, one, "--within", "0"]) == 0
    assert capsys.readouterr().out.endswith("\nthe largest difference is 0, within 0\n")
    assert main(["diff", one, other, "--within", "1e-4"]) == 3
    assert ", more than 0.0001\n" in capsys.readouterr().out


def test_a_row_that_gives_nan_is_an_error_and_not_a_difference_of_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The largest range that a specification may have: the networks overflow."""
    most = 3.4028234663852886e38
    policy = publish(tmp_path, 1, spec=dataclasses.replace(SPEC, seen_low=(-most,) * 4, seen_high=(most,) * 4))
    assert main(["diff", str(policy), str(policy), "--within", "0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {policy} gives NaN for row ")
    assert line.endswith("the values may be too large for float32")


def test_differences_of_the_specifications_are_named(
    policies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = dataclasses.replace(SPEC, control_period_s=0.1, seen_low=(-1.0, -2.0, -3.0, -5.0), **WITHOUT_CRITIC)
    publish(tmp_path, 3, spec=spec)
    assert main(["diff", str(policies), str(tmp_path), "--random", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{policies / '2000'} and {tmp_path / '3'}"
    assert "  control_period_s: 0.08 and 0.1" in lines
    assert "  critic: energy and none" in lines
    assert "  seen_low: other values, see --json" in lines


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["diff", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_compared_is_refused(policies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = dataclasses.replace(SPEC, **dict.fromkeys(("seen_mean", "seen_std", "seen_low", "seen_high"), ()))
    publish(tmp_path / "bare", 1, spec=bare)
    chunked = dataclasses.replace(bare, action_chunk=2, **WITHOUT_CRITIC)
    publish(tmp_path / "chunked", 1, spec=chunked)
    assert refusal(capsys, policies, tmp_path / "chunked") == (
        "error: the policies cannot be compared: action_chunk is 1 and 2; name two policies for the same robot"
    )
    assert refusal(capsys, policies, tmp_path / "bare", "--random", 5) == (
        "error: --random needs the range of training, which a policy does not have; leave it out, or use 0"
    )
    assert refusal(capsys, policies, policies, "--within", "nan") == (
        "error: --within must be a number of 0 or more, got nan"
    )
    assert refusal(capsys, policies, policies, "--random", -1) == "error: --random must be from 0 to 1000000, got -1"


@pytest.mark.filterwarnings("error")
def test_a_file_of_rows_that_does_not_fit_is_refused(
    policies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.npz"
    state, goal = np.zeros((2, 4)), np.zeros((2, 2))
    for arrays, problem in (
        (None, "cannot be read: No such file or directory"),
        ({"state": state}, "must be an .npz file with the arrays state and goal: "),
        ({"state": state[:, :3], "goal": goal}, ": state must have shape [rows, 4], with one row or more"),
        ({"state": state, "goal": goal[:1]}, ": goal must have shape [rows, 2], with one row or more"),
        ({"state": state + np.nan, "goal": goal}, ": state has NaN or infinity; leave out such rows"),
        ({"state": state + 1e300, "goal": goal}, ": state has NaN or infinity; leave out such rows"),
        ({"state": state + 1j, "goal": goal}, "arrays state and goal: real numbers are needed, got complex128"),
        ({"state": np.array([object()]), "goal": goal}, "must be an .npz file with the arrays state and goal: "),
    ):
        if arrays is not None:
            np.savez(file, **arrays)
        line = refusal(capsys, policies, policies, "--rows", file)
        assert line.startswith(f"error: --rows {file}")
        assert problem in line
    np.save(tmp_path / "rows.npy", state)
    assert "must be an .npz file" in refusal(capsys, policies, policies, "--rows", tmp_path / "rows.npy")
