"""Calls over streams are all sent, and every answer is compared."""

from pathlib import Path

import numpy as np
import pytest

from kilolayer.v1 import policy_pb2 as pb
from policy import bundle
from tests.faults import stream_calls
from tests.serving.in_process import Running


def test_every_call_is_answered_and_another_answer_is_noticed(policies: Path, running: Running) -> None:
    probes = bundle.read(policies / "1000").probes
    request = pb.ActRequest(state=probes.state[0], goal=probes.goal[0])
    before = running.sample("rows_total", policy="point_u_maze")
    stream_calls.call(running.address, request, count=101, expected=probes.action[0])
    assert running.sample("rows_total", policy="point_u_maze") == before + 101
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        stream_calls.call(running.address, request, count=1, expected=probes.action[0] + np.float32(0.001))
