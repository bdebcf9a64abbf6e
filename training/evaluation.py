"""How well a policy reaches goals: run the deterministic actor from new starts to new goals, one episode each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from policy import acting
from policy.networks import PolicyParams
from training.config import ConfigError, TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv, State


class Evaluation(NamedTuple):
    """One entry per episode, [episodes] each."""

    time_at_goal: jax.Array  # control steps within the success radius, until the first termination
    reached: jax.Array  # bool, whether there was at least one such step
    final_distance: jax.Array  # distance to the goal after the last counted step, in the goal's unit
    overflow: jax.Array  # int32, flags of what did not fit into Warp's arrays, see `GoalEnv.require_no_overflow`


def make_env(config: TrainConfig, trained: GoalEnv) -> GoalEnv:
    """Return the environment that `config` evaluates on: `trained`, or another one for the same robot.

    Raises:
        ConfigError: its state, goal or actions differ from those of `trained`.
    """
    if config.eval_env in {"", config.env}:
        return trained
    eval_env = registry.make(config.eval_env, impl=config.impl)
    for names in ("state_names", "goal_names", "action_names"):
        ours, theirs = getattr(trained.spec, names), getattr(eval_env.spec, names)
        if ours != theirs:
            raise ConfigError(
                f"eval_env {config.eval_env} does not fit env {config.env}: its {names} differ ({len(theirs)} and "
                f"{len(ours)} values); use an environment with the same robot"
            )
    return eval_env


def evaluate(env: GoalEnv, params: PolicyParams, *, key: jax.Array, episodes: int, episode_length: int) -> Evaluation:
    """Run `episodes` environments for `episode_length` steps each. Steps after a termination are not counted."""
    start = jax.vmap(env.reset)(jax.random.split(key, episodes))

    def one_step(
        carry: tuple[State, jax.Array, Evaluation], _: None
    ) -> tuple[tuple[State, jax.Array, Evaluation], None]:
        current, alive, result = carry
        action = acting.deterministic_action(params, current.info["state"], current.info["goal"])
        current = jax.vmap(env.step)(current, action)
        success = (current.metrics["success"] > 0) & alive
        result = Evaluation(
            time_at_goal=result.time_at_goal + success,
            reached=result.reached | success,
            final_distance=jnp.where(alive, current.metrics["distance"], result.final_distance),
            overflow=jax.vmap(env.overflow)(current),
        )
        return (current, alive & (current.done == 0), result), None

    nothing = Evaluation(
        time_at_goal=jnp.zeros(episodes, jnp.int32),
        reached=jnp.zeros(episodes, bool),
        final_distance=start.metrics["distance"],
        overflow=jnp.zeros(episodes, jnp.int32),
    )
    (_, _, result), _ = jax.lax.scan(one_step, (start, jnp.ones(episodes, bool), nothing), length=episode_length)
    return result


def evaluation_key(seed: int, iteration: int) -> jax.Array:
    """Return a random key independent of training's, so that evaluating more often does not change what is learned."""
    return jax.random.fold_in(jax.random.key(seed + 1), iteration % 2**32)


def summarize(evaluation: Evaluation) -> dict[str, float]:
    """Return the means over the episodes, named as in metrics.jsonl."""
    return {
        "eval/time_at_goal": float(jnp.mean(evaluation.time_at_goal.astype(jnp.float32))),
        "eval/success_any": float(jnp.mean(evaluation.reached.astype(jnp.float32))),
        "eval/final_distance": float(jnp.mean(evaluation.final_distance)),
    }
