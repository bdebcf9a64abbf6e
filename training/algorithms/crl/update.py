"""CRL: one gradient step of contrastive RL on one batch.

The actor, the temperature and the critic learn together: the step takes one gradient of the sum of their three losses,
all at the parameters before the step. `stop_gradient` and `learning_rows` keep each loss away from the parameters of
the other parts, so the gradient of the sum consists of each part's gradient of its own loss.

Nothing is computed twice. Both losses share one encoding of the goals. Two sets of state-action pairs pass through the
state-action encoder in one call: those of the batch, from which the critic learns, and those with the actor's own
actions, which the critic only scores. Commanded goals cost one forward pass of the goal encoder on their own rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from policy import acting
from policy.energy import ENERGIES, Energy
from policy.layers import PLAIN_EXECUTION, Execution
from policy.networks import PolicyParams
from training.algorithms.algorithm import Metrics, TrainState
from training.algorithms.crl import losses
from training.config import TrainConfig
from training.data.commanded_goals import substitute
from training.data.replay_buffer import Batch
from training.envs.core.goal_env import GoalEnv


class Trainable(NamedTuple):
    """What gradients change."""

    params: PolicyParams
    log_temperature: jax.Array  # scalar


@dataclasses.dataclass(frozen=True)
class CRL:
    """Contrastive RL with one set of hyperparameters; an `Algorithm`.

    Args:
        achieved_goal: extracts goals [B, goal_dim] from states [B, state_dim].
        target_entropy: of an action, in nats.
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

    @classmethod
    def from_config(cls, config: TrainConfig, env: GoalEnv) -> Self:
        """Return the algorithm that `config` describes, for the goals of `env`."""
        return cls(
            achieved_goal=env.achieved_goal,
            actor_learning_rate=config.actor_learning_rate,
            critic_learning_rate=config.critic_learning_rate,
            temperature_learning_rate=config.temperature_learning_rate,
            target_entropy=config.target_entropy_per_action * env.action_size,
            critic_loss=losses.CRITIC_LOSSES[config.critic_loss],
            energy=ENERGIES[config.energy],
            logsumexp_penalty=config.logsumexp_penalty,
            execution=Execution(precision=config.precision, remat=config.remat),
        )

    def init(self, params: PolicyParams) -> TrainState:
        """Return a state that starts from `params`, with temperature 1 and a new optimizer."""
        trainable: Any = Trainable(params, log_temperature=jnp.zeros(()))
        return TrainState(*trainable, optimizer=self._optimizer().init(trainable))

    def update(self, train_state: TrainState, batch: Batch, *, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Take one gradient step on `batch`; return the new state and scalar metrics."""
        trainable: Any = Trainable(train_state.params, train_state.log_temperature)  # optax has no types for our trees
        noise = jax.random.normal(key, batch.action.shape)
        gradient: Any
        gradient, metrics = self.gradient(trainable, batch, noise=noise)
        updates, optimizer = self._optimizer().update(gradient, train_state.optimizer, trainable)
        updated: Any = optax.apply_updates(trainable, updates)
        return TrainState(*updated, optimizer=optimizer), metrics

    def gradient(self, trainable: Trainable, batch: Batch, *, noise: jax.Array) -> tuple[Trainable, Metrics]:
        """Return the gradient of each part's own loss, and scalar metrics.

        Args:
            noise: [B, action_dim], standard normal, from which the actor's actions are sampled.
        """
        return jax.grad(self._losses, has_aux=True)(trainable, batch, noise)

    def _losses(self, trainable: Trainable, batch: Batch, noise: jax.Array) -> tuple[jax.Array, Metrics]:
        params, rows = trainable.params, len(batch.state)
        goal = self.achieved_goal(batch.future_state)
        actor_goal = substitute(goal, batch.commanded_goal)
        distribution = acting.action_distribution(params, batch.state, actor_goal, execution=self.execution)
        action, log_probability = acting.sample_action(distribution, noise)

        encoded_goals = acting.encode_goal(params, goal, execution=self.execution)
        encoded_pairs = acting.encode_state_action(
            params,
            jnp.concatenate([batch.state, batch.state]),
            jnp.concatenate([batch.action, action]),
            execution=self.execution,
            learning_rows=rows,
        )
        encoded_actor_goals = substitute(jax.lax.stop_gradient(encoded_goals), self._encode_commanded(params, batch))
        score = self.energy.rowwise(encoded_pairs[rows:], encoded_actor_goals)
        logits = self.energy.pairwise(encoded_pairs[:rows], encoded_goals)

        actor_loss = losses.actor_loss(
            log_probability, score, log_temperature=jax.lax.stop_gradient(trainable.log_temperature)
        )
        temperature_loss = losses.temperature_loss(
            trainable.log_temperature, jax.lax.stop_gradient(log_probability), target_entropy=self.target_entropy
        )
        contrast = losses.contrast(self.critic_loss, logits, penalty=self.logsumexp_penalty)
        metrics = {
            "loss/actor": actor_loss,
            "loss/critic": contrast.loss,
            "loss/temperature": temperature_loss,
            "temperature": jnp.exp(trainable.log_temperature),
            "entropy": -jnp.mean(log_probability),
            "contrast/accuracy": contrast.accuracy,
            "contrast/logsumexp": contrast.logsumexp,
        }
        return actor_loss + temperature_loss + contrast.loss, metrics

    def _encode_commanded(self, params: PolicyParams, batch: Batch) -> jax.Array | None:
        """Return the encodings of the batch's commanded goals, [commanded, representation_dim], without a gradient."""
        if batch.commanded_goal is None:
            return None
        return acting.encode_goal(jax.lax.stop_gradient(params), batch.commanded_goal, execution=self.execution)

    def _optimizer(self) -> optax.GradientTransformation:
        """Return Adam for each of the three parts, with its own learning rate. Statistics do not change."""
        rates = {
            "actor": self.actor_learning_rate,
            "critic": self.critic_learning_rate,
            "temperature": self.temperature_learning_rate,
        }
        transforms: dict[Any, Any] = {part: optax.adam(rate) for part, rate in rates.items()}
        transforms["constant"] = optax.set_to_zero()
        return optax.partition(transforms, _labels)


def _labels(trainable: Any) -> Any:
    """Return the optimizer's part for each subtree of `trainable`."""
    params = trainable.params
    labels = params._replace(
        actor="actor",
        state_action_encoder="critic",
        goal_encoder="critic",
        normalization=None if params.normalization is None else "constant",
    )
    return trainable._replace(params=labels, log_temperature="temperature")
