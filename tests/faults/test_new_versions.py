"""New versions, sound and damaged, while servers serve and start; and the time of a rollback."""

from pathlib import Path

import pytest

from tests.faults import new_versions
from tests.faults.bundle_mutator import file_mutants, one_of_each_kind

pytestmark = pytest.mark.slow


def test_damaged_versions_are_refused_once_while_the_live_one_answers(policies: Path, tmp_path: Path) -> None:
    mutants = one_of_each_kind(policies / "1000")
    waiting = [each for each in file_mutants(policies / "1000") if each.name in new_versions.INCOMPLETE]
    assert len(waiting) == 2
    reasons, outcome = new_versions.publish_mutants(policies, tmp_path, [*mutants, *waiting])
    assert reasons.total() == len(mutants)
    assert outcome.answered >= 20


def test_servers_that_start_while_versions_are_published_serve_the_newest(tmp_path: Path) -> None:
    new_versions.publish_while_starting(tmp_path, starts=3, versions=6)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rollback_takes_a_fraction_of_the_time_of_loading(policies: Path, tmp_path: Path, workers: int) -> None:
    """Milliseconds, as `make soak PARTS=rollbacks` measures. The fastest of five, since others use the cores too."""
    rollbacks = new_versions.roll_back(policies, tmp_path, workers=workers, times=5)
    assert min(rollbacks.taken_s) < rollbacks.loading_s, rollbacks
