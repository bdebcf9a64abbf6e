"""The batches of one policy that are being computed, and whether another is worth beginning beside them.

An engine on a CPU computes as many batches at once as there are cores, one less while the event loop is so busy that it
needs a core too: batches that shared one with it would all be late. Rows that wait a moment longer share a batch and
cost less each, so a free core alone is no reason to begin: there must be enough rows, or a batch under way that the
first of them would wait for too long.
"""

import dataclasses
import math
from collections.abc import Callable

from serving.engine.engine import BatchEngine, Kind

_PATIENCE = 8  # times what one row takes: nobody waits so long for a batch under way to end, if a core is free
_BUSY_SHARE = 0.5  # of the time; an event loop that computes for longer needs a core
_ASK_AGAIN_S = 0.02  # after which the event loop may be less busy
_OVERDUE_S = 0.02  # a thread that gives way often ends a little later than it should


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class InFlightBatch:
    """One batch that is being computed; compared by identity."""

    kind: Kind
    rows: int
    began_s: float
    ends_s: float  # when it should


class InFlightBatches:
    """It has no clock: whoever asks says what time it is.

    Args:
        engine: tells how many max_concurrency there are, and how long a batch takes.
        loop_share: of the time that the event loop computes, 0 to 1, by the time of asking.
    """

    def __init__(self, engine: BatchEngine, *, loop_share: Callable[[float], float]) -> None:
        self._engine = engine
        self._loop_share = loop_share
        self._under_way: set[InFlightBatch] = set()

    def __len__(self) -> int:
        return len(self._under_way)

    def number(self, now_s: float) -> int:
        """InFlightBatches that may be in use now, at least one."""
        return max(1, self._engine.max_concurrency - (self._loop_share(now_s) > _BUSY_SHARE))

    def begin(self, kind: Kind, rows: int, *, now_s: float) -> InFlightBatch:
        """A batch of `rows` is under way, until `end` is told so."""
        batch = InFlightBatch(kind, rows, began_s=now_s, ends_s=now_s + self._engine.expected_s(kind, rows))
        self._under_way.add(batch)
        return batch

    def end(self, batch: InFlightBatch) -> None:
        """`batch` is not under way any more."""
        self._under_way.remove(batch)

    def left_s(self, now_s: float) -> float:
        """Seconds that one lane needs for what is under way on all of them."""
        return sum(max(batch.ends_s - now_s, 0.0) for batch in self._under_way)

    def company(self, kind: Kind) -> int:
        """Rows of the largest batch of this kind under way; 0 if there is none."""
        return max((batch.rows for batch in self._under_way if batch.kind is kind), default=0)

    def free(self, now_s: float) -> int:
        """InFlightBatches that may begin a batch now; not above 0: none."""
        return self.number(now_s) - len(self._under_way)

    @property
    def next_end_s(self) -> float:
        """When the first of the batches under way should end; long ago if there is none."""
        return min((batch.ends_s for batch in self._under_way), default=-math.inf)

    def enough_rows(self, now_s: float) -> float:
        """How many rows must wait for another batch to be worth beginning; infinite: no lane is free."""
        if self.free(now_s) <= 0:
            return math.inf
        is_near = -self._delay_s() <= self.next_end_s - now_s <= self._patience_s()
        return self._engine.full_rows if is_near else 1

    def ask_again_s(self, now_s: float) -> float:
        """Seconds after which `enough_rows` may be fewer though no batch has ended; infinite: it will not be."""
        if len(self._under_way) >= self._engine.max_concurrency:
            return math.inf
        if self.free(now_s) <= 0:
            return _ASK_AGAIN_S
        return max(0.0, self.next_end_s + self._delay_s() - now_s)

    def _patience_s(self) -> float:
        """How long rows wait for a batch to end that is as fast as it should be."""
        return _PATIENCE * self._engine.expected_s(Kind.ACT, 1)

    def _delay_s(self) -> float:
        """How long they wait besides for one that is not."""
        return max(_OVERDUE_S, self._patience_s())

    def most_rows(self, waiting: int, *, now_s: float) -> int:
        """Rows that the next batch may hold if so many wait: as many for every free lane, if that loses nothing."""
        share = max(1, waiting // max(1, self.free(now_s)))
        return min(self._engine.max_rows, max(self._engine.full_rows, 1 << (share.bit_length() - 1)))
