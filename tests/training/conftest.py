"""Small runs and environments that several tests share."""

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.training import probes
from training import programs, trainer
from training.config import TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv

OF_THE_RUN_ALONE = (  # fields that change no program
    *("out", "name", "total_env_steps", "num_evals", "max_minutes", "target_stay_rate", "max_eval_share"),
    *("keep_policies", "snapshot_minutes", "resume", "overwrite"),
)


@pytest.fixture(scope="session")
def u_maze() -> GoalEnv:
    return registry.make("point_u_maze")


def tiny_config(out: Path, **changes: object) -> TrainConfig:
    """A run of a few seconds that goes through everything a real one does, in sizes that do not divide one another."""
    defaults: dict[str, object] = {
        "env": "point_u_maze",
        "preset": "paper",
        "rows_per_episode": 1,
        "out": out,
        "num_envs": 8,
        "unroll_length": 5,
        "episode_length": 20,
        "total_env_steps": 8 * 5 * 6,
        "num_evals": 2,
        "max_eval_share": 1.0,
        "updates_per_unroll": 3,
        "batch_size": 16,
        "max_replay_size": 23,
        "min_replay_size": 10,
        "actor_width": 16,
        "critic_width": 16,
        "representation_dim": 8,
        "eval_episodes": 4,
        "resample_goal_probability": 0.1,
    }
    return TrainConfig(**(defaults | changes))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="session")
def tiny() -> object:
    return tiny_config


@pytest.fixture(scope="module")
def without_physics() -> Generator[None]:
    """What is tested with it is the shell: a task by formula compiles in a second, MJX in ten.

    Runs of a module that differ in nothing that their programs depend on share them.
    """
    line = probes.Line()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "make", lambda *_, **__: line)
        patch.setattr(trainer, "compile_programs", compile_once())
        yield


def compile_once() -> Callable[..., programs.Programs]:
    """Return a `compile_programs` that compiles once for equal environments and settings."""
    known: dict[object, programs.Programs] = {}

    def compiled(
        config: TrainConfig, env: GoalEnv, state: programs.RunState, *, eval_env: GoalEnv | None = None
    ) -> programs.Programs:
        settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        key = env, eval_env, tuple((name, value) for name, value in settings.items() if name not in OF_THE_RUN_ALONE)
        if key not in known:
            known[key] = programs.compile_programs(config, env, state, eval_env=eval_env)
        return known[key]

    return compiled


@pytest.fixture(scope="module")
def finished(without_physics: None, tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has come to its end."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    trainer.train(tiny(out))
    return out
