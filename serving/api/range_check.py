"""RangeCheck: what happens to a request whose state is far from those that the policy saw in training."""

import numpy as np

from serving.errors import OutOfRangeError
from serving.policies.registry import ServedPolicy
from serving.telemetry.metrics import Metrics


class RangeCheck:
    """Finds and counts requests with a state out of range. One that is rejected for load does not count.

    Args:
        metrics: count them.
        refuses: whether they are refused; otherwise their replies are flagged.
    """

    def __init__(self, metrics: Metrics, *, refuses: bool) -> None:
        self._metrics = metrics
        self._refuses = refuses

    def is_out_of_range(self, served: ServedPolicy, state: np.ndarray) -> bool:
        """Return whether a state of `state: [rows, state_dim]` is out of the range that `served` saw in training.

        Raises:
            OutOfRangeError: it is, and such requests are refused. The request is counted.
        """
        if served.seen_range.contains(state):
            return False
        if self._refuses:
            self.count(served)
            raise OutOfRangeError(served.seen_range.complaint(state))
        return True

    def count(self, served: ServedPolicy) -> None:
        """Count an admitted request for which `is_out_of_range` returned True."""
        self._metrics.out_of_range.labels(served.name).inc()
