"""Reports of episodes by the Python client: what is sent, and what is refused before."""

from __future__ import annotations  # for Python 3.9

from typing import Any

import numpy as np
import pytest

import kilolayer
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy


def test_a_report_has_what_the_server_counts_and_returns_what_became_of_it(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address, policy="ant", robot_id="robot 7", timeout_s=60) as client:
        assert client.report(2**64 - 1, version=200, reached=False, time_at_goal=2**32 - 1) == "accepted"
        fake.report_status = policy_pb2.REPORT_STATUS_DUPLICATE
        assert client.report(0, version="200", reached=True) is kilolayer.ReportStatus.DUPLICATE
        fake.report_status = policy_pb2.REPORT_STATUS_UNKNOWN
        assert client.report(int(np.int64(1)), version="200", reached=bool(np.True_)) is kilolayer.ReportStatus.UNKNOWN
        fake.report_status = policy_pb2.REPORT_STATUS_UNSPECIFIED
        with pytest.raises(kilolayer.BadReply, match="Reply rejected: unknown status 0"):
            client.report(2, version="200", reached=True)
    about: dict[str, Any] = {"policy": "ant", "version": "200", "robot_id": "robot 7"}
    assert fake.reports == [
        policy_pb2.ReportRequest(**about, episode=2**64 - 1, time_at_goal=2**32 - 1),
        policy_pb2.ReportRequest(**about, episode=0, reached=True),
        policy_pb2.ReportRequest(**about, episode=1, reached=True),
        policy_pb2.ReportRequest(**about, episode=2, reached=True),
    ]


@pytest.mark.parametrize(
    ("robot_id", "wrong", "message"),
    [
        ("", {}, "a report needs a robot_id; pass one to the client, which sends it with every act"),
        ("robot 7", {"version": ""}, "a report needs the version that gave the actions; pass Action.version"),
        ("robot 7", {"episode": -1}, r"episode must be an integer from 0 to 18446744073709551615, got -1"),
        ("robot 7", {"time_at_goal": 0.5}, r"time_at_goal must be an integer from 0 to 4294967295, got 0.5"),
    ],
)
def test_a_report_that_cannot_count_is_not_sent(
    address: str, fake: FakePolicy, *, robot_id: str, wrong: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"episode": 1, "version": "200", "reached": True, **wrong}
    refused = pytest.raises(kilolayer.InvalidRequest, match=f"Not sent: {message}")
    with kilolayer.PolicyClient(address, robot_id=robot_id, timeout_s=60) as client, refused:
        client.report(given.pop("episode"), **given)
    assert fake.reports == []
