"""Engine: what one policy computes, compiled ahead for every batch size that is ever run.

There are four kinds of work, and a row of each is one line of float32 columns:

    ACT    state, goal                      -> the deterministic action
    DRAW   state, goal, draw                -> an action of the stochastic policy
    JUDGE  state, goal, draw                -> such an action, and its energy by the critic
    SCORE  state, action, goal              -> the energy of that action by the critic

`draw` is four unsigned integers in the bits of four float32 columns, see `draw_columns`: they alone decide the noise,
so a row draws the same action whatever batch it lands in. A batch of any size is padded to the next bucket, so nothing
is traced or compiled while serving. The parameters, stacked, are put on the device once and passed to every executable;
one array goes in and one comes out.
"""

import bisect
import enum
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from policy import acting
from policy.networks import PolicyParams
from policy.spec import PolicySpec

_DRAW_COLUMNS = 4  # seed, low and high half; number of the row in its call; number of the candidate
_NEWEST_SHARE = 0.1  # of the latest run in the time that a bucket is expected to take


class Kind(enum.Enum):
    """What is to be computed; the rows of one batch are all of one kind."""

    ACT = "act"
    DRAW = "draw"
    JUDGE = "judge"
    SCORE = "score"

    __hash__ = object.__hash__  # there is one of each; the library hashes their names, in Python, at every lookup


class Computer(Protocol):
    """What the batcher needs of an engine; `compute` may raise anything."""

    @property
    def max_rows(self) -> int:
        """Most rows in one call of `compute`."""
        ...

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        """One line of results for every line of `rows: [rows, columns of the kind]`."""
        ...

    def padding(self, kind: Kind, rows: int) -> int:
        """Rows computed besides `rows` and thrown away."""
        ...

    def expected_s(self, kind: Kind, rows: int) -> float:
        """Seconds that a call of `compute` with so many rows should take."""
        ...


