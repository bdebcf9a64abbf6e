"""The batches of one policy that are being computed now."""

import dataclasses
import math
from collections.abc import Sequence

from serving.batching.queue import RowSlice
from serving.engine.engine import Kind


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class InFlightBatch:
    """One batch that is being computed; compared by identity."""

    kind: Kind
    rows: int
    dispatched_s: float
    expected_end_s: float
    slices: Sequence[RowSlice] = ()


class InFlightBatches:
    """All batches that are being computed. It has no clock; the caller passes the time."""

    def __init__(self) -> None:
        self._batches: set[InFlightBatch] = set()
        self.last_end_s = -math.inf
        """When a batch ended last; minus infinity if none has."""

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: InFlightBatch) -> None:
        """Add a batch that was dispatched."""
        self._batches.add(batch)

    def remove(self, batch: InFlightBatch, *, now_s: float) -> None:
        """Remove a batch that has ended."""
        self._batches.remove(batch)
        self.last_end_s = now_s

    def slices(self) -> list[RowSlice]:
        """Return the row slices of all batches."""
        return [part for batch in self._batches for part in batch.slices]

    def remaining_s(self, now_s: float) -> float:
        """Return how many seconds one thread would need to finish all batches."""
        return sum(max(batch.expected_end_s - now_s, 0.0) for batch in self._batches)

    def largest_rows(self, kind: Kind) -> int:
        """Return the rows of the largest batch of `kind`; 0 if there is none."""
        return max((batch.rows for batch in self._batches if batch.kind is kind), default=0)

    @property
    def next_end_s(self) -> float:
        """When the next batch is expected to end; minus infinity if there is none."""
        return min((batch.expected_end_s for batch in self._batches), default=-math.inf)
