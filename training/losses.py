"""The losses of contrastive RL, in the order of the paper (arXiv 2503.14858, section 3 and appendix A).

Each is a pure function of arrays, averaged over the batch.
"""

from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LEAST_SQUARE = 1e-12  # keeps the gradient of the square root finite where two encodings meet


class Contrast(NamedTuple):
    """The critic's loss and how well it tells the reached goal from the others."""

    loss: jax.Array
    accuracy: jax.Array  # share of rows whose own goal scores highest
    logsumexp: jax.Array  # mean over the rows


def pairwise_energy(encoded_pairs: jax.Array, encoded_goals: jax.Array) -> jax.Array:
    """Minus the Euclidean distance of every row of phi [B, R] and every row of psi [B, R]: [B, B].

    |a - b|^2 is expanded into |a|^2 + |b|^2 - 2 a.b, one matrix product instead of a [B, B, R] difference, and clamped
    where rounding makes it negative.
    """
    pair_square = jnp.sum(jnp.square(encoded_pairs), axis=-1)[:, None]
    goal_square = jnp.sum(jnp.square(encoded_goals), axis=-1)[None, :]
    square = pair_square + goal_square - 2 * encoded_pairs @ encoded_goals.T
    return -jnp.sqrt(jnp.maximum(square, _LEAST_SQUARE))


def forward_info_nce(logits: jax.Array, *, logsumexp_penalty: float) -> Contrast:
    """Each row's softmax over `logits: [B, B]`, its diagonal the positive, the other rows' goals the negatives.

    The penalty times the mean squared logsumexp keeps the energies of a row from drifting away together.
    """
    logsumexp = jax.nn.logsumexp(logits, axis=1)
    own = jnp.argmax(logits, axis=1) == jnp.arange(len(logits))
    return Contrast(
        loss=jnp.mean(logsumexp - jnp.diag(logits)) + logsumexp_penalty * jnp.mean(jnp.square(logsumexp)),
        accuracy=jnp.mean(own.astype(jnp.float32)),
        logsumexp=jnp.mean(logsumexp),
    )


def symmetric_info_nce(logits: jax.Array, *, logsumexp_penalty: float) -> Contrast:
    """The mean of the forward loss and of the same over columns: which state and action is a goal's own.

    A row's softmax leaves an energy common to the whole row free; the column's, which is what an actor compares, does
    not (arXiv 2408.11052, section 4).
    """
    forward = forward_info_nce(logits, logsumexp_penalty=logsumexp_penalty)
    backward = forward_info_nce(logits.T, logsumexp_penalty=logsumexp_penalty)
    return forward._replace(loss=(forward.loss + backward.loss) / 2)


CRITIC_LOSSES = MappingProxyType({"forward": forward_info_nce, "symmetric": symmetric_info_nce})


def actor_loss(log_probability: jax.Array, score: jax.Array, *, log_temperature: jax.Array) -> jax.Array:
    """exp(log_temperature) * log pi(a | s, g) minus the critic's score of a, both [B]."""
    return jnp.mean(jnp.exp(log_temperature) * log_probability - score)


def temperature_loss(log_temperature: jax.Array, log_probability: jax.Array, *, target_entropy: float) -> jax.Array:
    """Raises the temperature while the entropy, minus `log_probability: [B]`, is below `target_entropy`."""
    return jnp.mean(jnp.exp(log_temperature) * (-log_probability - target_entropy))
