"""PPO as brax trains it."""

# brax types its trainers by its own retired environments, and its dataclasses are opaque to type checkers.
# pyright: reportArgumentType=false, reportCallIssue=false

import math
from typing import Any

from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as brax_ppo
from brax.training.distribution import NormalTanhDistribution
from brax.training.networks import FeedForwardNetwork

from training.algorithms.baselines.arguments import shared
from training.algorithms.baselines.brax_network import actor_network, critic_network
from training.algorithms.baselines.evaluator import Evaluator, renamed
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv

_MAX_MINIBATCHES = 8  # of one pass over an unroll
_PASSES = 4  # over an unroll
_ENTROPY_COST = 0.05  # at 0.01, some runs collapse to one goal and never see a reward for the other
_MAX_GRADIENT_NORM = 0.5
_METRICS = {  # brax's name by ours
    "loss/actor": "training/policy_loss",
    "loss/critic": "training/v_loss",
    "loss/entropy": "training/entropy_loss",
}


def train(config: TrainConfig, env: GoalEnv, evaluator: Evaluator) -> None:
    """Train with PPO, calling `evaluator` after every epoch."""
    actor, critic = actor_network(config, env), critic_network(config, env.observation_size)
    latest: list[Any] = []

    def networks(_: Any, action_size: int, **__: Any) -> ppo_networks.PPONetworks:
        return ppo_networks.PPONetworks(
            policy_network=actor.feed_forward(),
            value_network=FeedForwardNetwork(
                init=critic.init, apply=lambda _, params, observation: critic.apply(params, observation)[..., 0]
            ),
            parametric_action_distribution=NormalTanhDistribution(event_size=action_size),
        )

    def keep_params(_: int, __: Any, params: tuple[Any, ...]) -> None:
        latest[:] = params[1]

    minibatches = math.gcd(config.num_envs, _MAX_MINIBATCHES)
    brax_ppo.train(
        env,
        **shared(config, evaluator),
        entropy_cost=_ENTROPY_COST,
        max_grad_norm=_MAX_GRADIENT_NORM,
        unroll_length=config.unroll_length,
        batch_size=config.num_envs // minibatches,
        num_minibatches=minibatches,
        num_updates_per_batch=_PASSES,
        network_factory=networks,
        run_evals=False,
        policy_params_fn=keep_params,
        progress_fn=lambda steps, metrics: evaluator(steps, actor.network(latest), renamed(metrics, _METRICS)),
    )
