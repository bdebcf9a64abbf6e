"""SAC and PPO on a task without physics: their resets, their networks, their record, and that they learn."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.distribution import NormalTanhDistribution

from policy import acting
from policy.networks import PolicyParams
from tests.training import probes
from training import evaluation, trainer
from training.algorithms.baselines.brax_env import wrap
from training.algorithms.baselines.brax_network import actor_network
from training.config import ConfigError, TrainConfig
from training.envs import registry
from training.run import main
from training.run_dir import lock
from training.run_dir.metrics_log import read_metrics

EPISODES = 64


class ShortLine(probes.Line):
    """The ends of the line are so near that chance finds them: a sparse reward teaches nothing before it is found."""

    def begin(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start, end = super().begin(key)
        return start, end / 3


@pytest.fixture
def on_a_line(tiny, tmp_path, monkeypatch):
    """Configurations of runs on the probe in which a point goes to either end of a line."""
    line = ShortLine()
    monkeypatch.setattr(registry, "make", lambda *_, **__: line)

    def config(**changes: object) -> TrainConfig:
        defaults = {
            "num_envs": 32,
            "unroll_length": 6,
            "episode_length": line.spec.episode_length,
            "batch_size": 64,
            "updates_per_unroll": 12,
            "max_replay_size": 200,
            "min_replay_size": 12,
            "discount": 0.8,
            "actor_learning_rate": 1e-3,
            "eval_episodes": EPISODES,
            "num_evals": 4,
        }
        return tiny(changes.pop("out", tmp_path / "run"), **(defaults | changes))

    return config


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "num_envs"), [("sac", 32), ("ppo", 128)])
def test_a_baseline_learns_and_records_what_the_same_evaluation_finds(
    on_a_line, algorithm: str, num_envs: int, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder is often given relative to where one is
    env_steps = num_envs * 6 * 60
    # By this seed PPO stays with one end if its cost of entropy is 0.01 and its gradients may be of any length.
    config = on_a_line(algorithm=algorithm, num_envs=num_envs, total_env_steps=env_steps, out=Path("run"), seed=1)
    last = trainer.train(config).metrics
    rows = read_metrics(config.out)
    assert rows[-1] == last
    # SAC only fills its replay during the first 32 x 12 steps, and divides the rest into four; PPO divides all of them
    fill = 32 * 12 if algorithm == "sac" else 0
    assert [row["env_steps"] for row in rows] == [fill + (env_steps - fill) * epoch // 4 for epoch in (1, 2, 3, 4)]
    assert last["eval/touched"] > 0.95  # one end alone is half
    assert 4 < last["eval/time_at_goal"] <= 6  # of six steps, of which the first is enough to get there
    assert all(np.isfinite(row[name]) for row in rows for name in ("loss/actor", "loss/critic"))
    assert json.loads((config.out / "config.json").read_text())["algorithm"] == algorithm
    assert (config.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in config.out.iterdir()) == [
        "config.json",
        "curves.png",
        *(["diffs"] if (config.out / "diffs").exists() else []),  # of a checkout with changes
        "metrics.jsonl",
        "references.json",
        "tensorboard",
    ]


@pytest.mark.parametrize(("limit", "evaluations"), [({"target_stay_rate": 1e-9}, 2), ({"max_minutes": 1e-9}, 1)])
def test_a_baseline_ends_at_its_target_or_its_time(
    on_a_line, monkeypatch, limit: dict[str, float], evaluations: int
) -> None:
    figures = {"eval/stay": 0.5, "eval/final_distance": 1.0}
    monkeypatch.setattr(evaluation, "summarize", lambda _: figures)
    config = on_a_line(algorithm="ppo", total_env_steps=32 * 6 * 8, **limit)
    trainer.train(config)
    rows = read_metrics(config.out)
    assert [row["env_steps"] for row in rows] == [32 * 6 * 2 * (number + 1) for number in range(evaluations)]


def test_every_episode_of_a_batch_has_a_start_and_a_goal_of_its_own() -> None:
    class Drift(probes.Jump):
        """The state never changes, so that it tells where its episode began; an episode ends once told to."""

        def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
            return state

        def terminated(self, state: jax.Array) -> jax.Array:
            return state[0] > 0.5

    batch = 64
    env = wrap(Drift(), episode_length=3, on_overflow=lambda flags: pytest.fail(str(flags)))
    step = jax.jit(env.step)
    now = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), batch))
    for _ in range(7):
        before, now = now, step(now, jnp.zeros((batch, 1)))
        terminated = np.asarray(before.info["state"][:, 0] > 0.5)
        in_time = np.asarray(jnp.where(before.done > 0, 0, before.info["steps"])) + 1
        ended = np.asarray(now.done) > 0
        np.testing.assert_array_equal(ended, terminated | (in_time >= 3))
        np.testing.assert_array_equal(np.asarray(now.info["truncation"]) > 0, ended & ~terminated)
        same = np.asarray((now.info["state"] == before.info["state"]).all(axis=1))
        np.testing.assert_array_equal(same, ~ended)
        assert len(np.unique(np.asarray(now.info["goal"][:, 0]))) == batch
        np.testing.assert_array_equal(now.obs, jnp.concatenate([now.info["state"], now.info["goal"]], axis=1))
        np.testing.assert_array_equal(now.pipeline_state, now.info["state"])


def test_braxs_deterministic_action_is_ours(on_a_line) -> None:
    config = on_a_line(algorithm="ppo")
    net = actor_network(config, probes.Line())
    params = net.init(jax.random.key(1))
    state, goal = jax.random.normal(jax.random.key(2), (2, 5, 2))
    theirs = NormalTanhDistribution(event_size=1).mode(net.apply(params, jnp.concatenate([state, goal], axis=1)))
    np.testing.assert_allclose(acting.act(PolicyParams(net.network(params)), state, goal), theirs, atol=1e-6)


def test_a_loss_that_is_not_finite_is_named(on_a_line) -> None:
    config = on_a_line(algorithm="ppo", total_env_steps=32 * 6 * 8, actor_learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"loss/\w+ is NaN or infinity by step [\d,]+"):
        trainer.train(config)


def test_a_baseline_is_not_resumed_and_does_not_overwrite_unasked(on_a_line, capsys) -> None:
    with pytest.raises(ConfigError, match="resume needs algorithm crl, got sac"):
        on_a_line(algorithm="sac", resume=True)
    config = on_a_line(algorithm="ppo")
    config.out.mkdir()
    (config.out / "thesis.txt").write_text("precious")
    with pytest.raises(lock.RunDirError, match="is not empty"):
        trainer.train(config)
    assert main(["--env", "point_u_maze", "--algorithm", "ppo", "--out", str(config.out)]) == 2
    assert "is not empty" in capsys.readouterr().err
