"""One gradient step: actor and temperature first, then critic, all from one batch and the critic before its update."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from policy import acting
from policy.networks import PolicyParams, ResidualNetwork
from training import losses
from training.relabel import Batch


class Critic(NamedTuple):
    """The encoders alone: what the critic's optimiser moves."""

    state_action_encoder: ResidualNetwork
    goal_encoder: ResidualNetwork


class Learner(NamedTuple):
    """Everything a gradient step changes."""

    params: PolicyParams
    log_temperature: jax.Array
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    temperature_optimiser: optax.OptState


@dataclasses.dataclass(frozen=True)
class Updater:
    """The gradient step for one set of hyperparameters.

    Args:
        achieved_goal: reads goals [B, goal_dim] out of states [B, state_dim].
        critic_loss: one of `losses.CRITIC_LOSSES`.
    """

    achieved_goal: Callable[[jax.Array], jax.Array]
    actor_learning_rate: float
    critic_learning_rate: float
    temperature_learning_rate: float
    target_entropy: float
    critic_loss: Callable[..., losses.Contrast]
    logsumexp_penalty: float

    def init(self, params: PolicyParams) -> Learner:
        """A learner that starts from `params`, with temperature 1 and fresh optimisers."""
        log_temperature = jnp.zeros(())
        return Learner(
            params=params,
            log_temperature=log_temperature,
            actor_optimiser=optax.adam(self.actor_learning_rate).init(params.actor),
            critic_optimiser=optax.adam(self.critic_learning_rate).init(_critic(params)),
            temperature_optimiser=optax.adam(self.temperature_learning_rate).init(log_temperature),
        )

    def update(self, learner: Learner, batch: Batch, *, key: jax.Array) -> tuple[Learner, dict[str, jax.Array]]:
        """Take one step on `batch`; return the learner after it and scalar metrics."""
        goal = self.achieved_goal(batch.future_state)
        noise = jax.random.normal(key, batch.action.shape)
        (actor_loss, log_probability), actor_gradient = jax.value_and_grad(self._actor_loss, has_aux=True)(
            learner.params.actor, learner, batch.state, goal, noise
        )
        temperature_loss, temperature_gradient = jax.value_and_grad(losses.temperature_loss)(
            learner.log_temperature, log_probability, target_entropy=self.target_entropy
        )
        (critic_loss, contrast), critic_gradient = jax.value_and_grad(self._critic_loss, has_aux=True)(
            _critic(learner.params), batch, goal
        )
        actor, actor_optimiser = _descend(
            self.actor_learning_rate, actor_gradient, learner.actor_optimiser, learner.params.actor
        )
        log_temperature, temperature_optimiser = _descend(
            self.temperature_learning_rate, temperature_gradient, learner.temperature_optimiser, learner.log_temperature
        )
        critic, critic_optimiser = _descend(
            self.critic_learning_rate, critic_gradient, learner.critic_optimiser, _critic(learner.params)
        )
        metrics = {
            "loss/actor": actor_loss,
            "loss/critic": critic_loss,
            "loss/temperature": temperature_loss,
            "temperature": jnp.exp(learner.log_temperature),
            "entropy": -jnp.mean(log_probability),
            "contrast/accuracy": contrast.accuracy,
            "contrast/logsumexp": contrast.logsumexp,
        }
        updated = Learner(
            params=PolicyParams(actor, *critic),
            log_temperature=log_temperature,
            actor_optimiser=actor_optimiser,
            critic_optimiser=critic_optimiser,
            temperature_optimiser=temperature_optimiser,
        )
        return updated, metrics

    def _actor_loss(
        self, actor: ResidualNetwork, learner: Learner, state: jax.Array, goal: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        distribution = acting.action_distribution(actor, state, goal)
        action, log_probability = acting.sample_action(distribution, noise)
        score = acting.score(learner.params, state, action, goal=goal)
        return losses.actor_loss(log_probability, score, log_temperature=learner.log_temperature), log_probability

    def _critic_loss(self, critic: Critic, batch: Batch, goal: jax.Array) -> tuple[jax.Array, losses.Contrast]:
        encoded_pairs = acting.encode_state_action(critic.state_action_encoder, batch.state, batch.action)
        encoded_goals = acting.encode_goal(critic.goal_encoder, goal)
        logits = losses.pairwise_energy(encoded_pairs, encoded_goals)
        contrast = self.critic_loss(logits, logsumexp_penalty=self.logsumexp_penalty)
        return contrast.loss, contrast


def _critic(params: PolicyParams) -> Critic:
    return Critic(params.state_action_encoder, params.goal_encoder)


def _descend(learning_rate: float, gradient: Any, optimiser: optax.OptState, params: Any) -> tuple[Any, optax.OptState]:
    updates, optimiser = optax.adam(learning_rate).update(gradient, optimiser, params)
    return optax.apply_updates(params, updates), optimiser
