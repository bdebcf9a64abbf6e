"""The losses of contrastive RL, in the order of the paper (arXiv 2503.14858, section 3 and appendix A).

Each is a pure function of arrays, averaged over the batch.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Contrast(NamedTuple):
    """The critic's loss, and how well the critic tells a row's own goal from the others."""

    loss: jax.Array
    accuracy: jax.Array  # share of rows whose own goal has the highest energy
    logsumexp: jax.Array  # mean over the rows


def forward_info_nce(logits: jax.Array) -> jax.Array:
    """Cross-entropy of each row's softmax over `logits: [B, B]`: the diagonal is the positive, the rest negatives.

    Adding a constant to a whole row does not change this loss, although the actor compares such energies; the
    logsumexp penalty of `contrast` fixes the constant.
    """
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diag(logits))


def backward_info_nce(logits: jax.Array) -> jax.Array:
    """The same over columns: which state and action led to a goal (arXiv 2408.11052, section 4)."""
    return forward_info_nce(logits.T)


def symmetric_info_nce(logits: jax.Array) -> jax.Array:
    """The mean of the forward and the backward loss."""
    return (forward_info_nce(logits) + backward_info_nce(logits)) / 2


def binary_nce(logits: jax.Array) -> jax.Array:
    """Binary cross-entropy: the diagonal of `logits: [B, B]` is positive, and the mean of the rest negative.

    Positives and negatives have equal weight at every batch size (arXiv 2206.07568, equation 3).
    """
    own = jnp.eye(len(logits), dtype=bool)
    negatives = jnp.where(own, 0, jax.nn.softplus(logits))
    return jnp.mean(jax.nn.softplus(-jnp.diag(logits))) + jnp.sum(negatives) / (len(logits) * (len(logits) - 1))


CRITIC_LOSSES: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "forward": forward_info_nce,
        "backward": backward_info_nce,
        "symmetric": symmetric_info_nce,
        "binary": binary_nce,
    }
)


def contrast(critic_loss: Callable[[jax.Array], jax.Array], logits: jax.Array, *, penalty: float) -> Contrast:
    """Add `penalty` times the rows' mean squared logsumexp to one of `CRITIC_LOSSES` on `logits: [B, B]`.

    The penalty keeps the energies of a row from drifting together.
    """
    logsumexp = jax.nn.logsumexp(logits, axis=1)
    own = jnp.argmax(logits, axis=1) == jnp.arange(len(logits))
    return Contrast(
        loss=critic_loss(logits) + penalty * jnp.mean(jnp.square(logsumexp)),
        accuracy=jnp.mean(own.astype(jnp.float32)),
        logsumexp=jnp.mean(logsumexp),
    )


def actor_loss(log_probability: jax.Array, score: jax.Array, *, log_temperature: jax.Array) -> jax.Array:
    """Return the mean of exp(log_temperature) * log pi(a | s, g) minus the critic's score of a, both [B]."""
    return jnp.mean(jnp.exp(log_temperature) * log_probability - score)


def temperature_loss(log_temperature: jax.Array, log_probability: jax.Array, *, target_entropy: float) -> jax.Array:
    """Return a loss that raises the temperature while the entropy, -`log_probability: [B]`, is below the target."""
    return jnp.mean(jnp.exp(log_temperature) * (-log_probability - target_entropy))
