"""An engine that is asked only how long it takes."""

import numpy as np

from serving.engine.engine import Kind


class Timed:
    """Batches of so many rows at the most, full from fewer on, each row of which is expected to take `row_s`."""

    def __init__(self, max_concurrency: int, *, max_rows: int, full_rows: int, row_s: float = 0.1) -> None:
        self.max_concurrency = max_concurrency
        self.max_rows = max_rows
        self.full_rows = full_rows
        self.row_s = row_s

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("nothing is computed here")

    def padding(self, kind: Kind, rows: int) -> int:
        return 0

    def expected_s(self, kind: Kind, rows: int) -> float:
        assert 1 <= rows <= self.max_rows
        return self.row_s * rows
