"""The Python client's responses, from a server whose replies are worked out by hand."""

from __future__ import annotations  # for Python 3.9

import dataclasses
from typing import Any

import numpy as np
import pytest

import kilolayer
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy


def test_one_state_gives_one_action_and_its_metadata(client: kilolayer.PolicyClient) -> None:
    answer = client.act(np.array([0.5, 0.25, 9.0]), np.array([0.25, 0.75]), sequence=41)
    np.testing.assert_array_equal(answer.action, np.array([0.75, -0.25], np.float32))
    assert answer.action.dtype == np.float32
    assert (answer.policy, answer.version, answer.sequence) == ("maze", "200", 41)
    assert (answer.queue_us, answer.compute_us, answer.batch_rows) == (11, 22, 6)
    assert 0 < answer.round_trip_s < 60


def test_the_time_of_the_server_and_the_rest_of_the_round_trip_are_durations(client: kilolayer.PolicyClient) -> None:
    action = dataclasses.replace(client.act([0, 0, 0], [0, 0]), queue_us=2000, compute_us=500, round_trip_s=0.004)
    assert action.server_s == pytest.approx(0.0025)
    assert action.overhead_s == pytest.approx(0.0015)
    assert dataclasses.replace(action, round_trip_s=0.002).overhead_s == 0  # a clock may tick more slowly
    score = client.score([0, 0, 0], [0, 0], goal=[0, 0])
    assert score.server_s == pytest.approx(77e-6)  # the server's 33 + 44 us


def test_a_chunk_has_all_actions_and_action_is_the_first(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    def answer_with_chunks(reply: policy_pb2.ActResponse) -> None:
        rows = len(reply.action) // 2
        reply.action[:] = [number / 16 for number in range(rows * 6)]
        reply.action_chunk = 3

    fake.on_act = answer_with_chunks
    one, block = client.act([0, 0, 0], [0, 0]), client.act([[0, 0, 0]] * 2, [0, 0])
    np.testing.assert_array_equal(one.chunk * 16, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(one.action * 16, [0, 1])
    np.testing.assert_array_equal(block.chunk * 16, [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]])
    np.testing.assert_array_equal(block.action * 16, [[0, 1], [6, 7]])


def test_a_reply_may_be_larger_than_the_limit_of_grpc(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    size = 4 * 2**20 // 4 + 2  # 4 MiB of float32 values, and one action more

    def answer_with_a_long_chunk(reply: policy_pb2.ActResponse) -> None:
        reply.action[:] = [0.5] * size
        reply.action_chunk = size // 2

    fake.on_act = answer_with_a_long_chunk
    assert client.act([0, 0, 0], [0, 0]).chunk.shape == (size // 2, 2)
    with client.stream() as stream:
        assert stream.act([0, 0, 0], [0, 0]).chunk.shape == (size // 2, 2)


def test_without_chunks_the_chunk_is_the_action(client: kilolayer.PolicyClient) -> None:
    answer = client.act([[0.5, 0.25, 0], [0.125, -0.5, 0]], [0.25, 0])
    assert answer.chunk.tolist() == [[[0.75, 0.5]], [[0, -1]]]


def test_a_reply_tells_whether_a_state_is_out_of_range(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    assert client.act([0, 0, 0], [0, 0]).out_of_range is False
    fake.on_act = lambda reply: reply.MergeFrom(policy_pb2.ActResponse(out_of_range=True))
    assert client.act([0, 0, 0], [0, 0]).out_of_range is True
    with client.stream() as stream:
        assert stream.act([0, 0, 0], [0, 0]).out_of_range is True


def test_actions_and_chunks_are_converted_to_the_units_of_the_robot(client: kilolayer.PolicyClient) -> None:
    described = client.describe()  # limits of -2 to 2 N and of -3 to 3 N
    assert described.to_robot_units([0.5, -1]).tolist() == [1, -3]
    assert described.to_robot_units([[[0.5, -1], [0, 1]]]).tolist() == [[[1, -3], [0, 3]]]
    with pytest.raises(ValueError, match="action must not be a masked array; pass action.filled"):
        described.to_robot_units(np.ma.array([0.5, -1], mask=[False, True]))
    uneven = dataclasses.replace(described, action_low=(0, -1), action_high=(10, 3))
    assert uneven.to_robot_units([[-1, 0], [1, 0.5]]).tolist() == [[0, 1], [10, 2]]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sequence": 40}, "answers request 40, not 41"),
        ({"action": []}, "0 action values cannot be divided among 2 rows"),
        ({"action": [0.5] * 3}, "3 action values cannot be divided among 2 rows"),
        (
            {"action": [0.5] * 4, "action_chunk": 3},
            "4 action values cannot be divided among 2 rows with 3 actions each",
        ),
        ({"action": [0.5] * 4, "action_chunk": 2**32 - 1}, "among 2 rows with 4294967295 actions each"),
        ({"action": [0.5, 0.5, 0.5, float("nan")]}, r"must lie in \[-1, 1\]"),
        ({"action": [0.5, 0.5, 0.5, 1.5]}, "got values from 0.5 to 1.5"),
    ],
)
def test_a_reply_that_does_not_fit_the_request_is_rejected(
    client: kilolayer.PolicyClient, fake: FakePolicy, change: dict[str, Any], complaint: str
) -> None:
    def alter(reply: policy_pb2.ActResponse) -> None:
        for field in change:
            reply.ClearField(field)  # type: ignore[arg-type]
        reply.MergeFrom(policy_pb2.ActResponse(**change))

    fake.on_act = alter
    with pytest.raises(kilolayer.BadReply, match=complaint):
        client.act([[0, 0, 0], [0, 0, 0]], [0, 0], sequence=41)


def test_describe_gives_every_field(client: kilolayer.PolicyClient) -> None:
    described = client.describe()
    assert dataclasses.asdict(described) == {
        "name": "maze",
        "version": "200",
        "environment": "point_u_maze",
        "state_names": ("x [m]", "y [m]", "v [m/s]"),
        "goal_names": ("x [m]", "y [m]"),
        "action_names": ("fx [N]", "fy [N]"),
        "action_low": (-2, -3),
        "action_high": (2, 3),
        "control_period_s": 0.05,
        "success_radius": 0.5,
        "actor_depth": 16,
        "actor_width": 256,
        "critic_depth": 32,
        "critic_width": 128,
        "representation_dim": 64,
        "energy": "dot",
        "activation": "relu",
        "layer_norm": True,
        "residual": False,
        "actuator_kind": ("torque", "other"),
        "rest_action": (0, 0.5),
        "action_meaning": ("absolute", "increment"),
        "max_action_change": (0.25, 2),
        "action_chunk": 1,
        "critic": "energy",
        "normalize_observations": True,
        "normalization_mean": (0, 1, 2),
        "normalization_std": (1, 2, 4),
        "seen_mean": (0, 0.5, 1),
        "seen_std": (1, 0, 2),
        "seen_low": (-1, 0.5, -8),
        "seen_high": (1, 0.5, 8),
        "state_quaternions": (),
        "goal_quaternions": (),
        "manifest_sha256": "ab12",
        "max_rows": 1024,
    }
    assert (described.state_dim, described.goal_dim, described.action_dim) == (3, 2, 2)


def test_list_policies_gives_every_field(client: kilolayer.PolicyClient) -> None:
    assert client.list_policies() == (
        kilolayer.PolicyListing(policy="ant", versions=("7",), live_version="7", is_default=False),
        kilolayer.PolicyListing(policy="maze", versions=("100", "200"), live_version="200", is_default=True),
    )
