"""Shadow: what another version would have done, for a sample of the rows that the live version answers.

Its actions are never sent. How far they are from the live ones is a metric. They are computed in a thread of the lowest
priority, one sample at a time. While that thread computes, or while rows wait for the live version, further samples are
dropped, so a shadow takes only time that is left over.
"""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from serving.engine.engine import BatchEngine, Kind
from serving.engine.thread_priority import run_in_background
from serving.errors import shortage
from serving.telemetry.metrics import ShadowMetrics

_LOGGER = logging.getLogger(__name__)


class Shadow:
    """A version whose actions are compared with those of the live one.

    Args:
        engine: of the version.
        name: of the policy and the version, for the log.
        share: of the rows that are compared, above 0 and at most 1.
        is_busy: whether the live version has no time to spare.
        metrics: of the policy.
        random: decides which rows are compared; None: differently in every process.
    """

    def __init__(
        self,
        engine: BatchEngine,
        *,
        name: str,
        share: float,
        is_busy: Callable[[], bool],
        metrics: ShadowMetrics,
        random: np.random.Generator | None = None,
    ) -> None:
        self._engine = engine
        self._name = name
        self._share = share
        self._is_busy = is_busy
        self._metrics = metrics
        self._random = random or np.random.default_rng()
        self._computing: asyncio.Task[None] | None = None
        self._has_failed = False

    def sample(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the numbers of the rows of `rows: [rows, state_dim + goal_dim]` to compare; None: none of them."""
        chosen = np.flatnonzero(self._random.random(len(rows)) < self._share)
        return chosen if chosen.size else None

    def compare(self, rows: np.ndarray, actions: np.ndarray) -> None:
        """Compare the live version's answers with those of this version, if there is time.

        Args:
            rows: [rows, state_dim + goal_dim] float32.
            actions: [rows, chunk_dim] float32, those of the live version.
        """
        if self._computing or self._is_busy():
            self._metrics.count_dropped(len(rows))
            return
        most = self._engine.max_rows
        self._metrics.count_dropped(max(0, len(rows) - most))
        self._computing = asyncio.create_task(self._compare(rows[:most], actions[:most]))

    async def _compare(self, rows: np.ndarray, actions: np.ndarray) -> None:
        try:
            found = await run_in_background(self._engine.compute, Kind.ACT, rows)
        except Exception as error:
            self._fail(len(rows), f"the computation failed: {shortage(error) or error!s:.200}")
        else:
            distances = np.abs(found - actions).max(axis=1)
            is_finite = np.isfinite(distances)
            self._metrics.observe(distances[is_finite].tolist())
            if not is_finite.all():
                self._fail(int((~is_finite).sum()), "an action is NaN or infinite")
        finally:
            self._computing = None

    def _fail(self, rows: int, problem: str) -> None:
        self._metrics.count_failed(rows)
        if not self._has_failed:
            self._has_failed = True
            _LOGGER.warning("the shadow %s gave no action: %s; further failures are only counted", self._name, problem)
