"""Engine: one policy's act function, compiled ahead for every batch size that is ever run.

A batch of any size is padded to the next bucket, a power of two, so nothing is traced or compiled while serving. The
parameters are put on the device once and passed to every executable.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from policy.acting import act
from policy.networks import PolicyParams, ResidualNetwork


class ActFunction(Protocol):
    """What the batcher needs of an engine; `act` may raise anything."""

    @property
    def max_rows(self) -> int:
        """Most rows in one call of `act`."""
        ...

    def act(self, rows: np.ndarray) -> np.ndarray:
        """Actions [rows, action_dim] for `rows: [rows, state_dim + goal_dim]`, a state and its goal side by side."""
        ...

    def padding(self, rows: int) -> int:
        """Rows computed besides `rows` and thrown away."""
        ...


class Engine:
    """Compiled act functions of one policy, by bucket. `act` may run in any one thread at a time.

    Args:
        params: of the policy.
        state_dim: values in one state; the rest of a row is its goal.
        goal_dim: values in one goal.
        max_rows: the largest bucket, a power of two.
    """

    def __init__(self, params: PolicyParams, *, state_dim: int, goal_dim: int, max_rows: int) -> None:
        # Only the actor acts; the critic's encoders stay off the device and out of every call.
        self._actor = jax.device_put(params.actor)
        self._row_dim = state_dim + goal_dim
        self._executables: dict[int, jax.stages.Compiled] = {}
        self.buckets = tuple(1 << exponent for exponent in range(max_rows.bit_length()))

        def act_on_rows(actor: ResidualNetwork, rows: jax.Array) -> jax.Array:
            return act(params._replace(actor=actor), rows[:, :state_dim], rows[:, state_dim:])

        self._act_on_rows = jax.jit(act_on_rows)

    @property
    def max_rows(self) -> int:
        """Most rows in one call of `act`."""
        return self.buckets[-1]

    @property
    def compilations(self) -> int:
        """Executables compiled so far; `len(buckets)` once complete."""
        return len(self._executables)

    def compile(self, bucket: int) -> None:
        """Compile for `bucket` rows and run once, so that the first caller pays for nothing."""
        rows = jax.ShapeDtypeStruct((bucket, self._row_dim), jnp.float32)
        # As the probes were computed: an accelerator's default would round inputs of a product to fewer bits.
        with jax.default_matmul_precision("highest"):
            self._executables[bucket] = self._act_on_rows.lower(self._actor, rows).compile()
        self.act(np.zeros(rows.shape, np.float32))

    def act(self, rows: np.ndarray) -> np.ndarray:
        """Actions [rows, action_dim] float32 for `rows: [rows, state_dim + goal_dim]` float32, at most `max_rows`.

        Raises:
            KeyError: the bucket that the rows need has not been compiled.
        """
        bucket = _bucket(len(rows))
        batch = rows
        if bucket > len(rows):
            batch = np.zeros((bucket, self._row_dim), np.float32)
            batch[: len(rows)] = rows
        return np.asarray(self._executables[bucket](self._actor, batch))[: len(rows)]

    def padding(self, rows: int) -> int:
        """Rows computed besides `rows` and thrown away."""
        return _bucket(rows) - rows


def _bucket(rows: int) -> int:
    """The smallest power of two that holds `rows`."""
    return 1 << (rows - 1).bit_length()
