"""The fields of the Python client's requests: names, numbers and modes."""

from __future__ import annotations  # for Python 3.9

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kilolayer
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy


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


def test_a_request_names_its_policy_and_version(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address, policy="ant", version=7, timeout_s=60) as client:
        answer = client.act([0, 0, 0], [0, 0])
    assert (fake.acts[0].policy, fake.acts[0].version) == ("ant", "7")
    assert (answer.policy, answer.version) == ("ant", "7")


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
