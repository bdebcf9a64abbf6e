"""The service over real gRPC, against the policy itself."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc
import grpc.aio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from policy.acting import act
from policy.bundle import Bundle

NAN, INF = float("nan"), float("inf")


class Running(Protocol):
    address: str

    def sample(self, name: str, **labels: str) -> float: ...


@pytest.fixture(scope="module")
def stub(running: Running) -> Iterator[Any]:
    with grpc.insecure_channel(running.address) as channel:
        yield PolicyStub(channel)


def rows_of(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)


def reference(bundle: Bundle, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The policy's own answer, without anything of the server's."""
    return np.asarray(jax.jit(act)(bundle.params, jnp.asarray(state), jnp.asarray(goal)))


def request_of(state: np.ndarray, goal: np.ndarray, **fields: Any) -> pb.ActRequest:
    return pb.ActRequest(state=state.ravel().tolist(), goal=goal.ravel().tolist(), **fields)


def refusal(call: Callable[[], object]) -> tuple[str, str | None, str]:
    """Status, reason and message."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code().name, dict(error.trailing_metadata()).get("kilolayer-reason"), error.details()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_served_action_is_that_of_the_policy(stub: Any, served_bundle: Bundle, rows: int) -> None:
    state, goal = rows_of(rows, rows)
    response = stub.Act(request_of(state, goal, sequence=2**64 - 1), timeout=10)
    action = np.reshape(response.action, (rows, 2))
    np.testing.assert_allclose(action, reference(served_bundle, state, goal), atol=1e-6)
    assert (response.policy, response.version) == ("point_u_maze", "1000")
    assert response.sequence == 2**64 - 1
    assert response.batch_rows == rows
    assert response.compute_us > 0


def test_one_goal_serves_every_row(stub: Any, served_bundle: Bundle) -> None:
    state, goal = rows_of(7, 5)
    response = stub.Act(request_of(state, goal[0]), timeout=10)
    expected = reference(served_bundle, state, np.broadcast_to(goal[0], (5, 2)))
    np.testing.assert_allclose(np.reshape(response.action, (5, 2)), expected, atol=1e-6)


def test_naming_the_policy_and_its_version_changes_nothing(stub: Any) -> None:
    state, goal = rows_of(8, 2)
    unnamed = stub.Act(request_of(state, goal), timeout=10)
    named = stub.Act(request_of(state, goal, policy="point_u_maze", version="1000"), timeout=10)
    assert list(named.action) == list(unnamed.action)


async def test_concurrent_callers_share_batches_and_get_their_own_rows(running: Running, served_bundle: Bundle) -> None:
    callers, calls = 32, 10
    state, goal = rows_of(9, callers * calls)
    expected = reference(served_bundle, state, goal)
    batch_rows: list[int] = []

    async def caller(stub: Any, number: int) -> None:
        for index in range(number * calls, (number + 1) * calls):
            response = await stub.Act(request_of(state[index], goal[index], sequence=index), timeout=30)
            np.testing.assert_allclose(response.action, expected[index], atol=1e-6)
            assert response.sequence == index
            batch_rows.append(response.batch_rows)

    async with grpc.aio.insecure_channel(running.address) as channel:
        stub: Any = PolicyStub(channel)
        await asyncio.gather(*(caller(stub, number) for number in range(callers)))
    assert len(batch_rows) == callers * calls
    assert max(batch_rows) > 1
    assert max(batch_rows) <= 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "each row of state needs 4 values of point_u_maze (x [m], y [m], ...), got 0 values in all"),
        (
            {"state": [0] * 5},
            "each row of state needs 4 values of point_u_maze (x [m], y [m], ...), got 5 values in all",
        ),
        ({"state": [0] * 4}, "goal must hold 2 values of point_u_maze, got 0"),
        ({"state": [0] * 12, "goal": [0] * 4}, "goal must hold 2 values, or 6 for 3 rows, of point_u_maze, got 4"),
        ({"state": [0] * 8, "goal": [0] * 2, "rows": 3}, "state must hold 12 values for 3 rows of point_u_maze, got 8"),
        ({"state": [0] * 4, "goal": [0] * 2, "priority": 4}, "priority must be from 0 to 3, got 4"),
        ({"state": [0] * 4, "goal": [0] * 2, "mode": 7}, "mode must be from 0 to 3, got 7"),
        (
            {"state": [0] * 8, "goal": [0] * 2, "mode": "ACT_MODE_BEST_OF", "candidates": 5},
            "candidates must be from 1 to 4 for 2 rows, got 5: a request may have at most 8 rows, "
            "and each candidate counts as one",
        ),
        ({"state": [0] * 36, "goal": [0] * 2}, "a request may have at most 8 rows, got 9"),
        (
            {"state": [0] * 5 + [NAN] + [0] * 6, "goal": [0] * 2},
            "state of row 1 (the first is 0) has NaN or infinity; send finite values",
        ),
        (
            {"state": [0] * 12, "goal": [0] * 5 + [-INF]},
            "goal of row 2 (the first is 0) has NaN or infinity; send finite values",
        ),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_sizes(stub: Any, fields: dict[str, Any], message: str) -> None:
    refused = refusal(lambda: stub.Act(pb.ActRequest(**fields), timeout=10))
    assert refused == ("INVALID_ARGUMENT", "invalid_request", message)


def test_bytes_that_are_no_request_are_refused(running: Running) -> None:
    with grpc.insecure_channel(running.address) as channel:
        call = channel.unary_unary("/kilolayer.v1.Policy/Act")
        refused = refusal(lambda: call(b"\xff" * 7, timeout=10))
    message = "the 7 bytes of the request are not a kilolayer.v1.ActRequest message"
    assert refused == ("INVALID_ARGUMENT", "invalid_request", message)


def test_a_message_beyond_the_byte_cap_is_refused_before_it_is_read(stub: Any) -> None:
    # Eight rows of six values need 192 bytes, and two are kept for actions; the cap is 8 * 8 * 8 + 65536.
    code, reason, message = refusal(lambda: stub.Act(pb.ActRequest(state=[0.0] * 20_000), timeout=10))
    assert (code, reason) == ("RESOURCE_EXHAUSTED", None)  # by gRPC itself, which knows no reasons
    assert "66048" in message


@pytest.mark.parametrize("method", ["Act", "Describe"])
def test_unknown_names_are_not_found_and_the_message_lists_those_there_are(stub: Any, method: str) -> None:
    request_type = {"Act": pb.ActRequest, "Describe": pb.DescribeRequest}[method]
    call = getattr(stub, method)
    assert refusal(lambda: call(request_type(policy="ant\n\x1b[31m"), timeout=10)) == (
        "NOT_FOUND",
        "unknown_policy",
        "there is no policy 'ant\\n\\x1b[31m'; there are: point_u_maze",
    )
    assert refusal(lambda: call(request_type(version="7"), timeout=10)) == (
        "NOT_FOUND",
        "unknown_version",
        "policy point_u_maze has no version '7'; there are: 1000",
    )
    code, _, message = refusal(lambda: call(request_type(policy="x" * 10_000), timeout=10))
    assert code == "NOT_FOUND"
    assert len(message) < 200


def test_describe_gives_the_specification_of_the_bundle(stub: Any, served_bundle: Bundle) -> None:
    response = stub.Describe(pb.DescribeRequest(), timeout=10)
    assert response.version == "1000"
    assert response.max_rows == 8
    assert response.manifest_sha256 == served_bundle.manifest_sha256
    spec = response.spec
    assert (spec.name, spec.environment) == ("point_u_maze", "point_u_maze")
    assert (spec.state_dim, spec.goal_dim, spec.action_dim) == (4, 2, 2)
    assert list(spec.state_names) == ["x [m]", "y [m]", "vx [m/s]", "vy [m/s]"]
    assert list(spec.goal_names) == ["x [m]", "y [m]"]
    assert list(spec.action_names) == ["force x [N]", "force y [N]"]
    assert (list(spec.action_low), list(spec.action_high)) == ([-4, -4], [4, 4])
    assert (spec.control_period_s, spec.success_radius) == (0.08, 0.3)
    assert (spec.actor_depth, spec.actor_width, spec.critic_depth, spec.critic_width) == (4, 16, 4, 16)
    assert spec.representation_dim == 8
    assert (spec.energy, spec.activation, spec.layer_norm, spec.residual) == ("l2", "swish", True, True)


def test_list_names_the_policies_the_versions_and_the_default(stub: Any) -> None:
    response = stub.List(pb.ListRequest(), timeout=10)
    entry = pb.PolicyEntry(policy="point_u_maze", versions=["1000"], live_version="1000", is_default=True)
    assert list(response.policies) == [entry]


def test_the_metrics_say_what_the_client_counted(stub: Any, running: Running) -> None:
    policy = "point_u_maze"

    def samples() -> dict[str, float]:
        requests = [("Act", policy, "OK"), ("Act", policy, "INVALID_ARGUMENT"), ("Act", "(unknown)", "NOT_FOUND")]
        requests += [("Describe", policy, "OK"), ("List", "(none)", "OK")]
        counted = {
            " ".join(key): running.sample("requests_total", method=key[0], policy=key[1], code=key[2])
            for key in requests
        }
        for name in ("rows_total", "batches_total", "padding_rows_total", "queue_seconds_count"):
            counted[name] = running.sample(name, policy=policy)
        counted["compute_seconds_count"] = running.sample("compute_seconds_count", policy=policy)
        counted["total_seconds_count"] = running.sample("total_seconds_count", method="Act", policy=policy)
        counted["compilations"] = running.sample("compilations_after_ready_total")
        return counted

    before = samples()
    started_s = running.sample("total_seconds_sum", method="Act", policy=policy)
    for rows in (1, 3, 5):
        stub.Act(request_of(*rows_of(rows, rows)), timeout=10)
    refusal(lambda: stub.Act(pb.ActRequest(), timeout=10))
    for name in ("ant", "bee"):
        refusal(lambda name=name: stub.Act(pb.ActRequest(policy=name), timeout=10))
    stub.Describe(pb.DescribeRequest(), timeout=10)
    stub.List(pb.ListRequest(), timeout=10)
    assert {name: value - before[name] for name, value in samples().items()} == {
        "Act point_u_maze OK": 3,
        "Act point_u_maze INVALID_ARGUMENT": 1,
        "Act (unknown) NOT_FOUND": 2,
        "Describe point_u_maze OK": 1,
        "List (none) OK": 1,
        "rows_total": 9,
        "batches_total": 3,
        "padding_rows_total": 1 + 3,
        "queue_seconds_count": 3,
        "compute_seconds_count": 3,
        "total_seconds_count": 4,
        "compilations": 0,
    }
    assert running.sample("total_seconds_sum", method="Act", policy=policy) > started_s
    assert running.sample("queue_rows", policy=policy) == 0
    assert running.sample("live_version", policy=policy) == 1000


def test_a_compilation_while_serving_is_counted(running: Running) -> None:
    before = running.sample("compilations_after_ready_total")
    jax.jit(lambda value: value * 3 + 1)(jnp.zeros(17))
    assert running.sample("compilations_after_ready_total") > before
