"""The networks and losses of the paper (arXiv 2503.14858) written for reading, and for nothing else.

Every layer stands in a loop, every pass is made by itself, every derivative is JAX's own. What training computes
faster must give the same numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from policy.networks import Network, PolicyParams
from training.data.replay_buffer import Batch


def network(subject: Network | None, values: jax.Array) -> jax.Array:
    """Input layer, blocks of four layers with their input added, output Dense: [rows, in] -> [rows, out]."""
    assert subject is not None
    module: Any = subject.module
    architecture, parameters = module.architecture, subject.params

    def layer(parts: dict[str, jax.Array], values: jax.Array) -> jax.Array:
        values = values @ parts["kernel"] + parts["bias"]
        if "norm_scale" in parts:
            values = (values - values.mean(-1, keepdims=True)) / jnp.sqrt(values.var(-1, keepdims=True) + 1e-6)
            values = values * parts["norm_scale"] + parts["norm_bias"]
        return values * (values > 0) if architecture.activation == "relu" else values / (1 + jnp.exp(-values))

    values = layer(parameters["input"], values)
    for block in range(len(parameters["blocks"]["bias"])):
        inner = values
        for index in range(4):
            inner = layer(jax.tree.map(lambda leaf: leaf[block, index], parameters["blocks"]), inner)  # noqa: B023
        values = values + inner if architecture.residual else inner
    return values @ parameters["output"]["kernel"] + parameters["output"]["bias"]


def energies(pairs: jax.Array, goals: jax.Array, *, energy: str) -> jax.Array:
    """Every row of `pairs: [B, R]` against every row of `goals: [C, R]`: [B, C]."""
    apart = pairs[:, None, :] - goals[None, :, :]
    dots = (pairs[:, None, :] * goals[None, :, :]).sum(-1)
    lengths = jnp.sqrt((pairs**2).sum(-1))[:, None] * jnp.sqrt((goals**2).sum(-1))[None, :]
    return {
        "l2": -jnp.sqrt((apart**2).sum(-1)),
        "l2_squared": -(apart**2).sum(-1),
        "dot": dots,
        "cosine": dots / lengths,
    }[energy]


def critic_loss(logits: jax.Array, *, loss: str) -> jax.Array:
    """The log loss of finding each row's own column, each column's own row, both, or each entry by itself."""
    rows = jnp.log(jnp.exp(logits) / jnp.exp(logits).sum(axis=1, keepdims=True))
    columns = jnp.log(jnp.exp(logits) / jnp.exp(logits).sum(axis=0, keepdims=True))
    forward, backward = -jnp.diag(rows).mean(), -jnp.diag(columns).mean()
    if loss != "binary":
        return {"forward": forward, "backward": backward, "symmetric": (forward + backward) / 2}[loss]
    probability = 1 / (1 + jnp.exp(-logits))
    others = ~np.eye(len(logits), dtype=bool)
    return -jnp.log(jnp.diag(probability)).mean() - jnp.log(1 - probability[others]).mean()


def losses(
    params: PolicyParams,
    log_temperature: jax.Array,
    batch: Batch,
    noise: jax.Array,
    *,
    goal_dim: int,
    target_entropy: float,
    penalty: float,
    loss: str = "forward",
    energy: str = "l2",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The actor's, the temperature's and the critic's loss; the goal is the first `goal_dim` values of a state."""
    goal = actor_goal = batch.future_state[:, :goal_dim]
    if batch.commanded_goal is not None:
        actor_goal = goal.at[: len(batch.commanded_goal)].set(batch.commanded_goal)
    mean, raw = jnp.split(network(params.actor, jnp.concatenate([batch.state, actor_goal], 1)), 2, axis=1)
    log_std = -5 + 3.5 * (jnp.tanh(raw) + 1)
    raw_action = mean + jnp.exp(log_std) * noise
    action = jnp.tanh(raw_action)
    gaussian = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    log_probability = (gaussian + 2 * jnp.log(jnp.cosh(raw_action))).sum(1)  # 1 - tanh(x)^2 = 1 / cosh(x)^2

    def phi(action: jax.Array) -> jax.Array:
        return network(params.state_action_encoder, jnp.concatenate([batch.state, action], 1))

    psi = network(params.goal_encoder, goal)
    score = jnp.diag(energies(phi(action), network(params.goal_encoder, actor_goal), energy=energy))
    actor = (jnp.exp(log_temperature) * log_probability - score).mean()
    entropy = -jax.lax.stop_gradient(log_probability)
    temperature = (jnp.exp(log_temperature) * (entropy - target_entropy)).mean()
    logits = energies(phi(batch.action), psi, energy=energy)
    logsumexp = jnp.log(jnp.exp(logits).sum(1))
    return actor, temperature, critic_loss(logits, loss=loss) + penalty * (logsumexp**2).mean()
