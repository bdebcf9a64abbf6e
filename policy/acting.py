"""Actions and scores from a policy's parameters.

This is the only place that chooses the signs of quaternions, normalizes states and squashes actions. Training,
evaluation, publication and serving all act through this module, so a served action is the trained one. Actions of a
policy with `action_chunk` above 1 are chunks: chunk_dim = action_chunk * action_dim values, the first action first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from policy.energy import ENERGIES
from policy.layers import PLAIN_EXECUTION, Execution
from policy.networks import Network, PolicyParams, apply_network
from policy.normalization import normalize
from policy.quaternions import canonical_signs

LOG_STD_MIN = -5.0
LOG_STD_MAX = 2.0


class ActionDistribution(NamedTuple):
    """A diagonal Gaussian, whose samples tanh squashes into [-1, 1]."""

    mean: jax.Array  # [..., chunk_dim], before squashing
    log_std: jax.Array  # [..., chunk_dim], within [LOG_STD_MIN, LOG_STD_MAX]


@jax.jit  # compiled everywhere: run one operation at a time, results would differ by 1e-6
def act(params: PolicyParams, state: jax.Array, goal: jax.Array) -> jax.Array:
    """Return the deterministic action of a policy: the tanh of the mean.

    Args:
        params: of the policy; the encoders are not used.
        state: [..., state_dim], as the environment gives it.
        goal: [..., goal_dim], with the leading axes of `state`.

    Returns:
        [..., chunk_dim] within [-1, 1].
    """
    return jnp.tanh(action_distribution(params, state, goal).mean)


def score(params: PolicyParams, state: jax.Array, action: jax.Array, *, goal: jax.Array, energy: str) -> jax.Array:
    """Return how reachable `goal` is after `action` in `state`: the energy of their encodings, [...]; higher is closer.

    Args:
        action: [..., chunk_dim].
        energy: the energy that the critic was trained with, `spec.energy`; its encodings fit no other.

    Raises:
        ValueError: the policy has no critic.
    """
    return ENERGIES[energy].rowwise(encode_state_action(params, state, action), encode_goal(params, goal))


def action_distribution(
    params: PolicyParams, state: jax.Array, goal: jax.Array, *, execution: Execution = PLAIN_EXECUTION
) -> ActionDistribution:
    """Return the actor's distribution before squashing, for `state: [..., state_dim]` and `goal: [..., goal_dim]`."""
    inputs = jnp.concatenate([_prepared_state(params, state), _prepared_goal(params, goal)], axis=-1)
    mean, raw_log_std = jnp.split(apply_network(params.actor, inputs, execution=execution), 2, axis=-1)
    half_range = (LOG_STD_MAX - LOG_STD_MIN) / 2
    return ActionDistribution(mean, log_std=LOG_STD_MIN + half_range * (jnp.tanh(raw_log_std) + 1))


def encode_state_action(
    params: PolicyParams,
    state: jax.Array,
    action: jax.Array,
    *,
    execution: Execution = PLAIN_EXECUTION,
    learning_rows: int | None = None,
) -> jax.Array:
    """Return phi(state, action), [..., representation_dim]. For the options see `apply_network`.

    Raises:
        ValueError: the policy has no critic.
    """
    encoder = _required(params.state_action_encoder)
    inputs = jnp.concatenate([_prepared_state(params, state), action], axis=-1)
    return apply_network(encoder, inputs, execution=execution, learning_rows=learning_rows)


def encode_goal(params: PolicyParams, goal: jax.Array, *, execution: Execution = PLAIN_EXECUTION) -> jax.Array:
    """Return psi(goal), [..., representation_dim].

    Raises:
        ValueError: the policy has no critic.
    """
    return apply_network(_required(params.goal_encoder), _prepared_goal(params, goal), execution=execution)


def sample_action(distribution: ActionDistribution, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a reparameterized sample and its log-density.

    Args:
        noise: [..., chunk_dim], standard normal.

    Returns:
        The action [..., chunk_dim] in [-1, 1], and log pi(action) [...] (Haarnoja et al. 2018, arXiv 1812.05905,
        appendix C; log(1 - tanh(x)^2) is in a form that does not overflow).
    """
    raw = distribution.mean + jnp.exp(distribution.log_std) * noise
    log_gaussian = -0.5 * jnp.square(noise) - distribution.log_std - 0.5 * jnp.log(2 * jnp.pi)
    log_derivative = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), jnp.sum(log_gaussian - log_derivative, axis=-1)


def seeded_noise(integers: jax.Array, size: int) -> jax.Array:
    """Return standard normal noise [size] that only four integers determine, on every machine.

    The generator is fixed (Threefry), so that a seed gives the same noise if JAX's default changes.

    Args:
        integers: [4] uint32: the low and the high half of a seed, the number of a row, the number of a candidate.
    """
    key = jax.random.wrap_key_data(integers[1::-1], impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, integers[2]), integers[3])
    return jax.random.normal(key, (size,))


def _prepared_state(params: PolicyParams, state: jax.Array) -> jax.Array:
    """Return `state` as the networks take it. The signs of quaternions come first, because a mean depends on them."""
    return normalize(params.normalization, canonical_signs(state, params.quaternions.state))


def _prepared_goal(params: PolicyParams, goal: jax.Array) -> jax.Array:
    """Return `goal` as the networks take it. Goals are not normalized."""
    return canonical_signs(goal, params.quaternions.goal)


def _required(encoder: Network | None) -> Network:
    if encoder is None:
        raise ValueError("this policy has no critic, so it cannot score actions")
    return encoder
