"""A server whose engine hangs: `python hanging_server.py FLAGS...`, with the flags of serving/run.py.

A state whose first value is 1000 makes the computation wait for ever, as a device that has failed may do.
"""

import sys
import threading

import numpy as np

from serving import run
from serving.engine.engine import Engine, Kind
from serving.policies import compilation


class HangingEngine(Engine):
    """Computes what the policy gives, until a state asks it to hang."""

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        """Return the results, or never return."""
        if (rows[:, 0] == 1000).any():
            threading.Event().wait()
        return super().compute(kind, rows)


if __name__ == "__main__":
    compilation.Engine = HangingEngine
    sys.exit(run.main())
