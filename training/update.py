"""One gradient step: actor, temperature and critic from one batch, all from the parameters before the step.

Nothing is computed twice. The goals are encoded once for both losses, and the two sets of state-action pairs (those of
the batch, which the critic learns from, and the actor's own, which it only judges) pass through phi together. The sum
of the three losses then has one gradient, because each loss's parameters are cut out of the others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from policy import acting
from policy.energy import Energy
from policy.layers import PLAIN_EXECUTION, Execution
from policy.networks import PolicyParams
from training import losses
from training.relabel import Batch


class Trained(NamedTuple):
    """What gradients move."""

    params: PolicyParams
    log_temperature: jax.Array  # scalar


class Learner(NamedTuple):
    """Everything a gradient step changes."""

    params: PolicyParams
    log_temperature: jax.Array
    optimiser: optax.OptState


@dataclasses.dataclass(frozen=True)
class Updater:
    """The gradient step for one set of hyperparameters.

    Args:
        achieved_goal: reads goals [B, goal_dim] out of states [B, state_dim].
        critic_loss: one of `losses.CRITIC_LOSSES`.
        energy: one of `policy.energy.ENERGIES`.
    """

    achieved_goal: Callable[[jax.Array], jax.Array]
    actor_learning_rate: float
    critic_learning_rate: float
    temperature_learning_rate: float
    target_entropy: float
    critic_loss: Callable[[jax.Array], jax.Array]
    energy: Energy
    logsumexp_penalty: float
    execution: Execution = PLAIN_EXECUTION

    def init(self, params: PolicyParams) -> Learner:
        """A learner that starts from `params`, with temperature 1 and a fresh optimiser."""
        trained: Any = Trained(params, log_temperature=jnp.zeros(()))
        return Learner(*trained, optimiser=self._optimiser().init(trained))

    def update(self, learner: Learner, batch: Batch, *, key: jax.Array) -> tuple[Learner, dict[str, jax.Array]]:
        """Take one step on `batch`; return the learner after it and scalar metrics."""
        trained: Any = Trained(learner.params, learner.log_temperature)  # optax types no trees but its own
        noise = jax.random.normal(key, batch.action.shape)
        gradient: Any
        gradient, metrics = self.gradient(trained, batch, noise=noise)
        updates, optimiser = self._optimiser().update(gradient, learner.optimiser, trained)
        moved: Any = optax.apply_updates(trained, updates)
        return Learner(*moved, optimiser=optimiser), metrics

    def gradient(self, trained: Trained, batch: Batch, *, noise: jax.Array) -> tuple[Trained, dict[str, jax.Array]]:
        """The gradients of one step, each part's along its own loss, and scalar metrics.

        Args:
            noise: [B, action_dim], standard normal, from which the actor's actions are drawn.
        """
        return jax.grad(self._losses, has_aux=True)(trained, batch, noise)

    def _losses(self, trained: Trained, batch: Batch, noise: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        params, rows = trained.params, len(batch.state)
        goal = self.achieved_goal(batch.future_state)
        distribution = acting.action_distribution(params.actor, batch.state, goal, execution=self.execution)
        action, log_probability = acting.sample_action(distribution, noise)

        encoded_goals = acting.encode_goal(params.goal_encoder, goal, execution=self.execution)
        encoded_pairs = acting.encode_state_action(
            params.state_action_encoder,
            jnp.concatenate([batch.state, batch.state]),
            jnp.concatenate([batch.action, action]),
            execution=self.execution,
            learning_rows=rows,
        )
        score = self.energy.rowwise(encoded_pairs[rows:], jax.lax.stop_gradient(encoded_goals))
        logits = self.energy.pairwise(encoded_pairs[:rows], encoded_goals)

        actor_loss = losses.actor_loss(
            log_probability, score, log_temperature=jax.lax.stop_gradient(trained.log_temperature)
        )
        temperature_loss = losses.temperature_loss(
            trained.log_temperature, jax.lax.stop_gradient(log_probability), target_entropy=self.target_entropy
        )
        contrast = losses.contrast(self.critic_loss, logits, penalty=self.logsumexp_penalty)
        metrics = {
            "loss/actor": actor_loss,
            "loss/critic": contrast.loss,
            "loss/temperature": temperature_loss,
            "temperature": jnp.exp(trained.log_temperature),
            "entropy": -jnp.mean(log_probability),
            "contrast/accuracy": contrast.accuracy,
            "contrast/logsumexp": contrast.logsumexp,
        }
        return actor_loss + temperature_loss + contrast.loss, metrics

    def _optimiser(self) -> optax.GradientTransformation:
        """Adam for each of the three, at its own rate."""
        rates = {
            "actor": self.actor_learning_rate,
            "critic": self.critic_learning_rate,
            "temperature": self.temperature_learning_rate,
        }
        labels: tuple[Any, ...] = ("actor", "critic", "critic")
        temperature: Any = "temperature"
        parts: Any = Trained(PolicyParams(*labels), log_temperature=temperature)
        return optax.partition({part: optax.adam(rate) for part, rate in rates.items()}, parts)
