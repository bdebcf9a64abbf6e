"""How well a policy reaches goals: run the deterministic actor from new starts to new goals, one episode each.

The same program also runs the reference policies, which show what a figure means: random actions, and zero actions.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from policy import acting
from policy.networks import PolicyParams
from training import eval_goals, intervals
from training.config import ConfigError, TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv, State
from training.envs.core.goal_record import GoalRecord

POLICY, ZERO_ACTIONS, RANDOM_ACTIONS = range(3)


class ActionSource(NamedTuple):
    """Where the actions of each episode come from."""

    kind: jax.Array  # int32 [episodes]: POLICY, ZERO_ACTIONS, or RANDOM_ACTIONS, uniform in [-1, 1] at every step
    key: jax.Array  # of the random actions

    @classmethod
    def policy(cls, episodes: int) -> "ActionSource":
        """Return the source of an evaluation in which the policy acts."""
        return cls(jnp.full(episodes, POLICY, jnp.int32), jax.random.key(0))


class Evaluation(NamedTuple):
    """One entry per episode, [episodes] each.

    An episode counts until its first termination. If its world diverges before that (see `GoalEnv.diverged_part`), the
    episode ends there and counts as not reached.
    """

    time_at_goal: jax.Array  # int32, control steps within the success radius
    touched: jax.Array  # bool, whether there was at least one such step
    stay: jax.Array  # share of the time since the first arrival spent at the goal, see `GoalRecord.stay`
    final_distance: jax.Array  # distance to the goal after the last counted step, in the goal's unit
    diverged: jax.Array  # bool
    reached_at_reset: jax.Array  # bool, whether the robot was within the success radius before the first step
    terminated: jax.Array  # bool, whether the episode ended before its time limit, for example by a fall
    steps: jax.Array  # int32, counted control steps
    goal: jax.Array  # [episodes, goal_dim], as commanded
    overflow: jax.Array  # int32, flags of what did not fit into Warp's arrays, see `GoalEnv.require_no_overflow`


def make_env(config: TrainConfig, trained: GoalEnv) -> GoalEnv:
    """Return the environment that `config` evaluates on: `trained`, or another one for the same robot.

    Raises:
        ConfigError: a robot would notice the difference, see `PolicySpec.interface_difference`; or the goals to
            evaluate on cannot be used.
    """
    if config.eval_env in {"", config.env}:
        eval_goals.load(config, trained)
        return trained
    eval_env = registry.make(config.eval_env, impl=config.impl)
    difference = config.policy_spec(trained).interface_difference(config.policy_spec(eval_env))
    if difference:
        raise ConfigError(
            f"eval_env {config.eval_env} does not fit env {config.env}: its {difference}; use an environment with the "
            "same robot, units, limits and control period"
        )
    eval_goals.load(config, eval_env)
    return eval_env


def evaluate(
    env: GoalEnv,
    params: PolicyParams,
    *,
    key: jax.Array,
    episodes: int,
    episode_length: int,
    goals: np.ndarray | None = None,
    source: ActionSource | None = None,
) -> Evaluation:
    """Run `episodes` environments for `episode_length` steps each.

    `final_distance` is NaN in an episode whose first action is NaN or infinite, a fault of the policy.

    Args:
        goals: [G, goal_dim], given to the episodes in turn; None: every episode draws its own.
        source: of the actions; None: the policy, in every episode.
    """
    start = jax.vmap(env.reset)(jax.random.split(key, episodes))
    goal = start.info["goal"]
    if goals is not None:
        goal = jnp.asarray(goals, jnp.float32)[jnp.arange(episodes) % len(goals)]
        start = jax.vmap(env.with_goal)(start, goal)

    def one_step(
        carry: tuple[State, GoalRecord, jax.Array, jax.Array], step: jax.Array
    ) -> tuple[tuple[State, GoalRecord, jax.Array, jax.Array], None]:
        before, record, distance, _ = carry
        action = acting.act(params, before.info["state"], before.info["goal"])
        if source is not None:
            noise = jax.random.uniform(jax.random.fold_in(source.key, step), action.shape, minval=-1, maxval=1)
            kind = source.kind[:, None]
            action = jnp.where(kind == POLICY, action, jnp.where(kind == RANDOM_ACTIONS, noise, 0))
        after = jax.vmap(env.step)(before, action)
        finite = (jax.vmap(env.diverged_part)(after) < 0) & jnp.isfinite(after.metrics["distance"])
        counted = record.alive & finite & ~jnp.isnan(distance)
        record = record.after(step, at_goal=after.metrics["success"] > 0, done=after.done > 0, finite=finite)
        distance = jnp.where(counted, after.metrics["distance"], distance)
        distance = jnp.where((step == 1) & ~_all_finite(action), jnp.nan, distance)
        return (after, record, distance, jax.vmap(env.overflow)(after)), None

    none = jnp.zeros(episodes, jnp.int32)
    carry = (start, GoalRecord.begin(none), start.metrics["distance"], none)
    (_, record, distance, overflow), _ = jax.lax.scan(one_step, carry, jnp.arange(1, episode_length + 1))
    return Evaluation(
        time_at_goal=record.time_at_goal,
        touched=record.touched,
        stay=record.stay(episode_length),
        final_distance=distance,
        diverged=record.diverged,
        reached_at_reset=start.metrics["success"] > 0,
        terminated=record.terminated,
        steps=record.steps,
        goal=goal,
        overflow=overflow,
    )


def _all_finite(rows: jax.Array) -> jax.Array:
    """Return for each row of `rows: [B, N]` whether all its values are finite, [B]."""
    return jnp.isfinite(rows).all(axis=1)


def evaluation_key(seed: int, iteration: int) -> jax.Array:
    """Return a random key independent of training's, so that evaluating more often does not change what is learned."""
    return jax.random.fold_in(jax.random.key(seed + 1), iteration % 2**32)


