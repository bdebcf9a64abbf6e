"""How long the parts of a run take, and what follows from it: when to evaluate, when to end, how much time is left."""

import collections
import math
from collections.abc import Callable
from typing import Literal

from training.config import TrainConfig

SLICE_S = 5.0  # gradient steps between two looks at the clock and at signals
_REMEMBERED = 3  # measurements of each part
_DISK_BYTES_PER_S = 1e8  # for a snapshot, until one was timed
_FIRST_PUBLICATION_S = 2.0
_SNAPSHOT_SHARE = 0.1  # of the time, at most, for the snapshots between evaluations

# snapshot: one alone; keep: one with a publication; references: an evaluation of the reference policies
Part = Literal["collect", "update", "evaluate", "snapshot", "keep", "references"]


class TimeBudget:
    """Seconds of one unroll, one gradient step, one evaluation, and one snapshot with its publication.

    The first measurement of a part is replaced by the second one: the first run of a program is often much slower.

    Args:
        clock: seconds that never go back.
        began: when the command started, by `clock`.
        earlier_s: seconds of the processes that this run resumes.
        earlier_eval_s: of these, what evaluations took.
        snapshot_bytes: size of one snapshot.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        clock: Callable[[], float],
        began: float,
        earlier_s: float = 0.0,
        earlier_eval_s: float = 0.0,
        snapshot_bytes: int = 0,
    ) -> None:
        self._config, self._clock, self._began = config, clock, began
        self._earlier_s, self._eval_s, self._snapshot_bytes = earlier_s, earlier_eval_s, snapshot_bytes
        self._measured: dict[Part, collections.deque[tuple[float, int]]] = {}
        self._records: collections.Counter[Part] = collections.Counter()
        self._saved = clock()  # when the last snapshot was complete

    def record(self, part: Part, seconds: float, *, count: int = 1) -> None:
        """Note that `count` occurrences of `part` took `seconds` together."""
        measured = self._measured.setdefault(part, collections.deque(maxlen=_REMEMBERED))
        if self._records[part] == 1:
            measured.clear()
        measured.append((seconds, count))
        self._records[part] += 1
        if part in {"evaluate", "keep", "references"}:
            self._eval_s += seconds
        if part == "snapshot":
            self._saved = self._clock()

    @property
    def total_s(self) -> float:
        """Seconds of the run so far, with the time before a resume."""
        return self._earlier_s + self._clock() - self._began

    @property
    def eval_share(self) -> float:
        """Fraction of the run's time that evaluations took, with their snapshots and publications."""
        return self._eval_s / self.total_s if self.total_s > 0 else 0.0

    @property
    def evaluation_s(self) -> float:
        """Seconds that the next evaluation takes, with its snapshot and publication.

        Before the first one, an upper bound: the time of as many steps in an unroll.
        """
        config = self._config
        rows = config.eval_episodes * config.episode_length / config.steps_per_iteration
        evaluate = self._longest("evaluate", otherwise=rows * self._longest("collect"))
        keep = self._longest("keep", otherwise=_FIRST_PUBLICATION_S + self._snapshot_bytes / _DISK_BYTES_PER_S)
        return evaluate + keep

    @property
    def may_evaluate(self) -> bool:
        """Whether an evaluation now, and the last one, take at most `max_eval_share` of the run's time.

        The first two evaluations of a process are always allowed. What they take cannot be derived from unrolls: a step
        of few environments costs several times as much as one of many. The first snapshot and publication take seconds
        longer than all others.
        """
        share = self._config.max_eval_share
        if share >= 1 or self._records["evaluate"] < 2:
            return True
        return self._eval_s + 2 * self.evaluation_s <= share * (self.total_s + self.evaluation_s)

    @property
    def snapshot_due(self) -> bool:
        """Whether `snapshot_minutes` have passed since the last snapshot, and another one fits before the last
        evaluation.

        If snapshots take long, they come less often: they take at most a tenth of the time.
        """
        took_s = self._longest("snapshot", otherwise=self._snapshot_bytes / _DISK_BYTES_PER_S)
        interval_s = max(self._config.snapshot_minutes * 60, took_s / _SNAPSHOT_SHARE)
        return self._clock() - self._saved >= interval_s and self._left_to_train_s > took_s

    @property
    def may_measure_references(self) -> bool:
        """Whether one more evaluation now, without a snapshot, fits into `max_eval_share` and before the last one."""
        share, seconds = self._config.max_eval_share, self._longest("evaluate")
        affordable = share >= 1 or self._eval_s + seconds <= share * (self.total_s + seconds)
        return affordable and seconds <= self._left_to_train_s

    def time_is_up(self, *, pending_updates: int) -> bool:
        """Return whether `max_minutes` would pass during the next unroll and gradient step, and the last evaluation."""
        following = self._longest("update") + (0.0 if pending_updates else self._longest("collect"))
        return self._left_to_train_s < following

    def slice_updates(self, pending_updates: int) -> int:
        """Return how many of `pending_updates` gradient steps to take before the next look at the clock.

        The first slice of a process is one step, to learn how long it takes.
        """
        if "update" not in self._measured:
            return 1
        seconds = self._usual("update")
        if seconds <= 0:
            return pending_updates
        return max(1, min(pending_updates, int(min(SLICE_S, self._left_to_train_s) / seconds)))

    @property
    def knows_updates(self) -> bool:
        """Whether enough gradient steps of this process were timed for a forecast, without the first ones."""
        return self._records["update"] > _REMEMBERED

    @property
    def steps_per_s(self) -> float | None:
        """Environment steps per second of training, gradient steps included once they have begun.

        None until this process has timed a second unroll, and while only the first gradient step was timed.
        """
        seconds = self._iteration_s
        known = seconds > 0 and self._records["collect"] > 1 and self._records["update"] != 1
        return self._config.steps_per_iteration / seconds if known else None

    def left_s(self, *, done: int, pending_updates: int) -> float | None:
        """Return about how many seconds the run still takes; None before the second slice of gradient steps.

        Args:
            done: iterations that have begun.
            pending_updates: gradient steps of the last of them that are not taken yet.
        """
        if self._records["update"] < 2:
            return None
        return min(self.to_the_end_s(done=done, pending_updates=pending_updates), self.limit_left_s)

    @property
    def limit_left_s(self) -> float:
        """Seconds until `max_minutes` have passed; infinity without a limit."""
        return max(0.0, self._limit_s - self._since_start_s)

    def to_the_end_s(self, *, done: int, pending_updates: int) -> float:
        """Return about how many seconds the rest of the run takes without a time limit. Arguments as for `left_s`."""
        config = self._config
        iterations = config.iterations - done
        training = iterations * self._iteration_s + pending_updates * self._usual("update")
        each = self._usual("evaluate") + self._usual("keep")
        evaluating = math.ceil(iterations / config.iterations_per_epoch) * each
        if config.max_eval_share < 1:
            evaluating = min(evaluating, each + training * config.max_eval_share / (1 - config.max_eval_share))
        return training + evaluating

    @property
    def _iteration_s(self) -> float:
        return self._usual("collect") + self._config.updates_per_unroll * self._usual("update")

    @property
    def _limit_s(self) -> float:
        return self._config.max_minutes * 60

    @property
    def _since_start_s(self) -> float:
        """Seconds that count towards `max_minutes`: of this process, with `resume` auto of all processes."""
        earlier_s = self._earlier_s if self._config.resume == "auto" else 0.0
        return earlier_s + self._clock() - self._began

    @property
    def _left_to_train_s(self) -> float:
        """Seconds until the last evaluation must begin."""
        return self._limit_s - self._since_start_s - self.evaluation_s

    def _longest(self, part: Part, *, otherwise: float = 0.0) -> float:
        return max(seconds / count for seconds, count in self._measured.get(part, ((otherwise, 1),)))

    def _usual(self, part: Part) -> float:
        measured = self._measured.get(part, ((0.0, 1),))
        return sum(seconds for seconds, _ in measured) / sum(count for _, count in measured)


def in_words(seconds: float) -> str:
    """Return a duration with the unit that fits it: 42 s, 3 min 20 s, 2 h 5 min or 3.2 days."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{seconds / 86_400:.1f} days"
