"""Actions and scores from a policy's parameters. This is the only place that squashes actions.

Training, evaluation, publication and serving all act through this module, so a served action is the trained one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from policy.energy import ENERGIES
from policy.layers import PLAIN_EXECUTION, Execution
from policy.networks import PolicyParams, ResidualNetwork, apply_network, encode_goal, encode_state_action

LOG_STD_MIN = -5.0
LOG_STD_MAX = 2.0


class ActionDistribution(NamedTuple):
    """A diagonal Gaussian, whose samples tanh squashes into [-1, 1]."""

    mean: jax.Array  # [..., action_dim], before squashing
    log_std: jax.Array  # [..., action_dim], within [LOG_STD_MIN, LOG_STD_MAX]


def act(params: PolicyParams, state: jax.Array, goal: jax.Array) -> jax.Array:
    """Return the deterministic action of a policy, see `deterministic_action`."""
    return deterministic_action(params.actor, state, goal)


@jax.jit  # compiled everywhere: run one operation at a time, results would differ by 1e-6
def deterministic_action(actor: ResidualNetwork, state: jax.Array, goal: jax.Array) -> jax.Array:
    """Return the tanh of the mean.

    Args:
        state: [..., state_dim].
        goal: [..., goal_dim], with the leading axes of `state`.

    Returns:
        [..., action_dim] within [-1, 1].
    """
    return jnp.tanh(action_distribution(actor, state, goal).mean)


def score(params: PolicyParams, state: jax.Array, action: jax.Array, *, goal: jax.Array, energy: str) -> jax.Array:
    """Return how reachable `goal` is after `action` in `state`: the energy of their encodings, [...]; higher is closer.

    Args:
        energy: the energy that the critic was trained with, `spec.energy`; its encodings fit no other.
    """
    encoded_pair = encode_state_action(params.state_action_encoder, state, action)
    return ENERGIES[energy].rowwise(encoded_pair, encode_goal(params.goal_encoder, goal))


def action_distribution(
    actor: ResidualNetwork, state: jax.Array, goal: jax.Array, *, execution: Execution = PLAIN_EXECUTION
) -> ActionDistribution:
    """Return the actor's distribution before squashing, for `state: [..., state_dim]` and `goal: [..., goal_dim]`."""
    outputs = apply_network(actor, jnp.concatenate([state, goal], axis=-1), execution=execution)
    mean, raw_log_std = jnp.split(outputs, 2, axis=-1)
    half_range = (LOG_STD_MAX - LOG_STD_MIN) / 2
    return ActionDistribution(mean, log_std=LOG_STD_MIN + half_range * (jnp.tanh(raw_log_std) + 1))


def sample_action(distribution: ActionDistribution, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a reparameterized sample and its log-density.

    Args:
        noise: [..., action_dim], standard normal.

    Returns:
        The action [..., action_dim] in [-1, 1], and log pi(action) [...] (Haarnoja et al. 2018, arXiv 1812.05905,
        appendix C; log(1 - tanh(x)^2) is in a form that does not overflow).
    """
    raw = distribution.mean + jnp.exp(distribution.log_std) * noise
    log_gaussian = -0.5 * jnp.square(noise) - distribution.log_std - 0.5 * jnp.log(2 * jnp.pi)
    log_derivative = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), jnp.sum(log_gaussian - log_derivative, axis=-1)
