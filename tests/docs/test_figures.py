"""Every measured figure in README, docs/ and benchmarks/results is the one in its record."""

import re
from collections.abc import Callable

import pytest

from tests.docs import figures, figures_of_exchange, figures_of_gpu, figures_of_serving, figures_of_training

ALL = (*figures_of_training.ALL, *figures_of_serving.ALL, *figures_of_gpu.ALL, *figures_of_exchange.ALL)
PAGES = ["docs/results.md", *sorted(f"benchmarks/results/{path.name}" for path in figures.RESULTS.glob("*.md"))]


def words(text: str) -> str:
    """Collapse white space, so that line breaks do not matter."""
    return " ".join(text.split())


@pytest.mark.parametrize("texts", ALL, ids=lambda texts: f"{texts.__module__.rpartition('_')[2]}-{texts.__name__}")
def test_the_pages_hold_the_recorded_figures(texts: Callable[[], figures.Texts]) -> None:
    missing = [
        f"{page} needs: {text}" for page, text in texts() if words(text) not in words((figures.ROOT / page).read_text())
    ]
    assert not missing, "\n" + "\n".join(missing)


@pytest.mark.parametrize("page", PAGES)
def test_a_row_of_a_table_is_checked_or_its_section_says_that_there_is_no_record(page: str) -> None:
    texts = [words(text) for function in ALL for where, text in function() if where == page]
    unchecked: list[str] = []
    for section in re.split(r"^#+ ", (figures.ROOT / page).read_text(), flags=re.MULTILINE):
        tables = [match.splitlines()[2:] for match in re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)]
        lines = [words(line) for table in tables for line in table]
        if "no record" not in words(section):
            unchecked += [line for line in lines if not any(text in line for text in texts)]
    assert not unchecked, "\n" + "\n".join(unchecked)
