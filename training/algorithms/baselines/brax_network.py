"""Our residual networks with the interface that brax's trainers use."""

from typing import Any, NamedTuple

import jax
from brax.training.networks import FeedForwardNetwork

from policy.layers import Architecture, Execution
from policy.networks import Network, ResidualNetwork, apply_network, init_network
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv


class BraxNetwork(NamedTuple):
    """A residual network whose parameters are a flat list, which brax's checkpoints restore exactly as saved."""

    in_dim: int
    out_dim: int
    depth: int
    width: int
    architecture: Architecture
    execution: Execution

    def init(self, key: jax.Array) -> list[jax.Array]:
        """Return fresh parameters."""
        return jax.tree.leaves(self._init(key))

    def apply(self, params: list[Any], inputs: jax.Array) -> jax.Array:
        """Run the network: [..., in_dim] -> [..., out_dim]."""
        return apply_network(self.network(params), inputs, execution=self.execution)

    def network(self, params: list[Any]) -> Network:
        """Return the parameters as a `Network`."""
        structure = jax.tree.structure(jax.eval_shape(self._init, jax.random.key(0)))
        return jax.tree.unflatten(structure, params)

    def feed_forward(self) -> FeedForwardNetwork:
        """Return brax's pair of functions, without its observation preprocessing."""
        return FeedForwardNetwork(init=self.init, apply=lambda _, params, observation: self.apply(params, observation))

    def _init(self, key: jax.Array) -> Network:
        module = ResidualNetwork(self.depth, self.width, self.out_dim, self.architecture)
        return init_network(key, module, in_dim=self.in_dim)


def actor_network(config: TrainConfig, env: GoalEnv) -> BraxNetwork:
    """Return the actor, whose outputs are the mean of an action and its scale, in brax's order and ours."""
    sizes = (env.observation_size, 2 * env.action_size, config.actor_depth, config.actor_width)
    return BraxNetwork(*sizes, *_architecture(config))


def critic_network(config: TrainConfig, in_dim: int) -> BraxNetwork:
    """Return a critic [..., in_dim] -> [..., 1]."""
    return BraxNetwork(in_dim, 1, config.critic_depth, config.critic_width, *_architecture(config))


def _architecture(config: TrainConfig) -> tuple[Architecture, Execution]:
    architecture = Architecture(activation=config.activation, layer_norm=config.layer_norm, residual=config.residual)
    return architecture, Execution(precision=config.precision, remat=config.remat)
