"""Every environment of the registry: reset and driven for 200 control steps.

`make test` takes a robot of each kind in MJX, and `make test-slow` those whose physics no other test compiles: the
files of the other robots compare steps of MJX with MuJoCo's C engine. All others are reset and traced in MJX, which is
quick, and driven in MuJoCo's C engine, which need not be compiled.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax.envs.wrappers.training import wrap

from policy.spec import PolicySpec
from training.config import TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv

STEPS, EPISODE, ROBOTS = 200, 80, 2
ONE_OF_EACH_KIND = ("point_u_maze", "ant_u_maze", "arm_push_easy")  # on wheels, on legs, standing
ONLY_HERE = ("ant_ball_maze", "humanoid_hardest_maze", "arm_binpick_hard")
BUILT_IN = tuple(registry.built_in().entries)
OTHERS = [name for name in BUILT_IN if name not in ONE_OF_EACH_KIND + ONLY_HERE]


def made(name: str, folder: Path) -> GoalEnv:
    """The environment, whose policies' specification and episodes are as they are registered."""
    env = registry.make(name)
    spec = TrainConfig(env=name, out=folder).policy_spec(env)
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert registry.find(name).episode_length == env.spec.episode_length
    return env


@pytest.mark.parametrize(
    "name", [*ONE_OF_EACH_KIND, *(pytest.param(name, marks=pytest.mark.slow) for name in ONLY_HERE)]
)
def test_it_resets_and_steps_as_brax_trainers_drive_it(name: str, tmp_path: Path) -> None:
    env = made(name, tmp_path)
    wrapped = wrap(env, episode_length=EPISODE, action_repeat=1)
    first = jax.jit(wrapped.reset)(jax.random.split(jax.random.PRNGKey(0), ROBOTS))  # the keys that brax knows
    assert first.obs.shape == (ROBOTS, env.observation_size)
    assert np.isfinite(first.obs).all()
    np.testing.assert_array_equal(first.obs, jnp.concatenate([first.info["state"], first.info["goal"]], axis=1))
    actions = jax.random.uniform(jax.random.key(1), (STEPS, ROBOTS, env.action_size), minval=-1)

    def step(state, action):
        after = wrapped.step(state, action)
        return after, (after.obs, after.done, after.info["steps"])

    last, (seen, done, steps) = jax.jit(lambda state, actions: jax.lax.scan(step, state, actions))(first, actions)
    assert np.isfinite(seen).all()
    assert (steps.max(axis=0) <= EPISODE).all()
    assert (done.sum(axis=0) >= STEPS // EPISODE).all()  # two ends by time, more where a robot falls
    assert not np.array_equal(seen[0], seen[-1])
    assert np.isfinite(last.metrics["distance"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_it_resets_and_its_robot_moves(name: str, tmp_path: Path) -> None:
    env = made(name, tmp_path)
    first = jax.jit(env.reset)(jax.random.key(0))
    assert np.isfinite(first.obs).all()
    np.testing.assert_array_equal(first.obs, jnp.concatenate([first.info["state"], first.info["goal"]]))
    assert np.isfinite(first.metrics["distance"])
    after = jax.eval_shape(env.step, first, jnp.zeros(env.action_size))
    jax.tree.map(assert_same_shape, first, after)

    data = mujoco.MjData(env.model)
    data.qpos[:], data.qvel[:] = first.pipeline_state.qpos, first.pipeline_state.qvel
    start = data.qpos.copy()
    actions = jax.random.uniform(jax.random.key(1), (STEPS, env.action_size), minval=-1)
    for control in np.asarray(jax.vmap(env.control)(actions), np.float64):
        data.ctrl[:] = control
        mujoco.mj_step(env.model, data, env.substeps)
    assert not data.warning.number.any()  # MuJoCo counts states that blow up, and resets them
    assert np.isfinite(data.qpos).all()
    assert np.abs(data.qpos - start).max() > 0.01


def assert_same_shape(one: jax.Array, other: jax.ShapeDtypeStruct) -> None:
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
