"""Engine: what one policy computes, compiled ahead for every batch size that is ever run.

There are four kinds of work, and a row of each is one line of float32 columns:

    ACT    state, goal                      -> the deterministic action
    DRAW   state, goal, draw                -> an action of the stochastic policy
    JUDGE  state, goal, draw                -> such an action, and its energy by the critic
    SCORE  state, action, goal              -> the energy of that action by the critic

`draw` is four unsigned integers in the bits of four float32 columns, see `noise_columns`: they alone decide the noise,
so a row draws the same action whatever batch it lands in. A batch of any size is padded to the next bucket, so nothing
is traced or compiled while serving. The parameters, stacked, are put on the device once and passed to every executable;
one array goes in and one comes out.

On a CPU each batch is computed on one core, by the thread that calls, and as many at once as there are cores (see
`serving.engine.cpu_device`); on an accelerator there is one at a time.
"""

import bisect
import enum
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from policy import acting
from policy.networks import PolicyParams
from policy.spec import PolicySpec
from serving.engine.cpu_device import aligned_zeros, available, calling_thread_device, is_aligned

_NOISE_COLUMNS = 4  # seed, low and high half; number of the row in its call; number of the candidate
_NEWEST_SHARE = 0.1  # of the latest run in the time that a bucket is expected to take
_FULL_ON_A_CORE = 64  # rows; a row of a larger batch takes no less
_MOST_ON_A_CORE = 1024  # rows; a larger batch gains nothing, and others wait for it


class Kind(enum.Enum):
    """What is to be computed; the rows of one batch are all of one kind."""

    ACT = "act"
    SAMPLE = "sample"
    BEST_OF = "best_of"
    SCORE = "score"

    __hash__ = object.__hash__  # there is one of each; the library hashes their names, in Python, at every lookup


class BatchEngine(Protocol):
    """What the batcher needs of an engine; `compute` may raise anything."""

    @property
    def max_rows(self) -> int:
        """Most rows in one call of `compute`."""
        ...

    @property
    def full_rows(self) -> int:
        """Rows from which on more in the same batch save nothing."""
        ...

    @property
    def max_concurrency(self) -> int:
        """How many threads may call `compute` at once."""
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


class _Executable(NamedTuple):
    """A compiled function, and the parameters on the device that it is for."""

    call: jax.stages.Compiled
    params: Any  # as `_parameters` gives them