def summarize(evaluation: Evaluation) -> dict[str, float]:
    """Return the figures over all episodes, named as in metrics.jsonl, with 95 % intervals of stay and touched."""
    stay, touched = np.asarray(evaluation.stay, np.float64), np.asarray(evaluation.touched)
    count = int(touched.sum())
    stay_interval, touched_interval = intervals.bootstrap(stay), intervals.wilson(count, len(touched))
    return {
        "eval/stay": float(stay.mean()),
        "eval/stay_low": stay_interval.low,
        "eval/stay_high": stay_interval.high,
        "eval/touched": count / len(touched),
        "eval/touched_count": count,
        "eval/touched_low": touched_interval.low,
        "eval/touched_high": touched_interval.high,
        "eval/time_at_goal": float(np.mean(evaluation.time_at_goal)),
        "eval/final_distance": float(np.mean(evaluation.final_distance)),
        "eval/diverged_count": int(np.sum(evaluation.diverged)),
        "eval/reached_at_reset": float(np.mean(evaluation.reached_at_reset)),
        "eval/terminated": float(np.mean(evaluation.terminated)),
        "eval/episode_length": float(np.mean(evaluation.steps)),
    }


def target_met(rows: Sequence[Mapping[str, float]], target_stay_rate: float) -> bool:
    """Return whether the last two evaluations, `rows` of the metrics log, have an `eval/stay` of at least the target.

    One alone may be luck. The rows are those of the whole run, so a resumed run counts on.
    """
    last = [row.get("eval/stay", 0.0) for row in rows[-2:]]
    return len(last) == 2 and min(last) >= target_stay_rate


def target_message(target_stay_rate: float) -> str:
    """Return the line that a run prints when it ends for `target_met`."""
    return f"ending early: two evaluations in a row have an eval/stay of target_stay_rate {target_stay_rate:g} or more"
