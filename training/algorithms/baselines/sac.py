"""SAC as brax trains it."""

# brax types its trainers by its own retired environments, and its dataclasses are opaque to type checkers.
# pyright: reportArgumentType=false, reportCallIssue=false

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from brax.training import checkpoint
from brax.training.agents.sac import networks as sac_networks
from brax.training.agents.sac import train as brax_sac
from brax.training.distribution import NormalTanhDistribution
from brax.training.networks import FeedForwardNetwork

from training.algorithms.baselines.arguments import shared
from training.algorithms.baselines.brax_env import Inert
from training.algorithms.baselines.brax_network import actor_network, critic_network
from training.algorithms.baselines.evaluator import Evaluator, renamed
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv

_CRITICS = 2  # SAC uses the lower of their values
_METRICS = {  # brax's name by ours
    "loss/actor": "training/actor_loss",
    "loss/critic": "training/critic_loss",
    "loss/temperature": "training/alpha_loss",
    "temperature": "training/alpha",
}


def train(config: TrainConfig, env: GoalEnv, evaluator: Evaluator) -> None:
    """Train with SAC, calling `evaluator` after every epoch."""
    actor = actor_network(config, env)
    critic = critic_network(config, env.observation_size + env.action_size)

    def networks(action_size: int, **_: Any) -> sac_networks.SACNetworks:
        def apply_critics(_: Any, params: list[list[Any]], observation: jax.Array, action: jax.Array) -> jax.Array:
            inputs = jnp.concatenate([observation, action], axis=-1)
            return jnp.concatenate([critic.apply(each, inputs) for each in params], axis=-1)

        return sac_networks.SACNetworks(
            policy_network=actor.feed_forward(),
            q_network=FeedForwardNetwork(
                init=lambda key: [critic.init(each) for each in jax.random.split(key, _CRITICS)], apply=apply_critics
            ),
            parametric_action_distribution=NormalTanhDistribution(event_size=action_size),
        )

    with tempfile.TemporaryDirectory(prefix=".sac-", dir=config.out.absolute()) as scratch:

        def evaluate_checkpoint(env_steps: int, metrics: Mapping[str, Any]) -> None:
            if env_steps:  # brax's SAC passes its parameters to no callback, but has just saved them
                _, params = checkpoint.load(Path(scratch) / f"{env_steps:012d}")
                evaluator(env_steps, actor.network(params), renamed(metrics, _METRICS))

        brax_sac.train(
            env,
            **shared(config, evaluator),
            batch_size=config.batch_size,
            min_replay_size=config.num_envs * config.min_replay_size,
            max_replay_size=config.num_envs * config.max_replay_size,
            grad_updates_per_step=max(1, round(config.updates_per_unroll / config.unroll_length)),
            network_factory=networks,
            num_eval_envs=1,
            eval_env=Inert(env),
            progress_fn=evaluate_checkpoint,
            checkpoint_logdir=scratch,
        )
