"""Hostile messages against a server in this process, and by hand."""

import random

import grpc
from hypothesis import Phase, given, seed, settings

from kilolayer.v1 import policy_pb2 as pb
from tests.faults.hostile_messages import (
    ALL_CHECKS,
    EXPECTED,
    HEALTH,
    INFERENCE,
    POLICY,
    HostileCall,
    send,
    send_many,
    structured_calls,
    variants,
)
from tests.serving.in_process import Running

GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2).SerializeToString()


def test_variants_begin_with_the_call_itself_and_are_the_same_for_the_same_seed() -> None:
    call = HostileCall(POLICY + "Act", GOOD)
    first, second = (list(variants(call, random.Random(3), count=20)) for _ in range(2))
    assert first == second
    assert first[0] == call
    assert len(first) == 20
    assert len({each.raw for each in first}) > 10
    assert {each.path for each in first} == {POLICY + "Act"}


def test_structured_calls_have_every_method_and_every_kind_of_hostile_name() -> None:
    calls: list[HostileCall] = []

    @seed(0)
    @settings(max_examples=400, database=None, phases=[Phase.generate], suppress_health_check=ALL_CHECKS)
    @given(call=structured_calls())
    def collect(call: HostileCall) -> None:
        calls.append(call)

    collect()
    methods = {call.path for call in calls}
    assert {POLICY + "Act", POLICY + "Score", POLICY + "Report", INFERENCE + "ModelInfer", HEALTH + "Check"} <= methods
    for name in ("a\nb", "\x1b[31mred\x1b[0m", "n" * 60_000):
        assert any(name.encode() in call.raw for call in calls)


def test_statuses_are_those_of_each_call_and_of_its_stream(running: Running) -> None:
    calls = [
        HostileCall(POLICY + "Act", GOOD),
        HostileCall(POLICY + "Act", pb.ActRequest(policy="ant", state=[0] * 4, goal=[0] * 2).SerializeToString()),
        HostileCall(POLICY + "Describe", b"\xff"),
        HostileCall(POLICY + "NoSuchMethod", b""),
    ]
    with grpc.insecure_channel(running.address) as channel:
        statuses = send(channel, calls)
    assert statuses == {
        grpc.StatusCode.OK: 2,  # the first, and the stream of the two messages for Act
        grpc.StatusCode.NOT_FOUND: 1,
        grpc.StatusCode.INVALID_ARGUMENT: 1,
        grpc.StatusCode.UNIMPLEMENTED: 1,
    }


def test_a_few_hundred_get_only_statuses_that_blame_the_caller(running: Running) -> None:
    before = running.sample("failed_batches_total", policy="point_u_maze")
    with grpc.insecure_channel(running.address) as channel:
        statuses = send_many(channel, 300)
    assert statuses.total() >= 300
    assert set(statuses) <= EXPECTED
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND} <= set(statuses)
    assert running.sample("failed_batches_total", policy="point_u_maze") == before
