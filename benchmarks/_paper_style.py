"""The gradient step as it is usually written, for comparison with ours.

Every layer is a separate Python call with its own arrays, and JAX derives all gradients. Actor, temperature and critic
each have their own pass and their own Adam. The critic's logits come from the [B, B, R] array of differences. The
mathematics is that of `training.algorithms.crl.update`; a test compares the two.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen

from policy.spec import LAYERS_PER_BLOCK
from training.data.replay_buffer import Batch

_LOG_STD_MIDDLE, _LOG_STD_HALF_RANGE = -1.5, 3.5


class Network(linen.Module):
    """Input layer, blocks of four layers with their input added, output Dense."""

    depth: int
    width: int
    out_dim: int

    @linen.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """[rows, in] -> [rows, out_dim]."""
        values = self._layer(values)
        for _ in range(self.depth // LAYERS_PER_BLOCK):
            inner = values
            for _ in range(LAYERS_PER_BLOCK):
                inner = self._layer(inner)
            values = values + inner
        return self._dense(self.out_dim)(values)

    def _layer(self, values: jax.Array) -> jax.Array:
        return linen.swish(linen.LayerNorm()(self._dense(self.width)(values)))

    def _dense(self, width: int) -> linen.Dense:
        return linen.Dense(width, kernel_init=jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))


class Critic(NamedTuple):
    """Parameters of the two encoders."""

    state_action_encoder: Any
    goal_encoder: Any


class TrainState(NamedTuple):
    """Everything that a step changes: parameters and optimizer states, one by one."""

    actor: Any
    critic: Critic
    log_temperature: jax.Array
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    temperature_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class CRL:
    """The step for networks of one depth and width."""

    depth: int
    width: int
    action_dim: int
    representation_dim: int
    achieved_goal: Callable[[jax.Array], jax.Array]
    learning_rate: float
    target_entropy: float
    logsumexp_penalty: float

    def fresh(self, key: jax.Array, *, state_dim: int, goal_dim: int) -> TrainState:
        """Return a train state with random parameters of these sizes."""
        keys = jax.random.split(key, 3)
        inputs = (state_dim + goal_dim, state_dim + self.action_dim, goal_dim)
        networks = (self._actor, self._encoder, self._encoder)
        actor, *encoders = (
            network.init(key, jnp.zeros((1, size))) for key, network, size in zip(keys, networks, inputs, strict=True)
        )
        return self.init(actor, Critic(*encoders))

    def init(self, actor: Any, critic: Critic) -> TrainState:
        """Return a train state with these parameters, temperature 1 and new optimizer states."""
        adam, log_temperature = optax.adam(self.learning_rate), jnp.zeros(())
        states = (adam.init(part) for part in (actor, _tree(critic), log_temperature))
        return TrainState(actor, critic, log_temperature, *states)

    def update(
        self, train_state: TrainState, batch: Batch, *, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take one step on `batch`; return the new state and the three losses."""
        noise = jax.random.normal(key, batch.action.shape)
        (actor_loss, log_probability), actor_gradient = jax.value_and_grad(self._actor_loss, has_aux=True)(
            train_state.actor, train_state.critic, train_state.log_temperature, batch, noise
        )
        temperature_loss, temperature_gradient = jax.value_and_grad(self._temperature_loss)(
            train_state.log_temperature, log_probability
        )
        critic_loss, critic_gradient = jax.value_and_grad(self._critic_loss)(train_state.critic, batch)
        actor, actor_optimizer = self._adam(train_state.actor, actor_gradient, train_state.actor_optimizer)
        critic, critic_optimizer = self._adam(train_state.critic, critic_gradient, train_state.critic_optimizer)
        log_temperature, temperature_optimizer = self._adam(
            train_state.log_temperature, temperature_gradient, train_state.temperature_optimizer
        )
        moved = TrainState(actor, critic, log_temperature, actor_optimizer, critic_optimizer, temperature_optimizer)
        losses = {"loss/actor": actor_loss, "loss/critic": critic_loss, "loss/temperature": temperature_loss}
        return moved, losses

    @property
    def _actor(self) -> Network:
        return Network(self.depth, self.width, 2 * self.action_dim)

    @property
    def _encoder(self) -> Network:
        return Network(self.depth, self.width, self.representation_dim)

    def _actor_loss(
        self, actor: Any, critic: Critic, log_temperature: jax.Array, batch: Batch, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        goal = self.achieved_goal(batch.future_state)
        outputs: Any = self._actor.apply(actor, jnp.concatenate([batch.state, goal], axis=1))
        mean, raw_log_std = jnp.split(outputs, 2, axis=1)
        log_std = _LOG_STD_MIDDLE + _LOG_STD_HALF_RANGE * jnp.tanh(raw_log_std)
        raw = mean + jnp.exp(log_std) * noise
        log_gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
        log_probability = jnp.sum(log_gaussian - log_slope, axis=1)
        phi, psi = self._encodings(critic, batch.state, jnp.tanh(raw), goal)
        score = -jnp.sqrt(jnp.sum((phi - psi) ** 2, axis=1))
        return jnp.mean(jnp.exp(log_temperature) * log_probability - score), log_probability

    def _temperature_loss(self, log_temperature: jax.Array, log_probability: jax.Array) -> jax.Array:
        return jnp.mean(jnp.exp(log_temperature) * (-log_probability - self.target_entropy))

    def _critic_loss(self, critic: Critic, batch: Batch) -> jax.Array:
        goal = self.achieved_goal(batch.future_state)
        phi, psi = self._encodings(critic, batch.state, batch.action, goal)
        logits = -jnp.sqrt(jnp.sum((phi[:, None, :] - psi[None, :, :]) ** 2, axis=-1))
        logsumexp = jax.nn.logsumexp(logits, axis=1)
        return jnp.mean(logsumexp - jnp.diag(logits)) + self.logsumexp_penalty * jnp.mean(logsumexp**2)

    def _encodings(self, critic: Critic, state: jax.Array, action: jax.Array, goal: jax.Array) -> tuple[Any, Any]:
        pairs = jnp.concatenate([state, action], axis=1)
        encoder = self._encoder
        return encoder.apply(critic.state_action_encoder, pairs), encoder.apply(critic.goal_encoder, goal)

    def _adam(self, part: Any, gradient: Any, state: optax.OptState) -> tuple[Any, optax.OptState]:
        updates, state = optax.adam(self.learning_rate).update(gradient, state, part)
        return optax.apply_updates(part, updates), state


def _tree(critic: Critic) -> Any:
    """Optax types accept only its own trees."""
    return critic
