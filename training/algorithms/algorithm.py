"""What the trainer needs of an algorithm: a state to start from, and one gradient step."""

from typing import NamedTuple, Protocol

import jax
import optax

from policy.networks import PolicyParams
from training.data.replay_buffer import Batch


class TrainState(NamedTuple):
    """Everything that a gradient step changes."""

    params: PolicyParams
    log_temperature: jax.Array  # scalar
    optimizer: optax.OptState


Metrics = dict[str, jax.Array]  # of one gradient step: scalars by their name in metrics.jsonl


class Algorithm(Protocol):
    """An algorithm that learns from batches of the replay buffer, on networks and a loop that all algorithms share."""

    def init(self, params: PolicyParams) -> TrainState:
        """Return the state to start training `params` from."""
        ...

    def update(self, train_state: TrainState, batch: Batch, *, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Take one gradient step on `batch`; return the new state and the step's metrics."""
        ...