class Engine:
    """The compiled functions of one policy, by kind and bucket. `compute` may run in any one thread at a time.

    ACT has a bucket for every power of two, the others for powers of four, since each bucket costs start-up time.

    Args:
        params: of the policy.
        spec: its sizes and its energy.
        max_rows: the largest bucket, a power of two.
    """

    def __init__(self, params: PolicyParams, spec: PolicySpec, *, max_rows: int) -> None:
        self._spec = spec
        self._params: PolicyParams = jax.device_put(params)
        self._executables: dict[tuple[Kind, int], jax.stages.Compiled] = {}
        self._seconds: dict[tuple[Kind, int], float] = {}  # an exponential mean of what each took
        of_two = tuple(1 << exponent for exponent in range(max_rows.bit_length()))
        of_four = tuple(sorted({*of_two[::2], max_rows}))
        self.buckets = {Kind.ACT: of_two, Kind.DRAW: of_four, Kind.SCORE: of_four}
        self._functions: dict[Kind, Callable[[Any, jax.Array], jax.Array]] = {
            Kind.ACT: self._act,
            Kind.DRAW: self._draw,
            Kind.SCORE: self._score,
        }

    @property
    def max_rows(self) -> int:
        """Most rows in one call of `compute`."""
        return self.buckets[Kind.ACT][-1]

    @property
    def compilations(self) -> int:
        """Executables compiled so far."""
        return len(self._executables)

    def columns(self, kind: Kind) -> int:
        """Columns of a row of this kind."""
        spec = self._spec
        extra = {Kind.ACT: 0, Kind.DRAW: _DRAW_COLUMNS, Kind.JUDGE: _DRAW_COLUMNS, Kind.SCORE: spec.action_dim}
        return spec.state_dim + spec.goal_dim + extra[kind]

    def compile(self, kind: Kind, bucket: int) -> None:
        """Compile one executable, and run it so that the first caller pays for nothing and its time is known."""
        rows = jax.ShapeDtypeStruct((bucket, self.columns(kind)), jnp.float32)
        # As the probes were computed: an accelerator's default would round inputs of a product to fewer bits.
        with jax.default_matmul_precision("highest"):
            compiled = jax.jit(self._functions[kind]).lower(self._parameters(kind), rows).compile()
        self._executables[kind, bucket] = compiled
        for _ in range(2):
            self._seconds.pop((kind, bucket), None)  # the first run is slower than any later one
            self.compute(kind, np.zeros(rows.shape, np.float32))

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        """The results [rows, ...] float32 of `rows: [rows, columns(kind)]` float32, at most `max_rows` of them.

        ACT and DRAW give [rows, action_dim], JUDGE [rows, action_dim + 1] with the energy last, SCORE [rows, 1].

        Raises:
            KeyError: the bucket that the rows need has not been compiled.
        """
        if kind is not Kind.JUDGE:
            return self._run(kind, rows)
        state_dim, goal_end = self._spec.state_dim, self._spec.state_dim + self._spec.goal_dim
        action = self._run(Kind.DRAW, rows)
        judged = np.concatenate([rows[:, :state_dim], action, rows[:, state_dim:goal_end]], axis=1)
        return np.concatenate([action, self._run(Kind.SCORE, judged)], axis=1)

    def padding(self, kind: Kind, rows: int) -> int:
        """Rows computed besides `rows` and thrown away."""
        return self._bucket(kind, rows) - rows

    def expected_s(self, kind: Kind, rows: int) -> float:
        """Seconds that `compute` should take, going by the last times it ran for as many."""
        if kind is Kind.JUDGE:
            return self.expected_s(Kind.DRAW, rows) + self.expected_s(Kind.SCORE, rows)
        return self._seconds[kind, self._bucket(kind, rows)]

    def _run(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        bucket = self._bucket(kind, len(rows))
        batch = rows
        if bucket > len(rows):
            batch = np.zeros((bucket, rows.shape[1]), np.float32)
            batch[: len(rows)] = rows
        began_s = time.perf_counter()
        results = np.asarray(self._executables[kind, bucket](self._parameters(kind), batch))
        took_s = time.perf_counter() - began_s
        mean_s = self._seconds.get((kind, bucket), took_s)
        self._seconds[kind, bucket] = mean_s + _NEWEST_SHARE * (took_s - mean_s)
        return results[: len(rows)]

    def _bucket(self, kind: Kind, rows: int) -> int:
        """The smallest bucket that holds `rows`."""
        buckets = self.buckets[Kind.DRAW if kind is Kind.JUDGE else kind]
        return buckets[bisect.bisect_left(buckets, rows)]

    def _parameters(self, kind: Kind) -> Any:
        """Only what the kind needs: every array that is passed costs time."""
        return self._params[1:] if kind is Kind.SCORE else self._params.actor

    def _act(self, actor: Any, rows: jax.Array) -> jax.Array:
        state, goal = self._split(rows)
        return acting.deterministic_action(actor, state, goal)

    def _draw(self, actor: Any, rows: jax.Array) -> jax.Array:
        draw = jax.lax.bitcast_convert_type(rows[:, -_DRAW_COLUMNS:], jnp.uint32)
        noise = jax.vmap(self._noise)(draw)
        state, goal = self._split(rows)
        return acting.sample_action(acting.action_distribution(actor, state, goal), noise)[0]

    def _score(self, encoders: Any, rows: jax.Array) -> jax.Array:
        spec = self._spec
        state, action, goal = jnp.split(rows, (spec.state_dim, spec.state_dim + spec.action_dim), axis=1)
        params = PolicyParams(self._params.actor, *encoders)
        return acting.score(params, state, action, goal=goal, energy=spec.energy)[:, None]

    def _split(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        state_dim = self._spec.state_dim
        return rows[:, :state_dim], rows[:, state_dim : state_dim + self._spec.goal_dim]

    def _noise(self, draw: jax.Array) -> jax.Array:
        """Standard normal [action_dim] from the four integers of one row; Threefry, whatever JAX's default is."""
        key = jax.random.wrap_key_data(draw[1::-1], impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, draw[2]), draw[3])
        return jax.random.normal(key, (self._spec.action_dim,))


def draw_columns(seed: int, *, rows: int, candidates: int) -> np.ndarray:
    """The draw columns [rows * candidates, 4] float32 of a call: all candidates of its first row, then the next.

    Args:
        seed: the caller's, 64 bits.
    """
    columns = np.empty((rows, candidates, _DRAW_COLUMNS), np.uint32)
    columns[..., 0], columns[..., 1] = seed & 0xFFFFFFFF, seed >> 32
    columns[..., 2] = np.arange(rows)[:, None]
    columns[..., 3] = np.arange(candidates)
    return columns.reshape(-1, _DRAW_COLUMNS).view(np.float32)
