"""From parameters to actions and scores: the only squashing in the house.

Training, evaluation, publication and serving all act through this module, so a served action is the trained one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from policy.energy import ENERGIES
from policy.layers import PLAIN_EXECUTION, Execution
from policy.networks import PolicyParams, ResidualNetwork, apply_network

LOG_STD_MIN = -5.0
LOG_STD_MAX = 2.0


class ActionDistribution(NamedTuple):
    """A diagonal Gaussian that tanh squashes into [-1, 1]."""

    mean: jax.Array  # [..., action_dim], before squashing
    log_std: jax.Array  # [..., action_dim], within [LOG_STD_MIN, LOG_STD_MAX]


def act(params: PolicyParams, state: jax.Array, goal: jax.Array) -> jax.Array:
    """The deterministic action of a policy; see `deterministic_action`."""
    return deterministic_action(params.actor, state, goal)


@jax.jit  # always compiled: run operation by operation, the rounding would differ from every other place by 1e-6
def deterministic_action(actor: ResidualNetwork, state: jax.Array, goal: jax.Array) -> jax.Array:
    """The tanh of the mean.

    Args:
        state: [..., state_dim].
        goal: [..., goal_dim], leading axes as `state`.

    Returns:
        [..., action_dim] within [-1, 1].
    """
    return jnp.tanh(action_distribution(actor, state, goal).mean)


def score(params: PolicyParams, state: jax.Array, action: jax.Array, *, goal: jax.Array, energy: str) -> jax.Array:
    """How reachable `goal` is after `action` in `state`: the energy of their encodings, [...]; higher is nearer.

    Args:
        energy: the one that the critic learned with, `spec.energy`; by another, its encodings mean nothing.
    """
    encoded_pair = encode_state_action(params.state_action_encoder, state, action)
    return ENERGIES[energy].rowwise(encoded_pair, encode_goal(params.goal_encoder, goal))


def encode_state_action(
    encoder: ResidualNetwork,
    state: jax.Array,
    action: jax.Array,
    *,
    execution: Execution = PLAIN_EXECUTION,
    learning_rows: int | None = None,
) -> jax.Array:
    """phi(state, action): [..., representation_dim]. The options are those of `apply_network`."""
    inputs = jnp.concatenate([state, action], axis=-1)
    return apply_network(encoder, inputs, execution=execution, learning_rows=learning_rows)


def encode_goal(encoder: ResidualNetwork, goal: jax.Array, *, execution: Execution = PLAIN_EXECUTION) -> jax.Array:
    """psi(goal): [..., representation_dim]."""
    return apply_network(encoder, goal, execution=execution)


def action_distribution(
    actor: ResidualNetwork, state: jax.Array, goal: jax.Array, *, execution: Execution = PLAIN_EXECUTION
) -> ActionDistribution:
    """The actor's distribution before squashing, for `state: [..., state_dim]` and `goal: [..., goal_dim]`."""
    outputs = apply_network(actor, jnp.concatenate([state, goal], axis=-1), execution=execution)
    mean, raw_log_std = jnp.split(outputs, 2, axis=-1)
    half_range = (LOG_STD_MAX - LOG_STD_MIN) / 2
    return ActionDistribution(mean, log_std=LOG_STD_MIN + half_range * (jnp.tanh(raw_log_std) + 1))


def sample_action(distribution: ActionDistribution, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A reparameterised sample and its log-density.

    Args:
        noise: [..., action_dim], standard normal.

    Returns:
        The action [..., action_dim] in [-1, 1], and log pi(action) [...] (Haarnoja et al. 2018, arXiv 1812.05905,
        appendix C, with log(1 - tanh(x)^2) in a form that does not overflow).
    """
    raw = distribution.mean + jnp.exp(distribution.log_std) * noise
    log_gaussian = -0.5 * jnp.square(noise) - distribution.log_std - 0.5 * jnp.log(2 * jnp.pi)
    log_slope = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), jnp.sum(log_gaussian - log_slope, axis=-1)
