"""The losses of contrastive RL, in the order of the paper (arXiv 2503.14858, section 3 and appendix A).

Each is a pure function of arrays, averaged over the batch.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Contrast(NamedTuple):
    """The critic's loss and how well it tells the reached goal from the others."""

    loss: jax.Array
    accuracy: jax.Array  # share of rows whose own goal scores highest
    logsumexp: jax.Array  # mean over the rows


def forward_info_nce(logits: jax.Array) -> jax.Array:
    """Each row's softmax over `logits: [B, B]`, its diagonal the positive, the other rows' goals the negatives.

    It leaves an energy common to a whole row free, which is what an actor compares: the penalty on the logsumexp
    holds it.
    """
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diag(logits))


def backward_info_nce(logits: jax.Array) -> jax.Array:
    """The same over columns: which state and action led to a goal (arXiv 2408.11052, section 4)."""
    return forward_info_nce(logits.T)


def symmetric_info_nce(logits: jax.Array) -> jax.Array:
    """The mean of the forward and the backward loss."""
    return (forward_info_nce(logits) + backward_info_nce(logits)) / 2


def binary_nce(logits: jax.Array) -> jax.Array:
    """Tell each row's own goal from the others' one at a time: log loss of the diagonal, and of the mean of the rest.

    Positives and negatives have equal weight, whatever the batch (arXiv 2206.07568, equation 3).
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
    """One of `CRITIC_LOSSES` on `logits: [B, B]`, and `penalty` times the rows' mean squared logsumexp.

    The penalty keeps the energies of a row from drifting away together.
    """
    logsumexp = jax.nn.logsumexp(logits, axis=1)
    own = jnp.argmax(logits, axis=1) == jnp.arange(len(logits))
    return Contrast(
        loss=critic_loss(logits) + penalty * jnp.mean(jnp.square(logsumexp)),
        accuracy=jnp.mean(own.astype(jnp.float32)),
        logsumexp=jnp.mean(logsumexp),
    )


def actor_loss(log_probability: jax.Array, score: jax.Array, *, log_temperature: jax.Array) -> jax.Array:
    """exp(log_temperature) * log pi(a | s, g) minus the critic's score of a, both [B]."""
    return jnp.mean(jnp.exp(log_temperature) * log_probability - score)


def temperature_loss(log_temperature: jax.Array, log_probability: jax.Array, *, target_entropy: float) -> jax.Array:
    """Raises the temperature while the entropy, minus `log_probability: [B]`, is below `target_entropy`."""
    return jnp.mean(jnp.exp(log_temperature) * (-log_probability - target_entropy))
