"""What responses of the Python client derive from their fields."""

from __future__ import annotations  # for Python 3.9

import dataclasses

import pytest

import kilolayer


def test_the_time_of_the_server_and_the_rest_of_the_round_trip_are_durations(client: kilolayer.PolicyClient) -> None:
    action = dataclasses.replace(client.act([0, 0, 0], [0, 0]), queue_us=2000, compute_us=500, round_trip_s=0.004)
    assert action.server_s == pytest.approx(0.0025)
    assert action.overhead_s == pytest.approx(0.0015)
    assert dataclasses.replace(action, round_trip_s=0.002).overhead_s == 0  # a clock may tick more slowly
    score = client.score([0, 0, 0], [0, 0], goal=[0, 0])
    assert score.server_s == pytest.approx(77e-6)  # the server's 33 + 44 us
