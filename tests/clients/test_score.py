"""The Python client's requests to the critic."""

from __future__ import annotations  # for Python 3.9

from typing import Any

import numpy as np
import pytest

import kilolayer
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy


def test_one_action_has_one_energy_and_its_metadata(client: kilolayer.PolicyClient) -> None:
    answer = client.score([0.5, 0.25, 9.0], [0.75, 0.5], goal=[0.25, 1], sequence=41)
    assert answer.energy.shape == ()
    assert answer.energy.dtype == np.float32
    assert float(answer.energy) == 0.5
    assert (answer.policy, answer.version, answer.sequence) == ("maze", "200", 41)
    assert (answer.queue_us, answer.compute_us, answer.batch_rows) == (33, 44, 6)
    assert 0 < answer.round_trip_s < 60


def test_a_block_has_an_energy_per_row_in_order(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    state = [[1, 2, 3], [4, 5, 6]]
    answer = client.score(state, [[0.75, 0], [0.5, 0]], goal=[[0.25, 0], [1, 0]], priority=2)
    assert answer.energy.tolist() == [0.5, -0.5]
    request = fake.scores[0]
    assert list(request.state) == [1, 2, 3, 4, 5, 6]
    assert list(request.action) == [0.75, 0, 0.5, 0]
    assert list(request.goal) == [0.25, 0, 1, 0]
    assert (request.rows, request.priority, request.sequence) == (2, 2, 1)


def test_one_goal_for_every_row_is_sent_once(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    assert client.score([[0, 0, 0]] * 2, [[0.75, 0], [0.5, 0]], goal=[0.25, 0]).energy.tolist() == [0.5, 0.25]
    assert list(fake.scores[0].goal) == [0.25, 0]


def test_a_block_of_one_row_has_a_block_of_one_energy(client: kilolayer.PolicyClient) -> None:
    assert client.score([[0, 0, 0]], [[1, 0]], goal=[0, 0]).energy.tolist() == [1]


@pytest.mark.parametrize("rows", [None, 2])
def test_a_chunk_is_sent_first_action_first(client: kilolayer.PolicyClient, fake: FakePolicy, rows: int | None) -> None:
    def one_energy_per_row(reply: policy_pb2.ScoreResponse) -> None:
        del reply.energy[rows or 1 :]  # the fake server knows no chunks: it gives an energy for each action

    fake.on_score = one_energy_per_row
    state, chunks = [[1, 2, 3], [4, 5, 6]], [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[0.7, 0.8], [0.9, 1.0], [0, -1]]]
    energy = client.score(state if rows else state[0], chunks if rows else chunks[0], goal=[0, 0]).energy
    assert energy.shape == ((rows,) if rows else ())
    expected = np.array(chunks, np.float32)[: rows or 1].ravel()
    assert list(fake.scores[0].action) == expected.tolist()
    assert fake.scores[0].rows == (rows or 1)


def test_a_request_names_its_policy_and_version(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address, policy="ant", version=7, timeout_s=60) as client:
        answer = client.score([0, 0, 0], [0, 0], goal=[0, 0])
    assert (fake.scores[0].policy, fake.scores[0].version) == (answer.policy, answer.version) == ("ant", "7")


@pytest.mark.parametrize(
    ("state", "action", "goal", "complaint"),
    [
        (
            [0, 0, 0],
            [[[0, 0]]],
            [0, 0],
            r"action \[1, 1, 2\] does not fit state \[3\]; pass one action \[action_dim\], or one chunk of actions "
            r"\[action_chunk, action_dim\], per state",
        ),
        ([0, 0, 0], 0.5, [0, 0], r"action \[\] does not fit state \[3\]"),
        ([[0, 0, 0]] * 3, [0, 0], [0, 0], r"action \[2\] does not fit state \[3, 3\]"),
        ([[0, 0, 0]] * 3, [[0, 0]] * 2, [0, 0], r"action \[2, 2\] does not fit state \[3, 3\]"),
        ([[0, 0, 0]] * 3, [[[0, 0]] * 3] * 2, [0, 0], r"action \[2, 3, 2\] does not fit state \[3, 3\]"),
        ([0, 0, 0], [], [0, 0], r"action must not be empty, got shape \[0\]"),
        ([0, 0, 0], ["a"], [0, 0], "action must be an array of numbers"),
        (
            [0, 0, 0],
            np.ma.array([0, 0], mask=[False, True]),
            [0, 0],
            "action must not be a masked array, because a mask can",
        ),
        ([0, 0, 0], [0, 0], [[0, 0]], r"goal \[1, 2\] does not fit state \[3\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_sending(
    client: kilolayer.PolicyClient, fake: FakePolicy, *, state: Any, action: Any, goal: Any, complaint: str
) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match=f"Not sent: {complaint}"):
        client.score(state, action, goal=goal)
    assert fake.scores == []


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ({"priority": 4}, "priority must be an integer from 0 to 3, got 4"),
        ({"sequence": -1}, "sequence must be an integer from 0 to 18446744073709551615, got -1"),
    ],
)
def test_an_argument_out_of_range_is_refused_before_sending(
    client: kilolayer.PolicyClient, fake: FakePolicy, argument: dict[str, int], complaint: str
) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match=f"^Not sent: {complaint}"):
        client.score([0, 0, 0], [0, 0], goal=[0, 0], **argument)
    assert fake.scores == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sequence": 40}, "answers request 40, not 41"),
        ({"energy": []}, "2 rows need 2 energies, got 0"),
        ({"energy": [0.5] * 4}, "2 rows need 2 energies, got 4"),
        ({"energy": [0.5, float("nan")]}, "must be finite, got NaN or infinity in row 1, counted from 0"),
        ({"energy": [float("-inf"), 0.5]}, "row 0"),
    ],
)
def test_a_reply_that_does_not_fit_the_request_is_rejected(
    client: kilolayer.PolicyClient, fake: FakePolicy, change: dict[str, Any], complaint: str
) -> None:
    def alter(reply: policy_pb2.ScoreResponse) -> None:
        for field in change:
            reply.ClearField(field)  # type: ignore[arg-type]
        reply.MergeFrom(policy_pb2.ScoreResponse(**change))

    fake.on_score = alter
    with pytest.raises(kilolayer.BadReply, match=complaint) as rejection:
        client.score([[0, 0, 0], [0, 0, 0]], [[0, 0], [0, 0]], goal=[0, 0], sequence=41)
    assert rejection.value.status == "DATA_LOSS"
