import math

import pytest

from serving.batching.batch_delay import Pace


def test_the_busy_share_is_an_exponential_mean_over_a_tenth_of_a_second() -> None:
    pace = Pace(0.001)
    assert pace.busy_share(10.0) == 0
    pace.batch_was_under_way(10.0, 10.1)
    assert pace.busy_share(10.1) == pytest.approx(1 - math.exp(-1))
    assert pace.busy_share(10.2) == pytest.approx((1 - math.exp(-1)) * math.exp(-1))


def test_asking_during_a_batch_counts_it() -> None:
    pace = Pace(0.001)
    pace.batch_was_under_way(10.0, 10.1)
    assert pace.busy_share(10.2, is_busy=True) == pytest.approx(1 - math.exp(-2))
    pace.batch_was_under_way(10.1, 10.3)  # the one that was under way then
    assert pace.busy_share(10.3) == pytest.approx(1 - math.exp(-3))


@pytest.mark.parametrize(("busy_s", "share_of_wait"), [(0.0, 0), (0.05, 0), (0.12, 0.4970), (1.0, 1)])
def test_nobody_waits_before_half_of_the_time_is_busy(busy_s: float, share_of_wait: float) -> None:
    pace = Pace(0.002)
    pace.batch_was_under_way(5.0, 5.0 + busy_s)
    # 0.12 s: (1 - exp(-1.2) - 0.5) / 0.4 = 0.4970
    assert pace.wait_s(5.0 + busy_s, slack_s=1.0) == pytest.approx(0.002 * share_of_wait, abs=1e-6)
    assert pace.wait_s(5.0 + busy_s, slack_s=-1.0) == 0


def test_a_busy_event_loop_is_worth_a_wait_too() -> None:
    cpu_s = 3.0
    pace = Pace(0.002, loop_cpu_s=lambda: cpu_s)
    assert pace.loop_share(10.0) == 0  # nothing is known yet
    cpu_s += 0.03
    assert pace.loop_share(10.01) == 0  # the window is too short to tell
    assert pace.loop_share(10.04) == pytest.approx(0.75)
    cpu_s += 0.001
    assert pace.wait_s(10.05, slack_s=1.0) == pytest.approx(0.002 * (0.75 - 0.5) / 0.4)
    assert pace.wait_s(10.14, slack_s=1.0) == 0  # 1 ms in the last 100
