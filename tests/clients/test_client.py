"""The Python client's requests and responses, against a server whose replies are worked out by hand."""

from __future__ import annotations  # for Python 3.9

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kilolayer
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy


class Reading(np.ndarray):
    """A subclass, such as that of a library for units."""


MASKED = np.ma.array([0.5, 0.25, 9.0], mask=[False, True, False])


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


def test_every_request_for_actions_or_scores_names_the_robot(address: str, fake: FakePolicy) -> None:
    longest = "é" * 64  # 128 bytes in UTF-8
    with kilolayer.PolicyClient(address, robot_id=longest, timeout_s=60) as client:
        client.act([0, 0, 0], [0, 0])
        client.score([0, 0, 0], [0, 0], goal=[0, 0])
        with client.stream() as stream:
            stream.act([0, 0, 0], [0, 0])
    with kilolayer.PolicyClient(address) as client:
        client.act([0, 0, 0], [0, 0])
    assert [request.robot_id for request in fake.acts] == [longest, longest, ""]
    assert [request.robot_id for request in fake.scores] == [longest]


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


@pytest.mark.parametrize(("field", "name"), [("policy", "\ud800"), ("policy", 7), ("version", "1\udcff")])
def test_a_name_that_cannot_be_sent_is_an_invalid_request(field: str, name: Any) -> None:
    names: dict[str, Any] = {field: name}
    with kilolayer.PolicyClient("localhost:50051", robot_id="robot 7", **names) as client, client.stream() as stream:
        calls: list[Callable[[], Any]] = [
            lambda: client.act([0], [0]),
            lambda: client.score([0], [0], goal=[0]),
            lambda: stream.act([0], [0]),
            lambda: client.report(1, version=name, reached=True) if field == "version" else client.describe(),
            client.describe,
            lambda: client.wait_until_ready(5),
        ]
        for call in calls:
            with pytest.raises(kilolayer.InvalidRequest, match=f"Not sent: {field} must be a string without lone surr"):
                call()


@pytest.mark.parametrize("robot_id", ["é" * 64 + "a", 7, None, "\ud800"])
def test_a_robot_id_that_is_too_long_or_no_string_is_refused(robot_id: Any) -> None:
    for kind in (kilolayer.PolicyClient, kilolayer.AsyncPolicyClient):
        with pytest.raises(ValueError, match="robot_id must be a string of at most 128 bytes in UTF-8, got "):
            kind("localhost:50051", robot_id=robot_id)


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


def test_a_request_names_its_policy_and_version(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address, policy="ant", version=7, timeout_s=60) as client:
        answer = client.act([0, 0, 0], [0, 0])
    assert (fake.acts[0].policy, fake.acts[0].version) == ("ant", "7")
    assert (answer.policy, answer.version) == ("ant", "7")


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


@pytest.mark.parametrize("sequence", [-1, 2**64])
def test_a_sequence_number_has_64_bits(client: kilolayer.PolicyClient, sequence: int) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match=f"18446744073709551615, got {sequence}"):
        client.act([0, 0, 0], [0, 0], sequence=sequence)


@pytest.mark.parametrize("name", ["seed", "best_of", "priority", "sequence"])
def test_a_masked_number_is_refused(client: kilolayer.PolicyClient, name: str) -> None:
    arguments: dict[str, Any] = {"seed": 1, name: np.ma.array(2, mask=True)}
    with pytest.raises(kilolayer.InvalidRequest, match=rf"{name} must be an integer from [01] to \d+, got masked"):
        client.act([0, 0, 0], [0, 0], **arguments)


def test_sequence_numbers_reach_both_ends_of_their_range_and_count_by_themselves(
    client: kilolayer.PolicyClient, fake: FakePolicy
) -> None:
    given = [client.act([0, 0, 0], [0, 0], sequence=number).sequence for number in (0, 2**64 - 1)]
    counted = [client.act([0, 0, 0], [0, 0]).sequence for _ in range(3)]
    assert given == [0, 2**64 - 1]
    assert counted == [1, 2, 3]
    assert [request.sequence for request in fake.acts] == [*given, *counted]


def test_without_a_seed_nothing_is_sampled(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    client.act([0, 0, 0], [0, 0])
    request = fake.acts[0]
    assert (request.mode, request.seed, request.candidates) == (policy_pb2.ACT_MODE_UNSPECIFIED, 0, 0)
    assert (request.priority, request.timeout_us) == (0, 0)


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1, np.uint64(2**63)])
def test_a_seed_samples_the_action(client: kilolayer.PolicyClient, fake: FakePolicy, seed: int) -> None:
    client.act([0, 0, 0], [0, 0], seed=seed, priority=3)
    request = fake.acts[0]
    assert (request.mode, request.seed, request.candidates) == (policy_pb2.ACT_MODE_STOCHASTIC, int(seed), 0)
    assert request.priority == 3


@pytest.mark.parametrize("best_of", [1, 16])
def test_a_seed_and_a_count_ask_for_the_best_sample(
    client: kilolayer.PolicyClient, fake: FakePolicy, best_of: int
) -> None:
    client.act([0, 0, 0], [0, 0], seed=7, best_of=best_of)
    request = fake.acts[0]
    assert (request.mode, request.seed, request.candidates) == (policy_pb2.ACT_MODE_BEST_OF, 7, best_of)


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"best_of": 16}, "best_of=16 samples actions and requires a seed; pass seed=0"),
        ({"seed": 7, "best_of": 0}, "best_of must be an integer from 1 to 4294967295, got 0"),
        ({"seed": 7, "best_of": 2**32}, "got 4294967296"),
        ({"seed": -1}, "seed must be an integer from 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, "got 18446744073709551616"),
        ({"seed": 0.5}, "seed must be an integer .*, got 0.5"),
        ({"seed": "7"}, "got '7'"),
        ({"priority": 4}, "priority must be an integer from 0 to 3, got 4"),
        ({"priority": -1}, "got -1"),
        ({"sequence": 1.0}, "sequence must be an integer .*, got 1.0"),
    ],
)
def test_an_argument_out_of_range_is_refused_before_sending(
    client: kilolayer.PolicyClient, fake: FakePolicy, choice: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match=f"^Not sent: .*{complaint}") as refusal:
        client.act([0, 0, 0], [0, 0], **choice)
    assert "\n" not in str(refusal.value)
    assert fake.acts == []


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
