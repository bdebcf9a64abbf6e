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


def rewrite(folder: Path, change) -> None:
    stored = json.loads((folder / "config.json").read_text())
    change(stored)
    (folder / "config.json").write_text(json.dumps(stored))


def test_a_field_that_an_older_file_lacks_has_the_value_that_the_release_behaved_by(tmp_path: Path) -> None:
    """Releases of format 1 evaluated without a limit, and the first of them had no commanded goals."""
    config = TrainConfig(env="ant", preset="ant_on_two_cores", out=tmp_path)
    config_file.write(tmp_path, config)

    def to_format_1(stored: dict[str, object]) -> None:
        for name in ("format", "provenance", "max_eval_share", "max_diverged_share", "commanded_goals", "init_from"):
            del stored[name]

    rewrite(tmp_path, to_format_1)
    earlier = config_file.read(tmp_path)
    names = ("max_eval_share", "max_diverged_share", "commanded_goals", "init_from")
    assert [earlier[name] for name in names] == [1.0, 1.0, 0.0, None]
    assert [getattr(config, name) for name in names] == [0.2, 0.05, 0.5, None]
    with pytest.raises(ConfigError, match="commanded_goals was 0.0 in the run to resume and is 0.5 now; use 0.0, or"):
        config_file.require_same_run(earlier, config)
    with pytest.raises(ConfigError, match=r"init_from was not set .* and is 'runs/a' now; leave it out"):
        config_file.require_same_run(earlier, change(config, commanded_goals=0.0, init_from=Path("runs/a")))
    resumed = config_file.to_resume(tmp_path)
    assert [getattr(resumed, name) for name in names] == [1.0, 1.0, 0.0, None]
    config_file.require_same_run(earlier, resumed)


@pytest.mark.parametrize("lost", ["format", "impl"])
def test_a_field_that_no_release_left_out_is_missed_by_name(config: TrainConfig, tmp_path: Path, lost: str) -> None:
    config_file.write(tmp_path, config)
    rewrite(tmp_path, lambda stored: [stored.pop(name) for name in {lost, "impl"}])
    with pytest.raises(config_file.ConfigFileError, match=r"config.json lacks impl; put it back \(docs/upgrading.md\)"):
        config_file.to_resume(tmp_path)
    with pytest.raises(ConfigError, match="of the run to resume lacks impl; put it back"):
        config_file.require_same_run(config_file.read(tmp_path), config)


@pytest.mark.parametrize("known", [config_file.FORMAT + 1, "two", None])
def test_a_file_of_a_newer_release_is_refused(config: TrainConfig, tmp_path: Path, known: object) -> None:
    config_file.write(tmp_path, config)
    rewrite(tmp_path, lambda stored: stored.update(format=known))
    with pytest.raises(config_file.ConfigFileError, match=f"has format {known!r}, and this release reads up to format"):
        config_file.to_resume(tmp_path)


def test_the_provenance_is_beside_the_fields(config: TrainConfig, tmp_path: Path) -> None:
    assert config_file.provenance(tmp_path) == {}
    config_file.write(tmp_path, config, provenance={"commit": "abc"})
    assert config_file.provenance(tmp_path) == {"commit": "abc"}
    assert not {"format", "provenance"} & config_file.read(tmp_path).keys()
    rewrite(tmp_path, lambda stored: stored.pop("provenance"))
    assert config_file.provenance(tmp_path) == {}


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
        {"eval_goals": Path("goals.csv")},
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
    del stored["commanded_goals"]
    (tmp_path / "config.json").write_text(json.dumps(stored | {"field_of_old": 1, "init_from": "runs/a/policies"}))
    older = config_file.to_resume(tmp_path)
    assert older.init_from == Path("runs/a/policies")
    assert (started.commanded_goals, older.commanded_goals) == (0.5, 0)  # format 1, and not the preset
    config_file.require_same_run(config_file.read(tmp_path), older)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no run to resume; use another --out, or leave out --resume if the folder is new or empty"),
        ("{}", "is not the configuration of a run"),
        ("[", "cannot be read as a run's configuration"),
        ('{"env": "ant", "seed": 0, "num_envs": 1, "batch_size": 2, "actor_depth": 4}', "lacks out|lacks algorithm"),
    ],
)
def test_a_file_that_resumes_nothing_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(config_file.ConfigFileError, match=message):
        config_file.to_resume(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": -1}, "not valid: seed must be from 0"), ({"num_envs": "a"}, "not valid: .*; rep")],
)
def test_a_value_that_is_not_valid_is_refused(
    config: TrainConfig, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config_file.write(tmp_path, config)
    rewrite(tmp_path, lambda stored: stored.update(changes))
    with pytest.raises(config_file.ConfigFileError, match=message):
        config_file.to_resume(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", "null", "\udcff"])
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(config_file.ConfigFileError, match="config.json cannot be read as a run's configuration"):
        config_file.read(tmp_path)
