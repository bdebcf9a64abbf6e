"""The scenarios of `make soak`, in short."""

from pathlib import Path

import grpc
import pytest

from tests.faults import scenarios

pytestmark = pytest.mark.slow


def test_no_accepted_call_is_lost_when_two_servers_are_restarted_in_turn(policies: Path, tmp_path: Path) -> None:
    outcome = scenarios.restart_in_turn(policies, tmp_path, restarts=3)
    assert outcome.answered >= 400  # 100 before the first restart and after each
    assert outcome.refused["draining"] >= 1


def test_a_caller_is_answered_after_a_kill_by_a_server_that_compiles_nothing_anew(
    policies: Path, tmp_path: Path
) -> None:
    """How long it takes depends on the machine; `make soak PARTS=kills` measures it."""
    assert len(scenarios.kill_and_wait(policies, tmp_path, kills=2)) == 2


def test_hostile_messages_leave_the_server_as_it_was(policies: Path, tmp_path: Path) -> None:
    statuses, _ = scenarios.send_hostile_messages(policies, tmp_path, count=3_000, warm_up=1_000)
    assert statuses.total() >= 3_000
    assert statuses[grpc.StatusCode.INVALID_ARGUMENT] > 500


def test_calls_that_are_cancelled_as_soon_as_they_are_open_leave_nothing_behind(policies: Path, tmp_path: Path) -> None:
    statuses, _ = scenarios.open_and_cancel(policies, tmp_path, count=4_000)
    assert statuses.total() == 2_000
    assert statuses[grpc.StatusCode.OK] > 0


def test_twenty_thousand_calls_leave_the_memory_as_it_was(policies: Path, tmp_path: Path) -> None:
    _, growth = scenarios.call_many_times(policies, tmp_path, count=20_000, warm_up=5_000)
    assert growth.after.threads <= growth.before.threads + 16  # pools of gRPC and the allocator grow on busy cores


def test_most_calls_are_answered_beside_a_client_that_floods_the_server(policies: Path, tmp_path: Path) -> None:
    """In 10 s: `make soak PARTS=flood` counts those that are answered within a second."""
    flood = scenarios.call_beside_a_flood(policies, tmp_path, seconds=6, timeout_s=10.0)
    assert len(flood.before) > 3


def test_requests_that_stay_incomplete_are_bounded_and_return_their_memory(policies: Path, tmp_path: Path) -> None:
    """600 MB in all. Without a limit the memory grows by as much. On a busy machine the server looks late."""
    assert scenarios.leave_calls_incomplete(policies, tmp_path, calls=2000, size=300_000, most_mb=400) > 10
