"""An environment without physics whose every number can be foretold."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.samples import policy_spec
from training.envs.core.goal_env import EnvSpec, GoalEnv, State


class Counter(GoalEnv):
    """The state counts the steps since a start drawn from [0, 1); an episode ends by itself once it passes `limit`."""

    def __init__(self, limit: float = np.inf) -> None:
        self.spec = EnvSpec(
            name="counter",
            state_names=("count", "start"),
            goal_names=("count",),
            action_names=("nothing",),
            success_radius=0.6,
            episode_length=10,
        )
        self.limit = limit

    def reset(self, rng: jax.Array) -> State:
        start_key, goal_key = jax.random.split(rng)
        start = jax.random.uniform(start_key)
        return self._observe(jnp.stack([start, start]), self.sample_goal(goal_key))

    def step(self, state: State, action: jax.Array) -> State:
        return self._observe(state.pipeline_state + jnp.array([1.0, 0.0]), state.info["goal"], before=state)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise AssertionError("the counter has no joints")

    def sample_goal(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (1,), minval=3, maxval=7)

    def sense(self, data: jax.Array) -> jax.Array:
        return data

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        return state[..., :1]

    def terminated(self, state: jax.Array) -> jax.Array:
        return state[..., 0] >= self.limit


class Wandering(Counter):
    """Each episode ends by itself beyond a limit of its own, and beyond 9 its world has no numbers any more."""

    beyond = float("nan")

    def step(self, state: State, action: jax.Array) -> State:
        after = super().step(state, action)
        count, start = after.info["state"]
        gone = self._observe(
            jnp.stack([jnp.where(count > 9, self.beyond, count), start]), state.info["goal"], before=state
        )
        return gone.replace(done=(count > 4 + 10 * start).astype(jnp.float32))


SPEC = policy_spec(
    state_names=("count", "start"),
    goal_names=("count",),
    action_names=("nothing",),
    action_low=(-1.0,),
    action_high=(1.0,),
)
