"""Every environment of the registry: built, reset and stepped 200 times, under the wrappers of brax's trainers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.wrappers.training import wrap
from jax.experimental.compilation_cache import compilation_cache

from policy.spec import PolicySpec
from training.config import preset_config
from training.envs import registry

STEPS, EPISODE, ROBOTS = 200, 80, 2
BUILT_IN = list(registry.built_in().entries)


@pytest.fixture(scope="module", autouse=True)
def shared_compilations(tmp_path_factory: pytest.TempPathFactory):
    """A maze and its evaluation layout are the same program once reset."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_resets_and_steps_as_brax_trainers_drive_it(name: str, tmp_path) -> None:
    env = registry.make(name)
    spec = preset_config(name, out=tmp_path).spec(env)
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert registry.find(name).episode_length == env.spec.episode_length
    wrapped = wrap(env, episode_length=EPISODE, action_repeat=1)
    quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # to compile
    first = quickly(wrapped.reset)(jax.random.split(jax.random.PRNGKey(0), ROBOTS))  # the keys that brax knows
    assert first.obs.shape == (ROBOTS, env.observation_size)
    assert np.isfinite(first.obs).all()
    np.testing.assert_array_equal(first.obs, jnp.concatenate([first.info["state"], first.info["goal"]], axis=1))
    actions = jax.random.uniform(jax.random.key(1), (STEPS, ROBOTS, env.action_size), minval=-1)

    def step(state, action):
        after = wrapped.step(state, action)
        return after, (after.obs, after.done, after.info["steps"])

    last, (seen, done, steps) = quickly(functools.partial(jax.lax.scan, step))(first, actions)
    assert np.isfinite(seen).all()
    assert (steps.max(axis=0) <= EPISODE).all()
    assert (done.sum(axis=0) >= STEPS // EPISODE).all()  # two ends by time, more where a robot falls
    assert not np.array_equal(seen[0], seen[-1])
    assert np.isfinite(last.metrics["distance"]).all()
