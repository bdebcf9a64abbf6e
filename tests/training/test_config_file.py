"""config.json: which fields of a run must agree when it is resumed, and what a file of an older version lacks."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from training.config import ConfigError, TrainConfig
from training.run_dir import config_file


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(env="point_u_maze", out=tmp_path)


def change(config: TrainConfig, **changes: object) -> TrainConfig:
    return TrainConfig(**{name: getattr(config, name) for name in config.to_json()} | changes)  # pyright: ignore[reportArgumentType]


def test_what_is_written_is_read_back(config: TrainConfig, tmp_path: Path) -> None:
    config_file.write(tmp_path, config)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
    assert config_file.read(tmp_path) == json.loads(json.dumps(config.to_json()))
    assert config_file.is_of_a_run(config_file.read(tmp_path))


def test_a_field_that_an_older_file_lacks_had_its_default(config: TrainConfig) -> None:
    earlier = config.to_json()
    del earlier["impl"], earlier["logsumexp_penalty"], earlier["max_minutes"]
    config_file.require_same_run(earlier, config)
    with pytest.raises(ConfigError, match="impl was 'jax' in the run to resume and is 'warp' now; use 'jax', or start"):
        config_file.require_same_run(earlier, change(config, impl="warp"))


def test_a_field_that_no_longer_exists_is_ignored(config: TrainConfig) -> None:
    config_file.require_same_run(config.to_json() | {"fields_of_old": 3}, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_minutes": 5.0},
        {"target_stay_rate": 0.5},
        {"total_env_steps": 9_000_000},
        {"num_evals": 3},
        {"eval_episodes": 7},
        {"max_eval_share": 0.5},
        {"actor_learning_rate": 1e-5},
        {"critic_learning_rate": 1e-5},
        {"temperature_learning_rate": 1e-5},
        {"preset": "paper"},
        {"allow_bf16_on_cpu": True},
        {"out": Path("elsewhere")},
        {"resume": True},
        {"max_diverged_share": 0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_change_the_next_step_may_change(config: TrainConfig, changes: dict[str, object]) -> None:
    config_file.require_same_run(config.to_json(), change(config, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"actor_depth": 8}, {"batch_size": 64}, {"discount": 0.5}, {"snapshot_replay": False}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_next_step_must_agree(config: TrainConfig, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} was .* in the run to resume and is .* now"):
        config_file.require_same_run(config.to_json(), change(config, **changes))


def test_the_file_of_a_run_is_the_configuration_to_resume_it_with(tmp_path: Path) -> None:
    started = TrainConfig(env="ant", out=Path("elsewhere"), preset="ant_on_two_cores", seed=3, overwrite=True)
    config_file.write(tmp_path, started)
    resumed = config_file.to_resume(tmp_path)
    assert resumed == dataclasses.replace(started, out=tmp_path, overwrite=False, resume=True)
    assert resumed.max_minutes == math.inf  # null in the file
    assert resumed.init_from is None
    stored = config_file.read(tmp_path)
    del stored["max_eval_share"], stored["episode_length"], stored["commanded_goals"]
    (tmp_path / "config.json").write_text(json.dumps(stored | {"field_of_old": 1, "init_from": "runs/a/policies"}))
    older = config_file.to_resume(tmp_path)
    assert (older.max_eval_share, older.init_from) == (0.2, Path("runs/a/policies"))
    assert (older.episode_length, older.commanded_goals) == (1000, 0)  # the defaults, and not those of the preset
    config_file.require_same_run(config_file.read(tmp_path), older)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no run to resume; use another --out, or leave out --resume"),
        ("{}", "is not the configuration of a run"),
        ("[", "cannot be read as a run's configuration"),
        (
            '{"env": "ant", "seed": -1, "num_envs": 1, "batch_size": 2, "actor_depth": 4}',
            "not valid: seed must be from 0",
        ),
        ('{"env": "ant", "seed": 0, "num_envs": "a", "batch_size": 2, "actor_depth": 4}', "not valid: .*; repair it"),
    ],
)
def test_a_file_that_resumes_nothing_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(config_file.ConfigFileError, match=message):
        config_file.to_resume(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", "null", "\udcff"])
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(config_file.ConfigFileError, match="config.json cannot be read as a run's configuration"):
        config_file.read(tmp_path)
