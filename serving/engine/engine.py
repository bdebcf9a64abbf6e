"""Engine: the compiled functions of one policy, one for each kind of work and each batch size.

There are four kinds of work. A row of each consists of float32 columns:

    ACT      state, goal            -> the deterministic action
    SAMPLE   state, goal, noise     -> a sampled action
    BEST_OF  state, goal, noise     -> a sampled action, and its energy by the critic
    SCORE    state, action, goal    -> the energy of the action by the critic

A policy without a critic has neither BEST_OF nor SCORE. An action of a policy with `action_chunk` above 1 is a chunk:
chunk_dim = action_chunk * action_dim values.

The noise columns hold four unsigned integers in the bits of four float32 values (see `noise_columns`). Only they
determine the noise, so a row gets the same sample in every batch. A batch is padded to the next compiled size, its
bucket, so nothing is compiled for a request. The parameters are put on the device once.

On a CPU, the calling thread computes a batch on one core, and several threads can compute at the same time (see
`serving.engine.cpu_device`). An accelerator computes one batch at a time.
"""

import bisect
import enum
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from policy import acting
from policy.networks import PolicyParams
from policy.spec import PolicySpec
from serving.engine import compiler_threads
from serving.engine.cpu_device import aligned_zeros, available_cores, is_aligned
from serving.engine.devices import find_device

_NOISE_COLUMNS = 4  # low and high half of the seed; number of the row in its call; number of the candidate
_LATEST_WEIGHT = 0.1  # of the latest run in the exponential mean of a bucket's time
_MOST_OF_MEAN = 4.0  # that a run counts with: a process that was paused says nothing about the next run
_CPU_FULL_ROWS = 64  # on one core, the time per row does not fall in larger batches
_CPU_MAX_ROWS = 1024  # on one core, a larger batch is no faster per row and delays other requests


class Kind(enum.Enum):
    """A kind of work. All rows of a batch are of one kind."""

    ACT = "act"
    SAMPLE = "sample"
    BEST_OF = "best_of"
    SCORE = "score"

    __hash__ = object.__hash__  # faster than that of enum, which hashes the name in Python at every lookup

    @property
    def needs_critic(self) -> bool:
        """Whether only a policy with a critic can do it."""
        return self in (Kind.BEST_OF, Kind.SCORE)


class BatchEngine(Protocol):
    """What the batcher needs of an engine. `compute` may raise any exception."""

    @property
    def max_rows(self) -> int:
        """Most rows in one call of `compute`."""
        ...

    @property
    def full_rows(self) -> int:
        """Rows of a full batch: with more rows, the time per row does not fall."""
        ...

    @property
    def max_concurrency(self) -> int:
        """The number of threads that may call `compute` at the same time."""
        ...

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        """Return the results [rows, results of the kind] of `rows: [rows, columns of the kind]`."""
        ...

    def padding(self, kind: Kind, rows: int) -> int:
        """Return how many rows are added to `rows` to fill the bucket."""
        ...

    def expected_s(self, kind: Kind, rows: int) -> float:
        """Return how many seconds a call of `compute` with `rows` rows should take."""
        ...


class Executable(NamedTuple):
    """A compiled function, and the parameters that it needs, on the device."""

    kind: Kind
    bucket: int
    call: jax.stages.Compiled
    arrays: list[jax.Array]  # a flat list, because JAX compares the structure of a tree in every call
    seconds: float  # that a run takes


