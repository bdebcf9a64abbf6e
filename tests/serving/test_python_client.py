"""The Python client against the real server: what it gives is what the policy itself gives."""

from collections.abc import Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kilolayer
from policy import acting
from policy.bundle import Bundle

ROWS = 5


class Running(Protocol):
    address: str

    def sample(self, name: str, **labels: str) -> float: ...


@pytest.fixture
def client(running: Running) -> Iterator[kilolayer.PolicyClient]:
    with kilolayer.PolicyClient(running.address, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def state() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def goal() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(ROWS, 2)).astype(np.float32)


def draws(bundle: Bundle, state: np.ndarray, goal: np.ndarray, *, seed: int, count: int) -> np.ndarray:
    """The actions [rows, count, action_dim] that `seed` draws for `state: [rows, S]` and `goal: [rows, G]`."""
    rows = jnp.arange(len(state))
    row_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed, impl="threefry2x32"), rows)
    keys = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))(row_keys, jnp.arange(count))
    noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (bundle.spec.action_dim,))))(keys)
    distribution = acting.action_distribution(bundle.params, jnp.asarray(state), jnp.asarray(goal))
    spread = acting.ActionDistribution(distribution.mean[:, None], distribution.log_std[:, None])
    return np.asarray(acting.sample_action(spread, noise)[0])


def test_a_stream_gives_the_actions_of_the_policy_and_of_single_calls(
    client: kilolayer.PolicyClient, served_bundle: Bundle, *, state: np.ndarray, goal: np.ndarray
) -> None:
    expected = jax.jit(acting.act)(served_bundle.params, jnp.asarray(state), jnp.asarray(goal))
    with client.stream() as stream:
        pending = [stream.send(*row) for row in zip(state, goal, strict=True)]
        streamed = np.stack([answer.receive().action for answer in pending])
        block = stream.act(state, goal).action
    single = np.stack([client.act(*row).action for row in zip(state, goal, strict=True)])
    np.testing.assert_allclose(streamed, expected, atol=1e-6)
    np.testing.assert_allclose(streamed, single, atol=1e-6)
    np.testing.assert_allclose(streamed, block, atol=1e-6)


def test_equal_seeds_draw_equal_actions_by_every_way(
    client: kilolayer.PolicyClient, served_bundle: Bundle, *, state: np.ndarray, goal: np.ndarray
) -> None:
    expected = draws(served_bundle, state, goal, seed=7, count=1)[:, 0]
    first, again, other = (client.act(state, goal, seed=seed).action for seed in (7, 7, 8))
    with client.stream() as stream:
        streamed = stream.act(state, goal, seed=7).action
    np.testing.assert_allclose(first, expected, atol=1e-6)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_allclose(streamed, first, atol=1e-6)
    assert (np.abs(other - first) > 1e-3).any(axis=1).all()


def test_the_score_is_that_of_the_critic(
    client: kilolayer.PolicyClient, served_bundle: Bundle, *, state: np.ndarray, goal: np.ndarray
) -> None:
    action = np.tanh(goal)
    blocks = [jnp.asarray(block) for block in (state, action, goal)]
    expected = acting.score(served_bundle.params, *blocks[:2], goal=blocks[2], energy=served_bundle.spec.energy)
    answer = client.score(state, action, goal=goal)
    np.testing.assert_allclose(answer.energy, expected, atol=1e-5)
    assert (answer.policy, answer.version, answer.batch_rows) == ("point_u_maze", "1000", ROWS)
    np.testing.assert_allclose(client.score(state[3], action[3], goal=goal[3]).energy, expected[3], atol=1e-5)


def test_best_of_gives_each_row_the_draw_that_scores_highest(
    client: kilolayer.PolicyClient, served_bundle: Bundle, *, state: np.ndarray, goal: np.ndarray
) -> None:
    candidates = draws(served_bundle, state[:2], goal[:2], seed=11, count=4)  # two rows of four fill a call of eight
    energies = [client.score(state[[row] * 4], candidates[row], goal=goal[row]).energy for row in range(2)]
    best = np.argmax(energies, axis=1)
    answer = client.act(state[:2], goal[:2], seed=11, best_of=4)
    np.testing.assert_allclose(answer.action, candidates[[0, 1], best], atol=1e-6)
    assert best.tolist() != [0, 0], "the first draw of both would show nothing; choose another seed"


def test_the_server_refuses_in_the_stream_what_it_refuses_outside(client: kilolayer.PolicyClient) -> None:
    with client.stream() as stream:
        with pytest.raises(
            kilolayer.InvalidRequest, match=r"candidates must be from 1 to 8 .*, got 9: .*; best_of is the number"
        ):
            stream.act([0, 0, 0, 0], [0, 0], seed=1, best_of=9)
        with pytest.raises(kilolayer.InvalidRequest, match=r"state needs 4 values of .*, got 3 values in all"):
            stream.act([0, 0, 0], [0, 0])
        assert stream.act([0, 0, 0, 0], [0, 0]).action.shape == (2,)


@pytest.mark.parametrize(
    ("policy", "version", "state", "kind", "reason"),
    [
        ("", "", [0, 0, 0], kilolayer.InvalidRequest, "invalid_request"),
        ("unknown", "", [0, 0, 0, 0], kilolayer.PolicyNotFound, "unknown_policy"),
        ("", 7, [0, 0, 0, 0], kilolayer.PolicyNotFound, "unknown_version"),
    ],
)
def test_a_refusal_has_its_reason_in_single_calls_and_streams(
    running: Running,
    *,
    policy: str,
    version: str | int,
    state: list[float],
    kind: type[kilolayer.KilolayerError],
    reason: str,
) -> None:
    with kilolayer.PolicyClient(running.address, policy=policy, version=version, timeout_s=60) as client:
        for call in (client.act, client.stream().act):
            with pytest.raises(kind) as refusal:
                call(state, [0, 0])
            assert refusal.value.reason == reason


def test_a_deadline_too_short_to_meet_is_missed_and_the_stream_continues(client: kilolayer.PolicyClient) -> None:
    with client.stream() as stream:
        stream.act([0, 0, 0, 0], [0, 0])
        with pytest.raises(kilolayer.DeadlineExceeded):
            stream.act([0, 0, 0, 0], [0, 0], timeout_s=1e-6)
        assert stream.act([1, 0, 0, 0], [0, 0]).action.tolist() == client.act([1, 0, 0, 0], [0, 0]).action.tolist()


async def test_the_asyncio_client_gives_the_same(
    running: Running, client: kilolayer.PolicyClient, *, state: np.ndarray, goal: np.ndarray
) -> None:
    async with kilolayer.AsyncPolicyClient(running.address, timeout_s=60) as other:
        action = (await other.act(state, goal, seed=7)).action
        energy = (await other.score(state, action, goal=goal)).energy
    np.testing.assert_allclose(action, client.act(state, goal, seed=7).action, atol=1e-6)
    np.testing.assert_allclose(energy, client.score(state, action, goal=goal).energy, atol=1e-5)
