"""How well a policy reaches goals: the deterministic actor on fresh starts and fresh goals, one episode each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from policy import acting
from policy.networks import ResidualNetwork
from training.config import ConfigError, TrainConfig
from training.envs import registry
from training.envs.base import GoalEnv, State


class Evaluation(NamedTuple):
    """One entry per episode, [episodes] each."""

    time_at_goal: jax.Array  # control steps within the success radius, until the first termination
    reached: jax.Array  # bool, whether there was at least one such step
    final_distance: jax.Array  # distance to the goal after the last step counted, in the goal's unit
    overflow: jax.Array  # int32, flags of what physics had no room for, see `GoalEnv.require_no_overflow`


def environment(config: TrainConfig, trained: GoalEnv) -> GoalEnv:
    """The environment that `config` evaluates on: the `trained` one, or another for the same robot.

    Raises:
        ConfigError: state, goal or actions are not those of the `trained` one.
    """
    if config.eval_env in {"", config.env}:
        return trained
    judged = registry.make(config.eval_env, impl=config.physics)
    for what in ("state_names", "goal_names", "action_names"):
        ours, theirs = getattr(trained.facts, what), getattr(judged.facts, what)
        if ours != theirs:
            raise ConfigError(
                f"eval_env {config.eval_env} has other {what.replace('_', ' ')} than {config.env}, {len(theirs)} of "
                f"them to {len(ours)}; name another layout for the same robot"
            )
    return judged


def evaluate(env: GoalEnv, actor: ResidualNetwork, *, key: jax.Array, episodes: int, episode_length: int) -> Evaluation:
    """Run `episodes` environments for `episode_length` steps each. Steps after a termination count for nothing."""
    start = jax.vmap(env.reset)(jax.random.split(key, episodes))

    def one_step(
        carry: tuple[State, jax.Array, Evaluation], _: None
    ) -> tuple[tuple[State, jax.Array, Evaluation], None]:
        current, alive, result = carry
        action = acting.deterministic_action(actor, current.info["state"], current.info["goal"])
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


def evaluation_key(seed: int, moment: int) -> jax.Array:
    """A key apart from training's own, so that how often a run is evaluated does not change what it learns."""
    return jax.random.fold_in(jax.random.key(seed + 1), moment % 2**32)


def summarise(evaluation: Evaluation) -> dict[str, float]:
    """Means over the episodes, named as in metrics.jsonl."""
    return {
        "eval/time_at_goal": float(jnp.mean(evaluation.time_at_goal.astype(jnp.float32))),
        "eval/success_any": float(jnp.mean(evaluation.reached.astype(jnp.float32))),
        "eval/final_distance": float(jnp.mean(evaluation.final_distance)),
    }
