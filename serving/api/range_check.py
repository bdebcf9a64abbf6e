"""RangeCheck: what happens to a request whose state is far from those that the policy saw in training."""

import numpy as np

from serving.errors import OutOfRangeError
from serving.policies.registry import ServedPolicy
from serving.telemetry.metrics import Metrics


class RangeCheck:
    """Finds and counts requests with a state out of range.

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
            OutOfRangeError: it is, and such requests are refused.
        """
        if served.seen_range.contains(state):
            return False
        self._metrics.out_of_range.labels(served.name).inc()
        if self._refuses:
            raise OutOfRangeError(f"{served.seen_range.complaint(state)}; send a state of the kind that it saw")
        return True