class Engine:
    """The compiled functions of one policy, by kind and bucket. Up to `max_concurrency` threads may call `compute`.

    ACT has a bucket for every power of two. SAMPLE and SCORE have buckets for powers of four and for `max_rows` only,
    because each bucket takes time to compile. BEST_OF runs SAMPLE, then SCORE. Without a critic, SCORE has no buckets.

    Buckets can be added while others are in use. Until all are there, rows use the next larger one that is, and
    `max_rows` is the largest that every kind has.

    Args:
        params: of the policy.
        spec: its sizes and its energy.
        max_rows: the largest bucket, a power of two; on a CPU, 1024 at most.
        device: that computes, see `find_device`.

    Raises:
        StartupError: there is no such device.
    """

    def __init__(self, params: PolicyParams, spec: PolicySpec, *, max_rows: int, device: str = "") -> None:
        found = find_device(device)
        on_cpu = found.is_calling_thread
        self.max_concurrency = available_cores() if on_cpu else 1
        """The number of threads that may call `compute` at the same time."""
        self.max_rows = min(max_rows, _CPU_MAX_ROWS) if on_cpu else max_rows
        """Most rows in one call of `compute`."""
        self._aligns = on_cpu
        self._most_full_rows = min(max_rows, _CPU_FULL_ROWS) if on_cpu else max_rows
        self.full_rows = self._most_full_rows
        """Rows of a full batch: with more rows, the time per row does not fall."""
        self._spec = spec
        self._params: PolicyParams = jax.device_put(params, found.jax_device)
        self._executables: dict[tuple[Kind, int], Executable] = {}
        self._seconds: dict[tuple[Kind, int], float] = {}  # exponential mean of the times of each
        of_two = tuple(1 << exponent for exponent in range(self.max_rows.bit_length()))
        of_four = tuple(sorted({*of_two[::2], self.max_rows}))
        self.buckets = {Kind.ACT: of_two, Kind.SAMPLE: of_four} | ({Kind.SCORE: of_four} if spec.has_critic else {})
        """The buckets of each kind, whether compiled yet or not."""
        self._bucket_of_rows: dict[Kind, list[int]] = {}  # of the buckets that are compiled
        self._functions: dict[Kind, Callable[[PolicyParams, jax.Array], jax.Array]] = {
            Kind.ACT: self._act,
            Kind.SAMPLE: self._sample,
            Kind.SCORE: self._score,
        }

    @property
    def compilations(self) -> int:
        """Executables compiled so far."""
        return len(self._executables)

    def columns(self, kind: Kind) -> int:
        """Return the number of columns of a row of `kind`."""
        spec = self._spec
        extra = {Kind.ACT: 0, Kind.SAMPLE: _NOISE_COLUMNS, Kind.BEST_OF: _NOISE_COLUMNS, Kind.SCORE: spec.chunk_dim}
        return spec.state_dim + spec.goal_dim + extra[kind]

    def compile(self, kind: Kind, bucket: int) -> None:
        """Build an executable and add it.

        Raises:
            ValueError: `kind` is SCORE, and the policy has no critic.
        """
        self.add(self.build(kind, bucket))

    def build(self, kind: Kind, bucket: int) -> Executable:
        """Compile an executable and run it twice to measure its time; the first run is slower. Changes nothing.

        Raises:
            ValueError: `kind` is SCORE, and the policy has no critic.
        """
        self._require(kind)
        arrays, structure = jax.tree.flatten(_parameters(kind, self._params))
        shape = bucket, self.columns(kind)

        def function(arrays: list[jax.Array], rows: jax.Array) -> jax.Array:
            return self._functions[kind](jax.tree.unflatten(structure, arrays), rows)

        # The probes were computed with this precision. An accelerator's default rounds the factors of a product.
        with jax.default_matmul_precision("highest"), compiler_threads.remembered():
            call = jax.jit(function).lower(arrays, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
        batch, took_s = aligned_zeros(*shape), 0.0
        for _ in range(2):
            began_s = time.perf_counter()
            np.asarray(call(arrays, batch))
            took_s = time.perf_counter() - began_s
        return Executable(kind, bucket, call, arrays, took_s)

    def add(self, built: Executable) -> None:
        """Use an executable from now on. Call it from one thread only: that of the event loop, while serving."""
        kind, bucket = built.kind, built.bucket
        self._executables[kind, bucket] = built
        self._seconds[kind, bucket] = built.seconds
        self._bucket_of_rows[kind] = _bucket_of_rows(self._compiled(kind))
        if kind is Kind.SAMPLE:
            self._bucket_of_rows[Kind.BEST_OF] = self._bucket_of_rows[kind]
        largest = [max(self._compiled(kind), default=0) for kind in self.buckets]
        if all(largest):
            self.max_rows = min(largest)
            self.full_rows = min(self._most_full_rows, self.max_rows)

    def reuse(self, other: "Engine") -> bool:
        """Use the functions that `other` has compiled, if this policy is computed in the same way.

        It is if only the values of its parameters differ. Return whether it is; otherwise nothing changes.
        """
        if self._program() != other._program():
            return False
        for (kind, bucket), executable in list(other._executables.items()):
            arrays = jax.tree.leaves(_parameters(kind, self._params))
            self.add(executable._replace(arrays=arrays, seconds=other._seconds[kind, bucket]))
        return True

    def is_compiled(self, kind: Kind, bucket: int) -> bool:
        """Return whether there is an executable for batches of this kind and size."""
        return (kind, bucket) in self._executables

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        """Return the results [rows, ...] float32 of `rows: [rows, columns(kind)]` float32, at most `max_rows` rows.

        ACT and SAMPLE give [rows, chunk_dim], BEST_OF [rows, chunk_dim + 1] with the energy last, SCORE [rows, 1].

        Raises:
            KeyError: no bucket of the kind has been compiled.
            ValueError: `kind` needs a critic, and the policy has none.
        """
        self._require(kind)
        if kind is not Kind.BEST_OF:
            return self._run(kind, rows)
        state_dim, goal_end = self._spec.state_dim, self._spec.state_dim + self._spec.goal_dim
        action = self._run(Kind.SAMPLE, rows)
        scored = np.concatenate([rows[:, :state_dim], action, rows[:, state_dim:goal_end]], axis=1)
        return np.concatenate([action, self._run(Kind.SCORE, scored)], axis=1)

    def padding(self, kind: Kind, rows: int) -> int:
        """Return how many rows are added to `rows` to fill the bucket."""
        return self._bucket(kind, rows) - rows

    def expected_s(self, kind: Kind, rows: int) -> float:
        """Return how many seconds `compute` should take for `rows` rows: the mean of its recent runs in that bucket.

        A run that took longer than four times the mean counts as four times: one pause of the process changes little.
        """
        if kind is Kind.BEST_OF:
            return self.expected_s(Kind.SAMPLE, rows) + self.expected_s(Kind.SCORE, rows)
        return self._seconds[kind, self._bucket(kind, rows)]

    def _program(self) -> tuple[Hashable, ...]:
        """Return everything that the compiled functions depend on: engines with equal ones can share them."""
        spec = self._spec
        leaves, structure = jax.tree.flatten(self._params)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        sizes = spec.state_dim, spec.goal_dim, spec.action_dim, spec.action_chunk
        return structure, shapes, sizes, spec.energy, tuple(self.buckets.items())

    def _run(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        bucket = self._bucket(kind, len(rows))
        batch = rows
        if bucket > len(rows) or (self._aligns and not is_aligned(rows)):
            batch = aligned_zeros(bucket, rows.shape[1])
            batch[: len(rows)] = rows
        began_s = time.perf_counter()
        executable = self._executables[kind, bucket]
        results = np.asarray(executable.call(executable.arrays, batch))
        took_s = time.perf_counter() - began_s
        mean_s = self._seconds.get((kind, bucket), took_s)
        self._seconds[kind, bucket] = mean_s + _LATEST_WEIGHT * (min(took_s, _MOST_OF_MEAN * mean_s) - mean_s)
        return results[: len(rows)]

    def _bucket(self, kind: Kind, rows: int) -> int:
        """Return the smallest bucket that holds `rows` rows."""
        return self._bucket_of_rows[kind][rows]

    def _compiled(self, kind: Kind) -> list[int]:
        """Return the buckets of `kind` that are compiled, smallest first."""
        return [bucket for bucket in self.buckets[kind] if (kind, bucket) in self._executables]

    def _require(self, kind: Kind) -> None:
        if kind.needs_critic and not self._spec.has_critic:
            raise ValueError(f"{self._spec.name} has no critic, so it has no {kind.name}")

    def _act(self, params: PolicyParams, rows: jax.Array) -> jax.Array:
        state, goal = self._split(rows)
        return acting.act(params, state, goal)

    def _sample(self, params: PolicyParams, rows: jax.Array) -> jax.Array:
        integers = jax.lax.bitcast_convert_type(rows[:, -_NOISE_COLUMNS:], jnp.uint32)
        noise = jax.vmap(lambda row: acting.seeded_noise(row, self._spec.chunk_dim))(integers)
        state, goal = self._split(rows)
        return acting.sample_action(acting.action_distribution(params, state, goal), noise)[0]

    def _score(self, params: PolicyParams, rows: jax.Array) -> jax.Array:
        spec = self._spec
        state, action, goal = jnp.split(rows, (spec.state_dim, spec.state_dim + spec.chunk_dim), axis=1)
        return acting.score(params, state, action, goal=goal, energy=spec.energy)[:, None]

    def _split(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        state_dim = self._spec.state_dim
        return rows[:, :state_dim], rows[:, state_dim : state_dim + self._spec.goal_dim]


def _bucket_of_rows(buckets: Sequence[int]) -> list[int]:
    """Return the smallest bucket that holds 0, 1, 2 ... rows. A list, because every request looks up several."""
    return [buckets[bisect.bisect_left(buckets, rows)] for rows in range(buckets[-1] + 1)]


def _parameters(kind: Kind, params: PolicyParams) -> PolicyParams:
    """Return only the parameters that `kind` needs, because passing an array takes time."""
    unused: Any = {"actor": None} if kind is Kind.SCORE else {"state_action_encoder": None, "goal_encoder": None}
    return params._replace(**unused)


def noise_columns(seed: int, *, rows: int, candidates: int) -> np.ndarray:
    """Return the noise columns [rows * candidates, 4] float32 of a call: all candidates of its first row come first.

    Args:
        seed: of the call, 64 bits.
    """
    columns = np.empty((rows, candidates, _NOISE_COLUMNS), np.uint32)
    columns[..., 0], columns[..., 1] = seed & 0xFFFFFFFF, seed >> 32
    columns[..., 2] = np.arange(rows)[:, None]
    columns[..., 3] = np.arange(candidates)
    return columns.reshape(-1, _NOISE_COLUMNS).view(np.float32)