class Engine:
    """The compiled functions of one policy, by kind and bucket. Up to `max_concurrency` threads may call `compute`.

    ACT has a bucket for every power of two, the others for powers of four, since each bucket costs start-up time.

    Args:
        params: of the policy.
        spec: its sizes and its energy.
        max_rows: the largest bucket that is wanted, a power of two; on a CPU it is no larger than what gains there.
    """

    def __init__(self, params: PolicyParams, spec: PolicySpec, *, max_rows: int) -> None:
        device = calling_thread_device()
        self.max_concurrency = available() if device else 1
        """How many threads may call `compute` at once."""
        self.max_rows = min(max_rows, _MOST_ON_A_CORE) if device else max_rows
        """Most rows in one call of `compute`."""
        self.full_rows = min(max_rows, _FULL_ON_A_CORE) if device else max_rows
        """Rows from which on more in the same batch save nothing."""
        self._spec = spec
        self._params: PolicyParams = jax.device_put(params, device)
        self._executables: dict[tuple[Kind, int], _Executable] = {}
        self._seconds: dict[tuple[Kind, int], float] = {}  # an exponential mean of what each took
        of_two = tuple(1 << exponent for exponent in range(self.max_rows.bit_length()))
        of_four = tuple(sorted({*of_two[::2], self.max_rows}))
        self.buckets = {Kind.ACT: of_two, Kind.SAMPLE: of_four, Kind.SCORE: of_four}
        self._functions: dict[Kind, Callable[[Any, jax.Array], jax.Array]] = {
            Kind.ACT: self._act,
            Kind.SAMPLE: self._draw,
            Kind.SCORE: self._score,
        }

    @property
    def compilations(self) -> int:
        """Executables compiled so far."""
        return len(self._executables)

    def columns(self, kind: Kind) -> int:
        """Columns of a row of this kind."""
        spec = self._spec
        extra = {Kind.ACT: 0, Kind.SAMPLE: _NOISE_COLUMNS, Kind.BEST_OF: _NOISE_COLUMNS, Kind.SCORE: spec.action_dim}
        return spec.state_dim + spec.goal_dim + extra[kind]

    def compile(self, kind: Kind, bucket: int) -> None:
        """Compile an executable, and run it: the first caller pays nothing for being it, and its time is known."""
        own = _parameters(kind, self._params)
        shape = bucket, self.columns(kind)
        # As the probes were computed: an accelerator's default would round inputs of a product to fewer bits.
        with jax.default_matmul_precision("highest"):
            call = jax.jit(self._functions[kind]).lower(own, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
        self._executables[kind, bucket] = _Executable(call, own)
        for _ in range(2):
            self._seconds.pop((kind, bucket), None)  # the first run is slower than any later one
            self._run(kind, np.zeros(shape, np.float32))

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        """The results [rows, ...] float32 of `rows: [rows, columns(kind)]` float32, at most `max_rows` of them.

        ACT and DRAW give [rows, action_dim], JUDGE [rows, action_dim + 1] with the energy last, SCORE [rows, 1].

        Raises:
            KeyError: the bucket that the rows need has not been compiled.
        """
        if kind is not Kind.BEST_OF:
            return self._run(kind, rows)
        state_dim, goal_end = self._spec.state_dim, self._spec.state_dim + self._spec.goal_dim
        action = self._run(Kind.SAMPLE, rows)
        judged = np.concatenate([rows[:, :state_dim], action, rows[:, state_dim:goal_end]], axis=1)
        return np.concatenate([action, self._run(Kind.SCORE, judged)], axis=1)

    def padding(self, kind: Kind, rows: int) -> int:
        """Rows computed besides `rows` and thrown away."""
        return self._bucket(kind, rows) - rows

    def expected_s(self, kind: Kind, rows: int) -> float:
        """Seconds that `compute` should take, going by the last times it ran for as many."""
        if kind is Kind.BEST_OF:
            return self.expected_s(Kind.SAMPLE, rows) + self.expected_s(Kind.SCORE, rows)
        return self._seconds[kind, self._bucket(kind, rows)]

    def _run(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        bucket = self._bucket(kind, len(rows))
        batch = rows
        if bucket > len(rows) or (self.max_concurrency > 1 and not is_aligned(rows)):
            batch = aligned_zeros(bucket, rows.shape[1])
            batch[: len(rows)] = rows
        began_s = time.perf_counter()
        executable = self._executables[kind, bucket]
        results = np.asarray(executable.call(executable.params, batch))
        took_s = time.perf_counter() - began_s
        mean_s = self._seconds.get((kind, bucket), took_s)
        self._seconds[kind, bucket] = mean_s + _NEWEST_SHARE * (took_s - mean_s)
        return results[: len(rows)]

    def _bucket(self, kind: Kind, rows: int) -> int:
        """The smallest bucket that holds `rows`."""
        buckets = self.buckets[Kind.SAMPLE if kind is Kind.BEST_OF else kind]
        return buckets[bisect.bisect_left(buckets, rows)]

    def _act(self, actor: Any, rows: jax.Array) -> jax.Array:
        state, goal = self._split(rows)
        return acting.deterministic_action(actor, state, goal)

    def _draw(self, actor: Any, rows: jax.Array) -> jax.Array:
        draw = jax.lax.bitcast_convert_type(rows[:, -_NOISE_COLUMNS:], jnp.uint32)
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


def _parameters(kind: Kind, params: PolicyParams) -> Any:
    """Only what the kind needs: every array that is passed costs time."""
    return params[1:] if kind is Kind.SCORE else params.actor


def noise_columns(seed: int, *, rows: int, candidates: int) -> np.ndarray:
    """The draw columns [rows * candidates, 4] float32 of a call: all candidates of its first row, then the next.

    Args:
        seed: the caller's, 64 bits.
    """
    columns = np.empty((rows, candidates, _NOISE_COLUMNS), np.uint32)
    columns[..., 0], columns[..., 1] = seed & 0xFFFFFFFF, seed >> 32
    columns[..., 2] = np.arange(rows)[:, None]
    columns[..., 3] = np.arange(candidates)
    return columns.reshape(-1, _NOISE_COLUMNS).view(np.float32)
