"""Every environment of the registry: built, reset and stepped 200 times, under the wrappers of brax's trainers.

`make test` takes one environment of each robot, `make test-slow` the others.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.wrappers.training import wrap

from policy.spec import PolicySpec
from training.config import preset_config
from training.envs import registry

STEPS, EPISODE, ROBOTS = 200, 80, 2
ONE_OF_EACH_ROBOT = {"point_u_maze", "ant_u_maze", "humanoid", "arm_push_easy", "reacher", "pusher_easy", "cheetah"}
BUILT_IN = [
    pytest.param(name, marks=() if name in ONE_OF_EACH_ROBOT else pytest.mark.slow)
    for name in registry.built_in().entries
]


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_resets_and_steps_as_brax_trainers_drive_it(name: str, tmp_path) -> None:
    env = registry.make(name)
    spec = preset_config(name, out=tmp_path).policy_spec(env)
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert registry.find(name).episode_length == env.spec.episode_length
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
