"""Our environments as brax's trainers use them: in batches, with a new start and goal after every episode."""

# brax types its trainers by its own retired environments, and its dataclasses are opaque to type checkers.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env, State, Wrapper
from brax.envs.wrappers.training import EpisodeWrapper, VmapWrapper

from training.envs.core import physics


class FreshResets(Wrapper):
    """Where an episode of a batch ends or its physics diverges, start another with a new start and goal.

    brax's own wrapper returns to the environment's first start and goal every time.

    Args:
        on_overflow: called with the flags of `GoalEnv.overflow` after a step that has any.
    """

    def __init__(self, env: Env, *, on_overflow: Callable[[np.ndarray], None]) -> None:
        super().__init__(env)
        self._on_overflow = on_overflow

    def reset(self, rng: jax.Array) -> State:
        """Return a batch of starts for the keys [B, 2]; its info contains a key for later resets."""
        state = self.env.reset(rng)
        return state.replace(info={**state.info, "reset_key": jax.vmap(jax.random.split)(rng)[:, 1]})

    def step(self, state: State, action: jax.Array) -> State:
        """Step every environment. `done` says which episodes ended; everything else is of the new episode."""
        ended = state.done > 0
        steps = jnp.where(ended, 0, state.info["steps"])
        before = state.replace(done=jnp.zeros_like(state.done), info={**state.info, "steps": steps})
        after = self.env.step(before, action)
        self._report_overflow(physics.overflow(after.pipeline_state))
        diverged = jax.vmap(self.unwrapped.diverged_part)(after) >= 0
        after = after.replace(done=jnp.where(diverged, 1.0, after.done))
        keys = jax.vmap(jax.random.split)(after.info["reset_key"])
        restarted = self.env.reset(keys[:, 0])

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(after.done.reshape(-1, *(1,) * (old.ndim - 1)) > 0, new, old)

        new, old = ((each.pipeline_state, each.obs, _state_and_goal(each)) for each in (restarted, after))
        pipeline_state, obs, state_and_goal = jax.tree.map(choose, new, old)
        info = {**after.info, **state_and_goal, "reset_key": keys[:, 1]}
        return after.replace(pipeline_state=pipeline_state, obs=obs, info=info)

    def _report_overflow(self, flags: jax.Array) -> None:
        """Report by a callback, because brax's trainers do not return the physics. Only Warp can overflow."""
        if flags.ndim:
            jax.lax.cond(jnp.any(flags), lambda: jax.debug.callback(self._on_overflow, flags), lambda: None)


def wrap(
    env: Env,
    episode_length: int,
    action_repeat: int = 1,
    randomization_fn: None = None,
    *,
    on_overflow: Callable[[np.ndarray], None],
) -> Wrapper:
    """Wrap `env` as brax's function of this name does, with `FreshResets`. brax passes all arguments but the last."""
    del randomization_fn
    return FreshResets(EpisodeWrapper(VmapWrapper(env), episode_length, action_repeat), on_overflow=on_overflow)


class Inert(Wrapper):
    """An environment without physics, for brax's own evaluation in SAC, which cannot be turned off."""

    def reset(self, rng: jax.Array) -> State:
        """Return zeros."""
        del rng
        zero = jnp.zeros(())
        info: dict[str, Any] = {"state": zero, "goal": zero}
        obs = jnp.zeros(self.observation_size)
        return State(pipeline_state=None, obs=obs, reward=zero, done=zero, metrics={}, info=info)

    def step(self, state: State, action: jax.Array) -> State:
        """Return `state` unchanged."""
        del action
        return state


def _state_and_goal(state: State) -> dict[str, jax.Array]:
    return {name: state.info[name] for name in ("state", "goal")}
