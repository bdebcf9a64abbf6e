"""Changes of the live version under a steady load: no answer is lost or mixed. `make soak` measures the delays."""

import asyncio
from pathlib import Path

import pytest

from tests.faults import loaded_switches
from tests.faults.steady_load import Answered, Calls, SteadyLoad
from tests.serving.in_process import Running


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_switches_under_load_lose_and_mix_no_answer(tmp_path: Path, workers: int) -> None:
    delays = loaded_switches.switch_often(tmp_path, switches=40, seconds=4.0, workers=workers)
    assert delays.calls > delays.rate_per_s  # in 8 s, some of which a busy machine may take away


@pytest.mark.slow
def test_a_version_of_another_depth_is_taken_up_under_load(tmp_path: Path) -> None:
    delays = loaded_switches.take_up_other_depth(tmp_path, depth=8, seconds=2.0)
    assert delays.calls > delays.rate_per_s / 2


def test_a_steady_load_calls_at_its_rate_and_compares_every_answer(running: Running) -> None:
    async def run() -> Calls:
        async with SteadyLoad(running.address) as load:
            sent = iter(range(20))
            return await load.run(200.0, until=lambda: next(sent, None) is None)

    calls = asyncio.run(run())
    assert (len(calls.answered), calls.failed, calls.wrong) == (20, [], 0)
    due_s = [call.due_s for call in calls.answered]
    assert max(due_s) - min(due_s) == pytest.approx(19 / 200)


def test_percentiles_count_from_the_moment_that_a_call_was_due() -> None:
    calls = Calls([Answered(10.0, 10.0 + number / 1000, "1", (0.0,)) for number in range(101)])
    assert calls.percentile_ms(99) == pytest.approx(99.0)
