"""A published policy is evaluated as training evaluates it."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import bundle
from tests.parameters import fresh_params
from tests.samples import WITHOUT_CRITIC
from tests.training.policy_command.conftest import Command
from tests.training.policy_command.conftest import publish as publish_point
from training import intervals
from training.envs.rendering.camera import CannotDrawError
from training.policy_command import evaluation_settings, film
from training.policy_command.run import main


def publish(root: Path, like: Path, *, provenance: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Publish fresh parameters for the task of the version `like`, without provenance if none is given."""
    spec = dataclasses.replace(bundle.read(like).spec, **changes)
    plain = {name: () for name in vars(spec) if name.startswith(("seen_", "normalization_"))}
    spec = dataclasses.replace(spec, **plain)
    ones = np.ones((1, 2), np.float32)
    return bundle.write(
        root,
        1,
        spec=spec,
        params=fresh_params(0, spec),
        probe_state=ones,
        probe_goal=ones,
        provenance=provenance or {},
    )


@pytest.mark.parametrize("version", [120, 240])
def test_the_figures_are_those_of_trainings_own_evaluation(finished: Path, command: Command, version: int) -> None:
    """Training recorded them when it published the version."""
    recorded = bundle.read(finished / "policies" / str(version)).provenance["metrics"]
    expected = {name: value for name, value in recorded.items() if name.startswith("eval/")}
    code, found = command("evaluate", finished / "policies", "--version", version)
    assert code == 0
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)
    assert found["same_as_in_training"]
    assert found["in_training"]["metrics"] == expected
    assert (found["env"], found["episodes"], found["seed"], found["episode_length"]) == ("point_u_maze", 4, 0, 20)


def test_the_settings_may_be_others(finished: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = command("evaluate", finished / "policies", "--episodes", 9, "--seed", 5)
    assert (found["episodes"], found["seed"], found["same_as_in_training"]) == (9, 5, False)
    metrics = found["metrics"]
    interval = intervals.wilson(metrics["eval/touched_count"], 9)
    assert (metrics["eval/touched_low"], metrics["eval/touched_high"]) == pytest.approx(interval)
    assert main(["evaluate", str(finished / "policies"), "--episodes", "9", "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("point_u_maze version 240 on point_u_maze: 9 episodes of 20 steps, seed 5; ")
    assert "  in training     other settings: episodes 4, seed 0" in lines


def test_goals_may_come_from_a_file(finished: Path, tmp_path: Path, command: Command) -> None:
    """Goals where every episode starts: all of them begin at their goal."""
    (tmp_path / "goals.csv").write_text("0,0\n")
    _, found = command("evaluate", finished / "policies", "--goals", tmp_path / "goals.csv")
    assert found["metrics"]["eval/reached_at_reset"] == 1
    assert found["goals"] == str(tmp_path / "goals.csv")


def test_a_policy_that_was_not_trained_here_is_evaluated(finished: Path, tmp_path: Path, command: Command) -> None:
    publish(tmp_path, finished / "policies" / "240", **WITHOUT_CRITIC)
    code, found = command("evaluate", tmp_path, "--episodes", 4)
    assert (code, found["in_training"], found["same_as_in_training"]) == (0, None, False)
    assert (found["seed"], found["episode_length"]) == (0, 6)  # as the environment says


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["evaluate", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_evaluated_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = finished / "policies"
    assert refusal(capsys, policies, "--episodes", 0) == "error: --episodes must be from 1 to 1000000, got 0"
    assert refusal(capsys, policies, "--env", "nowhere").startswith("error: unknown environment 'nowhere'; known, ")
    assert "goals.csv cannot be read" in refusal(capsys, policies, "--goals", tmp_path / "goals.csv")
    publish_point(tmp_path / "other", 1)
    assert refusal(capsys, tmp_path / "other").startswith(
        "error: point_u_maze does not fit the environment point_u_maze: its state_dim is 2 instead of 4; use --env"
    )
    publish(tmp_path / "chunks", policies / "240", action_chunk=2)
    assert refusal(capsys, tmp_path / "chunks") == (
        "error: point_u_maze gives chunks of 2 actions, which cannot be evaluated here"
    )


@pytest.mark.parametrize("field", ["env", "eval_env"])
def test_a_module_that_only_the_policy_names_is_not_imported(
    field: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    like = finished / "policies" / "240"
    config = bundle.read(like).provenance["config"] | {field: "hostile_module:point_u_maze"}
    publish(tmp_path / "policies", like, provenance={"config": config})
    (tmp_path / "hostile_module.py").write_text("raise RuntimeError('it runs')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal(capsys, tmp_path / "policies") == (
        "error: point_u_maze was evaluated on hostile_module:point_u_maze, whose module is code of its own; if you "
        "trust the code, use --env hostile_module:point_u_maze"
    )
    assert "hostile_module" not in sys.modules
    line = refusal(capsys, tmp_path / "policies", "--env", "hostile_module:point_u_maze")  # the user may name it
    assert line.endswith(": it runs")


def settings_of(path: Path, **config: Any) -> evaluation_settings.Settings:
    """Return the default settings for the policy at `path`, with changes of the recorded configuration."""
    policy = bundle.read(path)
    policy = dataclasses.replace(policy, provenance={"config": policy.provenance["config"] | config})
    given = argparse.Namespace(env=None, episodes=None, seed=None, goals=None, impl="jax")
    return evaluation_settings.chosen(given, policy, recorded=evaluation_settings.of_training(policy))


def test_the_defaults_are_those_of_trainings_evaluation_except_for_files_and_warp(finished: Path) -> None:
    policy = finished / "policies" / "240"
    found = settings_of(policy, eval_env="point_umaze", eval_goals="/etc/goals.csv", impl="warp", seed=3)
    assert (found.env, found.goals, found.impl, found.seed) == ("point_umaze", None, "jax", 3)


@pytest.mark.parametrize(
    "config", [{"eval_episodes": 10**9}, {"seed": -1}, {"num_envs": float("inf")}, {"unroll_length": 0}]
)
def test_recorded_settings_that_are_not_allowed_count_as_none(finished: Path, config: dict[str, Any]) -> None:
    found = settings_of(finished / "policies" / "240", **config)
    assert found == evaluation_settings.Settings("point_u_maze", 128, 0, None, 0, None, "jax")


def test_a_video_that_cannot_be_drawn_is_one_line_and_the_figures_stay(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CannotDrawError("neither EGL nor OSMesa works")

    monkeypatch.setattr(film, "write", fail)
    assert main(["evaluate", str(finished / "policies"), "--video", str(tmp_path / "film.mp4"), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "no video: neither EGL nor OSMesa works\n"
    assert json.loads(printed.out)["video"] is None
