"""Helpers that build the sentences and table rows with measured figures from the recorded results.

The texts are in the files `figures_of_*.py`. Each function there yields pairs: a page, and a text that the page must
contain. `test_figures.py` looks for the texts. Line breaks do not matter.

* To reword a sentence, change it in one of those files and in the page.
* After a new measurement, run the test: it prints the texts that the pages need now.
* For a new figure, add a text. A figure without a record is not published.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

Record: TypeAlias = dict[str, Any]
Texts: TypeAlias = Iterator[tuple[str, str]]


def record(name: str) -> Any:
    """Read a record of `benchmarks/results`."""
    return json.loads((RESULTS / name).read_text())


def find(rows: Sequence[Record], **wanted: Any) -> Record:
    """Return the only row with these values."""
    (row,) = (row for row in rows if all(row[name] == value for name, value in wanted.items()))
    return row


def line(*cells: object) -> str:
    """Return one row of a Markdown table; None is an empty cell."""
    return f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |".replace("  ", " ")


def significant(figure: float | None, digits: int = 3) -> str | None:
    """Return the figure with `digits` significant digits and thousands separators; None stays None."""
    if figure is None:
        return None
    rounded = float(f"{figure:.{digits}g}")
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(decimals, 0)}f}"
