"""ActStream and Score over real gRPC, against the policy itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from policy import acting
from policy.bundle import Bundle
from serving.config import ServeConfig
from serving.loading import load


class Running(Protocol):
    address: str

    def sample(self, name: str, **labels: str) -> float: ...


def pairs(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    return rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)


async def test_answers_keep_the_order_of_their_stream_and_a_bad_request_does_not_end_it(
    running: Running, served_bundle: Bundle
) -> None:
    count = 200  # three times as many as may be under way
    state, goal = pairs(count)
    expected = jax.jit(acting.act)(served_bundle.params, jnp.array(state), jnp.array(goal))
    before = {
        code: running.sample("requests_total", method="ActStream", policy="point_u_maze", code=code)
        for code in ("OK", "INVALID_ARGUMENT")
    }

    async def requests() -> AsyncIterator[pb.ActRequest]:
        for index in range(count):
            width = 3 if index == 70 else 4
            yield pb.ActRequest(state=state[index, :width].tolist(), goal=goal[index].tolist(), sequence=index)

    async with grpc.aio.insecure_channel(running.address) as channel:
        stub: Any = PolicyStub(channel)
        answers = [answer async for answer in stub.ActStream(requests(), timeout=60)]
    assert [answer.sequence for answer in answers] == list(range(count))
    for index, answer in enumerate(answers):
        if index == 70:
            assert answer.failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert answer.failure.message.startswith("each row of state needs 4 values of point_u_maze")
            assert answer.failure.reason == "invalid_request"
            assert not answer.action
        else:
            assert not answer.HasField("failure")
            np.testing.assert_allclose(answer.action, expected[index], atol=1e-6)
    counted = {
        code: running.sample("requests_total", method="ActStream", policy="point_u_maze", code=code) for code in before
    }
    assert {code: counted[code] - before[code] for code in before} == {"OK": count - 1, "INVALID_ARGUMENT": 1}


def test_bytes_that_are_no_request_end_the_stream_after_the_answers_before_them(running: Running) -> None:
    good = pb.ActRequest(state=[0] * 4, goal=[0] * 2, sequence=1).SerializeToString()
    with grpc.insecure_channel(running.address) as channel:
        answers = channel.stream_stream("/kilolayer.v1.Policy/ActStream")(iter([good, b"\xff" * 7]), timeout=60)
        assert pb.ActResponse.FromString(next(answers)).sequence == 1
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
    error: Any = ended.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_draining_answers_what_was_read_and_ends_open_streams(policies: Path) -> None:
    server = await load(
        ServeConfig(policies=(policies,), listen="127.0.0.1:0", metrics_port=0, metrics=False, max_batch_rows=1)
    )
    await server.start()
    await server.prepare()
    server.open()
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        stub: Any = PolicyStub(channel)
        stream = stub.ActStream()
        await stream.write(pb.ActRequest(state=[0] * 4, goal=[0] * 2, sequence=5))
        assert (await stream.read()).sequence == 5
        draining = asyncio.create_task(server.drain())
        with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as ended:
            await stream.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await draining is True


def test_the_served_energy_is_that_of_the_critic(running: Running, served_bundle: Bundle) -> None:
    state, goal = pairs(5)
    action = np.tanh(pairs(5)[1])
    request = pb.ScoreRequest(
        state=state.ravel().tolist(), action=action.ravel().tolist(), goal=goal.ravel().tolist(), sequence=3
    )
    with grpc.insecure_channel(running.address) as channel:
        stub: Any = PolicyStub(channel)
        response = stub.Score(request, timeout=60)
    expected = acting.score(
        served_bundle.params,
        jnp.array(state),
        jnp.array(action),
        goal=jnp.array(goal),
        energy=served_bundle.spec.energy,
    )
    np.testing.assert_allclose(response.energy, expected, atol=1e-5)
    assert (response.sequence, response.version, response.batch_rows) == (3, "1000", 5)


def test_the_best_of_candidates_scores_at_least_as_high_as_each_sample(running: Running, served_bundle: Bundle) -> None:
    fields: dict[str, Any] = {"state": [0.3, -1, 0.5, 2], "goal": [1, 1], "seed": 9}
    with grpc.insecure_channel(running.address) as channel:
        stub: Any = PolicyStub(channel)
        best = stub.Act(pb.ActRequest(**fields, mode="ACT_MODE_BEST_OF", candidates=8), timeout=60).action
        first = stub.Act(pb.ActRequest(**fields, mode="ACT_MODE_STOCHASTIC"), timeout=60).action
        again = stub.Act(pb.ActRequest(**fields, mode="ACT_MODE_STOCHASTIC"), timeout=60).action
        one = stub.Act(pb.ActRequest(**fields, mode="ACT_MODE_BEST_OF", candidates=1), timeout=60).action
    assert list(first) == list(again)
    np.testing.assert_allclose(one, first, atol=1e-6)

    def energy(action: Any) -> float:
        blocks = [jnp.array([values], jnp.float32) for values in (fields["state"], list(action), fields["goal"])]
        energy = served_bundle.spec.energy
        return float(acting.score(served_bundle.params, blocks[0], blocks[1], goal=blocks[2], energy=energy)[0])

    assert energy(best) >= energy(first)
    assert list(best) != list(first)
