"""States and goals of requests: rows, layouts, kinds of numbers, and arrays that do not fit."""

from __future__ import annotations  # for Python 3.9

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kilolayer
from tests.clients.fakes import FakePolicy


class Reading(np.ndarray):
    """A subclass, such as that of a library for units."""


MASKED = np.ma.array([0.5, 0.25, 9.0], mask=[False, True, False])


def test_a_block_of_rows_keeps_its_order_and_pairs_each_state_with_its_goal(client: kilolayer.PolicyClient) -> None:
    state = [[0.5, 0.25, 0], [0.125, -0.5, 0], [0, 0, 0]]
    goal = [[0.25, 0.75], [0.5, -0.5], [1, -1]]
    answer = client.act(state, goal)
    np.testing.assert_array_equal(answer.action, [[0.75, -0.25], [-0.25, -0.5], [-1, 1]])


def test_one_goal_for_every_row_is_sent_once(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    answer = client.act([[0.5, 0.25, 0], [0.125, -0.5, 0]], [0.25, 0])
    np.testing.assert_array_equal(answer.action, [[0.75, 0.5], [0, -1]])
    assert list(fake.acts[0].goal) == [0.25, 0]


def test_a_block_of_one_row_gives_a_block(client: kilolayer.PolicyClient) -> None:
    assert client.act([[0.5, 0.25, 0]], [0, 0]).action.tolist() == [[1, 0.5]]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda rows: rows, id="float64"),
        pytest.param(lambda rows: rows.astype(np.float32), id="float32"),
        pytest.param(lambda rows: rows.astype(">f4"), id="big-endian"),
        pytest.param(np.asfortranarray, id="column by column"),
        pytest.param(lambda rows: np.repeat(rows, 2, axis=1)[:, ::2], id="strided"),
        pytest.param(lambda rows: rows.tolist(), id="lists"),
    ],
)
def test_any_layout_of_the_same_numbers_is_the_same_request(
    client: kilolayer.PolicyClient, fake: FakePolicy, make: Callable[[Any], Any]
) -> None:
    rows = np.arange(300, dtype=np.float64).reshape(100, 3) / 1024  # 1200 bytes: a length of two bytes on the wire
    client.act(make(rows), [0.0, 0.0])
    assert list(fake.acts[0].state) == rows.ravel().tolist()
    assert fake.acts[0].rows == 100
    assert list(fake.acts[0].goal) == [0, 0]


def test_integers_are_numbers_too(client: kilolayer.PolicyClient) -> None:
    assert client.act(np.array([0, 0, 5]), np.array([1, -1])).action.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("state", "goal", "complaint"),
    [
        (0.5, [0, 0], "state must be one row"),
        ([[[0, 0, 0]]], [0, 0], "state must be one row"),
        ([], [0, 0], "state must be one row"),
        (np.zeros((0, 3)), [0, 0], r"got shape \[0, 3\]"),
        ([0, 0, 0], [], "goal must be one row"),
        ([0, 0, 0], [[0, 0]], r"goal \[1, 2\] does not fit state \[3\]"),
        ([[0, 0, 0]] * 3, [[0, 0]] * 2, r"goal \[2, 2\] does not fit state \[3, 3\]"),
        ([[0, 0, 0]] * 3, [[0, 0]], r"a single goal \[goal_dim\] for all of them"),
        ([[0, 0], [0]], [0, 0], "state must be an array of numbers"),
        (["a", "b", "c"], [0, 0], "state must be an array of numbers"),
        ([1j, 0, 0], [0, 0], "state must be an array of numbers"),
        ([0, 0, 0], [None, 0], "goal must be an array of numbers"),
        (np.array([0, 0, 0], object), [0, 0], "state must be an array of numbers"),
        (np.array([0, 0, 0], "m8[s]"), [0, 0], "state must be an array of numbers"),
        (MASKED, [0, 0], "state must not be a masked array, because a mask cannot be sent; pass state.filled"),
        (np.ma.array([0, 0, 0]), [0, 0], "state must not be a masked array"),  # the next one may have a gap
        ([0, np.ma.masked, 0], [0, 0], "state must not be a masked array"),
        (collections.deque([[0, 0, 0], MASKED]), [0, 0], "state must not be a masked array"),
        ([0, 0, 0], MASKED[:2], "goal must not be a masked array, because a mask cannot be sent; pass goal.filled"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_sending(
    client: kilolayer.PolicyClient, fake: FakePolicy, state: Any, goal: Any, complaint: str
) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match=complaint) as refusal:
        client.act(state, goal)
    assert refusal.value.status == "INVALID_ARGUMENT"
    assert fake.acts == []


@pytest.mark.parametrize(
    ("state", "sent"),
    [
        ([True, False, True], [1, 0, 1]),  # a contact sensor
        (np.array([1, 0, 3], np.int64), [1, 0, 3]),
        (np.array([0.5, 1, 2]).view(Reading), [0.5, 1, 2]),
        (np.array([0.5, 1, 2], np.float16), [0.5, 1, 2]),
        ((0.5, np.float64(1), np.array(2.0)), [0.5, 1, 2]),
    ],
)
def test_numbers_of_every_kind_are_sent_as_float32(
    client: kilolayer.PolicyClient, fake: FakePolicy, state: Any, sent: list[float]
) -> None:
    client.act(state, [1, 1])
    assert list(fake.acts[0].state) == sent
