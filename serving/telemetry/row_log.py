"""RowLog: writes a sample of the answered rows into files, without delaying any answer.

The event loop decides for each row whether it belongs to the sample, and puts the rows of an answered request into a
queue. A thread takes them from there, collects those of one version of one policy, and writes a file when it has enough
for one, or after a minute. The queue has a limit of bytes: rows beyond it are dropped and counted, as are rows that
cannot be written. `serving.telemetry.row_files` says what a file holds.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np

from policy.spec import PolicySpec
from serving.telemetry.metrics import Metrics
from serving.telemetry.row_files import AnsweredRows, FileRows, RowFolder

_LOGGER = logging.getLogger(__name__)
_MAX_AGE_S = 60.0  # of rows that wait for more rows of their file
_WARNING_S = 60.0  # at least, between two warnings
_MAX_QUEUED_BYTES = 2**24
_REQUEST_BYTES = 500  # about what a request takes in memory in addition to its arrays
_CLOSE_S = 5.0  # for a disk that does not answer
_QUEUE_FULL, _WRITE_FAILED = "queue_full", "write_failed"  # reasons of dropped rows
_FIRST = np.zeros(1, np.intp)


class RowLog:
    """A sample of the answered rows.

    Args:
        folder: for the files.
        share: of the rows, in (0, 1].
        metrics: count rows that are written or dropped.
        random: decides which rows belong to the sample; None: differently in every process.
        clock: monotonic seconds.
        wall_clock: Unix time in seconds.
    """

    def __init__(
        self,
        folder: RowFolder,
        *,
        share: float,
        metrics: Metrics,
        random: np.random.Generator | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._share = share
        self._metrics = metrics
        self._random = random or np.random.default_rng()
        self._clock = clock
        self._wall_clock = wall_clock
        self._writer = RowWriter(folder, metrics)
        self._queue: SimpleQueue[AnsweredRows | None] = SimpleQueue()
        # Each changes in one thread only, so there is no lock.
        self._put_bytes = 0
        self._taken_bytes = 0
        self._thread = Thread(target=self._run, name="row log", daemon=True)
        self._thread.start()

    def sample(self, spec: PolicySpec, version: str, *, inputs: np.ndarray, robot_id: str) -> "RowSample | None":
        """Decide which rows of an admitted request belong to the sample. Return them; None: none of them.

        Args:
            spec: of the policy.
            version: of the policy.
            inputs: [rows, state_dim + goal_dim or more], states and goals side by side.
            robot_id: of the request; empty: none.
        """
        if len(inputs) == 1:  # the common case is fast
            if self._random.random() >= self._share:
                return None
            chosen = _FIRST
        else:
            (chosen,) = np.nonzero(self._random.random(len(inputs)) < self._share)
            if not chosen.size:
                return None
        return RowSample(self, spec, version, chosen, inputs[chosen], robot_id)

    def put(self, sample: "RowSample", action: np.ndarray) -> None:
        """Write these rows, which have just been answered, some time later.

        Args:
            sample: the rows.
            action: [rows of the sample, chunk_dim].
        """
        spec, inputs = sample.spec, sample.inputs
        rows = AnsweredRows(
            spec.name,
            sample.version,
            inputs[:, : spec.state_dim],
            inputs[:, spec.state_dim : spec.state_dim + spec.goal_dim],
            action.reshape(len(action), spec.action_chunk, spec.action_dim),
            sample.robot_id,
            self._wall_clock(),
        )
        size = rows.nbytes + _REQUEST_BYTES
        if self._put_bytes - self._taken_bytes + size > _MAX_QUEUED_BYTES:
            self._metrics.dropped_log_rows.labels(_QUEUE_FULL).inc(len(inputs))
            return
        self._put_bytes += size
        self._queue.put(rows)

    def close(self) -> None:
        """Write the rows that were put, and end the thread. A disk that does not answer delays it by 5 s at most."""
        self._queue.put(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            _LOGGER.warning("sampled rows are still being written after %g s; the last ones are lost", _CLOSE_S)

    def _run(self) -> None:
        while True:
            now_s = self._clock()
            self._writer.write_older_than(now_s - _MAX_AGE_S, now_s)
            with contextlib.suppress(Empty):
                rows = self._queue.get(timeout=_MAX_AGE_S / 4)
                if rows is None:
                    break
                self._taken_bytes += rows.nbytes + _REQUEST_BYTES
                self._writer.add(rows, self._clock())
        self._writer.write_all(self._clock())


class RowSample(NamedTuple):
    """The rows of one admitted request that belong to the sample."""

    log: RowLog
    spec: PolicySpec
    version: str
    chosen: np.ndarray  # their numbers in the request
    inputs: np.ndarray  # their states and goals, as for `RowLog.sample`, copied
    robot_id: str

    def answered(self, action: np.ndarray) -> None:
        """Hand the rows to the log, now that the request is answered with `action: [rows, chunk_dim]`."""
        self.log.put(self, action[self.chosen])


class RowWriter:
    """Collects rows and writes them into files. It has no thread and no clock.

    Args:
        folder: for the files.
        metrics: count rows that are written or dropped.
    """

    def __init__(self, folder: RowFolder, metrics: Metrics) -> None:
        self._folder = folder
        self._metrics = metrics
        self._collected: dict[tuple[str, str], FileRows] = {}  # by policy and version
        self._quiet_until_s = float("-inf")

    def add(self, rows: AnsweredRows, now_s: float) -> None:
        """Collect `rows`, and write those that fill a file."""
        row_bytes = FileRows(now_s).bytes_with(rows.part(0, 1))
        step = max(1, self._folder.max_file_bytes // row_bytes)
        for start in range(0, len(rows.state), step):
            self._add_part(rows.part(start, start + step), now_s)

    def write_older_than(self, since_s: float, now_s: float) -> None:
        """Write the rows that have waited since `since_s` or longer."""
        for key in [key for key, collected in self._collected.items() if collected.since_s <= since_s]:
            self._write(key, now_s)

    def write_all(self, now_s: float) -> None:
        """Write all rows."""
        self.write_older_than(float("inf"), now_s)

    def _add_part(self, rows: AnsweredRows, now_s: float) -> None:
        key = rows.policy, rows.version
        collected = self._collected.setdefault(key, FileRows(now_s))
        if collected.count and collected.bytes_with(rows) > self._folder.max_file_bytes:
            self._write(key, now_s)
            collected = self._collected.setdefault(key, FileRows(now_s))
        collected.append(rows)

    def _write(self, key: tuple[str, str], now_s: float) -> None:
        collected = self._collected.pop(key)
        try:
            self._folder.write(collected.requests)
        except Exception as error:  # not only OSError: whatever is wrong with the sample, serving goes on
            self._metrics.dropped_log_rows.labels(_WRITE_FAILED).inc(collected.count)
            self._warn(error, now_s)
        else:
            self._metrics.log_rows.labels(key[0]).inc(collected.count)

    def _warn(self, error: Exception, now_s: float) -> None:
        if now_s < self._quiet_until_s:
            return
        self._quiet_until_s = now_s + _WARNING_S
        _LOGGER.warning(
            "cannot write sampled rows to %s (%s); they are dropped, and kilolayer_dropped_log_rows_total counts them",
            self._folder.path,
            error,
        )
