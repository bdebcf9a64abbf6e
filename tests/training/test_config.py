"""TrainConfig refuses what cannot work, and names a value that would."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from training.config import ConfigError, TrainConfig
from training.envs import registry
from training.envs.core.errors import UnknownNameError
from training.presets.settings import PRESETS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actor_depth": 6}, "actor_depth must be a positive multiple of 4, got 6; try 4 or 8"),
        ({"critic_depth": 0}, "critic_depth must be a positive multiple of 4, got 0; try 4"),
        ({"max_replay_size": 24}, r"max_replay_size must be unroll_length \(25\) or more, got 24; try 400"),
        (
            {"min_replay_size": 1025},
            r"min_replay_size must be max_replay_size \(1000\) or less, .*, got 1025; try 100$",
        ),
        ({"batch_size": 1}, "batch_size must be 2 or more, .*, got 1; try 256"),
        ({"target_stay_rate": 1.01}, "target_stay_rate must be above 0 and at most 1, got 1.01; try 0.9, or inf to"),
        ({"target_stay_rate": 0.0}, "target_stay_rate must be above 0 and at most 1, got 0.0"),
        ({"target_stay_rate": -math.inf}, "target_stay_rate must be above 0 and at most 1, got -inf"),
        ({"target_stay_rate": math.nan}, "target_stay_rate must be above 0 and at most 1, got nan"),
        ({"discount": 1.0}, "discount must be above 0 and below 0.999999, got 1.0; try 0.99"),
        ({"discount": 0.99999999}, "below 0.999999, got 0.99999999; try 0.99"),
        ({"representation_dim": 10**20}, "representation_dim must be 2147483647 or less, got 1"),
        ({"resample_goal_probability": 1.5}, "resample_goal_probability must be from 0 to 1, got 1.5; try 0.02"),
        (
            {"resample_at_goal_probability": -1.0},
            "resample_at_goal_probability must be from 0 to 1, got -1.0; try 0.25",
        ),
        ({"commanded_goals": 1.5}, "commanded_goals must be from 0 to 1, got 1.5; try 0.5"),
        ({"commanded_goals": math.nan}, "commanded_goals must be from 0 to 1, got nan; try 0.5"),
        (
            {"batch_size": 512, "rows_per_episode": 3},
            "batch_size 512 must be a multiple of rows_per_episode 3; try 2 or 4$",
        ),
        ({"batch_size": 7, "rows_per_episode": 8}, "must be a multiple of rows_per_episode 8; try 7$"),
        ({"rows_per_episode": 0}, "rows_per_episode must be a positive number, got 0; try 1"),
        ({"num_envs": 0}, "num_envs must be a positive number, got 0; try 512"),
        ({"critic_learning_rate": math.nan}, "critic_learning_rate must be a positive number, got nan"),
        ({"total_env_steps": -5}, "total_env_steps must be a positive number, got -5"),
        ({"seed": -3}, "seed must be from 0 to 2147483647, got -3; try 3"),
        ({"seed": 2**70}, "seed must be from 0 to"),
        ({"name": "a/b c"}, "^name must be 1 to 64 letters, digits"),
        ({"logsumexp_penalty": math.nan}, "logsumexp_penalty must be a finite number, got nan; try 0.1"),
        ({"target_entropy_per_action": math.inf}, "target_entropy_per_action must be a finite number"),
        ({"resume": True, "overwrite": True}, "resume and overwrite exclude each other"),
        ({"max_eval_share": 0.0}, "max_eval_share must be above 0 and at most 1, got 0.0; try 0.2"),
        ({"max_eval_share": 1.1}, "max_eval_share must be above 0 and at most 1, got 1.1; try 0.2"),
        ({"init_from": Path("x"), "algorithm": "sac"}, "init_from needs algorithm crl, got sac"),
        ({"normalize_observations": True, "algorithm": "ppo"}, "normalize_observations needs algorithm crl, got ppo"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(changes: dict[str, object], message: str) -> None:
    valid = TrainConfig(env="point_u_maze", out=Path("runs/x"))
    valid = dataclasses.replace(valid, unroll_length=25, max_replay_size=1000, min_replay_size=200)
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(valid, **changes)


@pytest.mark.parametrize("rate", [0.001, 1.0, math.inf])
def test_a_target_is_a_share_or_never(rate: float) -> None:
    assert TrainConfig(env="point_u_maze", out=Path("x")).target_stay_rate <= 1
    assert TrainConfig(env="ant", out=Path("x"), target_stay_rate=rate).target_stay_rate == rate


def test_unknown_names_list_the_known_ones_nearest_first() -> None:
    with pytest.raises(UnknownNameError, match="nearest first: ant_big_maze, point_big_maze"):
        TrainConfig(env="big_maze", out=Path("runs/x"))
    with pytest.raises(UnknownNameError, match="preset 'papper'; known, nearest first: paper"):
        TrainConfig(env="point_u_maze", out=Path("runs/x"), preset="papper")
    with pytest.raises(UnknownNameError, match="environment 'aunt'; known, nearest first: ant"):
        TrainConfig(env="aunt", out=Path("runs/x"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("env", registry.names())
def test_every_preset_is_valid_on_every_environment(env: str, preset: str) -> None:
    assert TrainConfig(env=env, out=Path("runs/x"), preset=preset).preset == preset


def test_the_paper_preset_gives_each_environment_what_the_paper_gave_it() -> None:
    budgets = {
        "humanoid": (100, ""),
        "ant_big_maze": (100, "ant_big_maze_eval"),
        "ant_u4_maze": (100, "ant_u4_maze_eval"),
        "ant_u5_maze": (400, "ant_u5_maze_eval"),
        "ant_hardest_maze": (200, ""),
        "arm_push_easy": (100, ""),
        "arm_push_hard": (100, ""),
        "arm_binpick_hard": (100, ""),
        "humanoid_u_maze": (400, ""),
        "humanoid_big_maze": (400, ""),
        "reacher": (100, ""),  # not in the paper
    }
    for env, (millions, eval_env) in budgets.items():
        config = TrainConfig(env=env, out=Path("runs/x"), preset="paper")
        assert (config.total_env_steps, config.eval_env) == (millions * 1_000_000, eval_env), env
        assert config.num_evals == millions
        assert config.iterations_per_epoch * config.steps_per_iteration == pytest.approx(1e6, rel=0.02)
        assert (config.episode_length, config.eval_episodes, config.rows_per_episode) == (1000, 128, 2)
        assert config.commanded_goals == 0


def test_training_layouts_are_evaluated_where_they_are_trained_at_equal_length() -> None:
    for env in ("ant_u4_maze", "ant_u5_maze", "ant_hardest_maze", "humanoid_big_maze"):
        config = TrainConfig(env=env, out=Path("runs/x"), preset="training_layouts")
        assert (config.total_env_steps, config.eval_env) == (100_000_000, "")
        assert (config.num_evals, config.eval_episodes, config.episode_length) == (100, 100, 1000)
        assert config.iterations_per_epoch == 32  # ceil(3151 / 100)
        assert config.gradient_steps == (3151 - 17) * 800


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"paper", "training_layouts"}))
def test_rows_are_independent_in_every_other_preset(preset: str) -> None:
    assert TrainConfig(env="ant", out=Path("runs/x"), preset=preset).rows_per_episode == 1


def test_the_paper_preset_is_the_papers_recipe() -> None:
    config = TrainConfig(env="point_u_maze", out=Path("runs/x"), preset="paper")
    assert (config.num_envs, config.unroll_length, config.batch_size) == (512, 62, 512)
    assert config.steps_per_iteration == 31_744
    assert config.steps_per_iteration / config.updates_per_unroll == pytest.approx(40, rel=0.01)
    assert (config.actor_width, config.critic_width, config.representation_dim) == (256, 256, 64)
    assert config.actor_learning_rate == config.critic_learning_rate == config.temperature_learning_rate == 3e-4
    assert (config.discount, config.logsumexp_penalty, config.target_entropy_per_action) == (0.99, 0.1, -0.5)
    assert config.max_replay_size == 10_000
    assert config.min_replay_size == 1000
    assert config.rows_per_episode == 2
    assert config.max_eval_share == 1  # one evaluation per million steps, whatever it costs


def test_a_plain_configuration_takes_the_values_of_the_environments_preset() -> None:
    maze = TrainConfig(env="point_u_maze")
    assert (maze.preset, maze.out) == ("point_u_maze", Path("runs/point_u_maze"))
    assert maze.num_envs == PRESETS["point_u_maze"]["num_envs"] != 512
    assert maze.episode_length == 100
    assert TrainConfig(env="point_u_maze", num_envs=512).num_envs == 512  # although that is the paper's value
    assert TrainConfig(env="point_u_maze", preset="paper").num_envs == 512
    assert TrainConfig(env="ant") == TrainConfig(env="ant", out=Path("runs/ant"), preset="paper")
    assert dataclasses.replace(maze, seed=1).num_envs == maze.num_envs


def test_derived_numbers_by_hand() -> None:
    config = TrainConfig(
        env="point_u_maze",
        preset="paper",
        out=Path("x"),
        num_envs=10,
        unroll_length=5,
        max_replay_size=20,
        min_replay_size=12,
        total_env_steps=1001,
        num_evals=4,
        batch_size=10,
        commanded_goals=0.33,
    )
    assert config.steps_per_iteration == 50
    assert config.warmup_iterations == 3
    assert config.iterations == 21
    assert config.iterations_per_epoch == 6
    assert config.commanded_rows == 3
    assert config.gradient_steps == (21 - 3) * 800
    assert config.published_name == "point_u_maze"


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "point_u_maze, depth 4, seed 0"),
        ({"actor_depth": 16, "seed": 7}, "point_u_maze, actor depth 16, critic depth 4, seed 7"),
        ({"algorithm": "sac", "actor_depth": 8, "critic_depth": 8}, "point_u_maze, sac, depth 8, seed 0"),
    ],
)
def test_the_title_of_the_curves_names_environment_depth_and_seed(changes: dict[str, Any], title: str) -> None:
    config = TrainConfig(env="point_u_maze", out=Path("run"))
    assert dataclasses.replace(config, **changes).title == title
