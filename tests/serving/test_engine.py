import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import acting
from policy.bundle import Bundle
from serving.engine.engine import Engine, Kind, noise_columns
from tests.parameters import fresh_params
from tests.samples import WITHOUT_CRITIC, policy_spec

ROWS = 5  # more than the bucket of four, fewer than that of sixteen


@pytest.fixture(scope="module")
def engine(served_bundle: Bundle) -> Engine:
    engine = Engine(served_bundle.params, served_bundle.spec, max_rows=8)
    for kind, buckets in engine.buckets.items():
        for bucket in buckets:
            engine.compile(kind, bucket)
    return engine


def pairs(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)


def drawn_rows(seed: int, rows: int, *, candidates: int = 1) -> np.ndarray:
    plain = np.repeat(np.concatenate(pairs(1, rows), axis=1), candidates, axis=0)
    return np.concatenate([plain, noise_columns(seed, rows=rows, candidates=candidates)], axis=1)


def test_buckets_are_powers_of_two_up_to_the_cap_compiled_once_each(engine: Engine) -> None:
    assert engine.buckets == {Kind.ACT: (1, 2, 4, 8), Kind.SAMPLE: (1, 4, 8), Kind.SCORE: (1, 4, 8)}
    assert engine.max_rows == 8
    assert engine.compilations == 10


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8])
def test_the_action_is_that_of_the_policy_and_padding_stays_inside(
    engine: Engine, served_bundle: Bundle, rows: int
) -> None:
    state, goal = pairs(rows, rows)
    action = engine.compute(Kind.ACT, np.concatenate([state, goal], axis=1))
    assert action.shape == (rows, 2)
    expected = jax.jit(acting.act)(served_bundle.params, jnp.asarray(state), jnp.asarray(goal))
    np.testing.assert_allclose(action, expected, atol=1e-6)
    assert engine.compilations == 10


def test_the_energy_is_that_of_the_critic(engine: Engine, served_bundle: Bundle) -> None:
    state, goal = pairs(1, ROWS)
    action = np.tanh(pairs(2, ROWS)[1])
    energy = engine.compute(Kind.SCORE, np.concatenate([state, action, goal], axis=1))
    expected = acting.score(
        served_bundle.params, jnp.array(state), jnp.array(action), goal=jnp.array(goal), energy="l2"
    )
    np.testing.assert_allclose(energy[:, 0], expected, atol=1e-5)


def test_a_draw_is_the_mean_and_noise_of_its_own_key(engine: Engine, served_bundle: Bundle) -> None:
    state, goal = pairs(1, ROWS)
    seed = 2**40 + 7
    drawn = engine.compute(Kind.SAMPLE, drawn_rows(seed, ROWS))
    distribution = acting.action_distribution(served_bundle.params, jnp.array(state), jnp.array(goal))
    key = jax.random.wrap_key_data(jnp.array([2**8, 7], jnp.uint32), impl="threefry2x32")
    keys = [jax.random.fold_in(jax.random.fold_in(key, row), 0) for row in range(ROWS)]
    noise = np.stack([jax.random.normal(key, (2,)) for key in keys])
    expected = np.tanh(distribution.mean + np.exp(distribution.log_std) * noise)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)


def test_a_seed_gives_the_same_sample_in_every_batch(engine: Engine) -> None:
    rows = drawn_rows(3, ROWS)
    together = engine.compute(Kind.SAMPLE, rows)
    for row in range(ROWS):
        np.testing.assert_allclose(engine.compute(Kind.SAMPLE, rows[row : row + 1])[0], together[row], atol=1e-6)
    others = engine.compute(Kind.SAMPLE, drawn_rows(4, ROWS))
    assert np.abs(together - others).min() > 1e-4


def test_draws_spread_as_the_distribution_says(engine: Engine, served_bundle: Bundle) -> None:
    state, goal = np.zeros((1, 4), np.float32), np.ones((1, 2), np.float32)
    plain = np.repeat(np.concatenate([state, goal], axis=1), 4096, axis=0)
    rows = np.concatenate([plain, noise_columns(11, rows=1, candidates=4096)], axis=1)
    drawn = np.concatenate([engine.compute(Kind.SAMPLE, rows[start : start + 8]) for start in range(0, 4096, 8)])
    distribution = acting.action_distribution(served_bundle.params, jnp.array(state), jnp.array(goal))
    raw = np.arctanh(np.clip(drawn.astype(np.float64), -1 + 1e-7, 1 - 1e-7))
    std = np.exp(np.asarray(distribution.log_std[0]))
    # Standard errors are std / 64 and std / 90.
    np.testing.assert_allclose(raw.mean(axis=0), distribution.mean[0], atol=4 * std.max() / 64)
    np.testing.assert_allclose(raw.std(axis=0) / std, 1, atol=4 / 90)


def test_best_of_is_sampling_and_then_scoring(engine: Engine) -> None:
    rows = drawn_rows(5, 2, candidates=4)
    best = engine.compute(Kind.BEST_OF, rows)
    action = engine.compute(Kind.SAMPLE, rows)
    np.testing.assert_array_equal(best[:, :2], action)
    scored = engine.compute(Kind.SCORE, np.concatenate([rows[:, :4], action, rows[:, 4:6]], axis=1))
    np.testing.assert_array_equal(best[:, 2:], scored)


def test_noise_columns_number_rows_and_candidates_in_the_bits_of_floats() -> None:
    columns = noise_columns(2**32 * 5 + 6, rows=2, candidates=3).view(np.uint32)
    assert columns.tolist() == [[6, 5, 0, 0], [6, 5, 0, 1], [6, 5, 0, 2], [6, 5, 1, 0], [6, 5, 1, 1], [6, 5, 1, 2]]


@pytest.mark.parametrize(("kind", "rows", "padding"), [(Kind.ACT, 3, 1), (Kind.ACT, 4, 0), (Kind.SAMPLE, 2, 2)])
def test_padding_fills_up_to_the_next_bucket(engine: Engine, kind: Kind, rows: int, padding: int) -> None:
    assert engine.padding(kind, rows) == padding


def test_what_a_batch_is_expected_to_take_follows_what_it_took(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before_s = engine.expected_s(Kind.ACT, 3)
    assert engine.expected_s(Kind.ACT, 4) == before_s  # one bucket
    moments = iter([10.0, 10.0 + 3 * before_s])
    monkeypatch.setattr("serving.engine.engine.time", SimpleNamespace(perf_counter=lambda: next(moments)))
    engine.compute(Kind.ACT, np.zeros((3, 6), np.float32))
    assert engine.expected_s(Kind.ACT, 3) == pytest.approx(1.2 * before_s)  # .9 + .1 * 3
    assert engine.expected_s(Kind.BEST_OF, 3) == engine.expected_s(Kind.SAMPLE, 3) + engine.expected_s(Kind.SCORE, 3)


def test_a_pause_of_the_process_changes_what_a_batch_is_expected_to_take_by_little(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a server that was stopped for a minute would reject calls with short deadlines for many seconds."""
    before_s = engine.expected_s(Kind.ACT, 3)
    moments = iter([10.0, 70.0])
    monkeypatch.setattr("serving.engine.engine.time", SimpleNamespace(perf_counter=lambda: next(moments)))
    engine.compute(Kind.ACT, np.zeros((3, 6), np.float32))
    assert engine.expected_s(Kind.ACT, 3) == pytest.approx(1.3 * before_s)  # .9 + .1 * 4


def test_batches_have_the_sizes_that_are_compiled_so_far(served_bundle: Bundle) -> None:
    engine = Engine(served_bundle.params, served_bundle.spec, max_rows=4)
    rows = np.concatenate(pairs(1, 3), axis=1)
    engine.compile(Kind.ACT, 1)
    engine.compile(Kind.SAMPLE, 1)
    engine.compile(Kind.SCORE, 1)
    assert (engine.max_rows, engine.full_rows) == (1, 1)
    one_by_one = np.concatenate([engine.compute(Kind.ACT, row[None]) for row in rows])
    engine.compile(Kind.ACT, 4)
    engine.compile(Kind.SAMPLE, 4)
    assert engine.max_rows == 1  # SCORE has no larger one
    engine.compile(Kind.SCORE, 4)
    assert (engine.max_rows, engine.full_rows) == (4, 4)
    assert engine.padding(Kind.ACT, 2) == 2
    np.testing.assert_allclose(engine.compute(Kind.ACT, rows), one_by_one, atol=1e-6)
    assert engine.expected_s(Kind.ACT, 2) == engine.expected_s(Kind.ACT, 4)
    engine.compile(Kind.ACT, 2)
    assert (engine.padding(Kind.ACT, 2), engine.padding(Kind.ACT, 3)) == (0, 1)


def test_nothing_is_compiled_on_the_way(served_bundle: Bundle) -> None:
    engine = Engine(served_bundle.params, served_bundle.spec, max_rows=2)
    with pytest.raises(KeyError):
        engine.compute(Kind.ACT, np.zeros((1, 6), np.float32))
    assert engine.compilations == 0


def test_a_chunk_of_actions_is_one_row_of_results_and_of_noise() -> None:
    spec = policy_spec(action_chunk=3)
    params = fresh_params(5, spec)
    engine = Engine(params, spec, max_rows=1)
    for kind in engine.buckets:
        engine.compile(kind, 1)
    assert [engine.columns(kind) for kind in Kind] == [6, 10, 10, 12]
    state, goal = pairs(1, 1)
    distribution = acting.action_distribution(params, jnp.asarray(state), jnp.asarray(goal))
    action = engine.compute(Kind.ACT, np.concatenate([state, goal], axis=1))
    np.testing.assert_allclose(action, np.tanh(distribution.mean), atol=1e-6)
    assert action.shape == (1, 6)
    key = jax.random.wrap_key_data(jnp.array([0, 9], jnp.uint32), impl="threefry2x32")
    noise = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 0), 0), (6,))
    best = engine.compute(Kind.BEST_OF, drawn_rows(9, 1))
    np.testing.assert_allclose(best[0, :6], acting.sample_action(distribution, noise)[0][0], atol=1e-6)
    energy = acting.score(params, jnp.asarray(state), jnp.asarray(best[:, :6]), goal=jnp.asarray(goal), energy="l2")
    np.testing.assert_allclose(best[:, 6], energy, atol=1e-5)


def test_a_policy_without_a_critic_compiles_nothing_to_score_with() -> None:
    spec = policy_spec(critic="none", critic_depth=0, critic_width=0, representation_dim=0)
    engine = Engine(fresh_params(5, spec), spec, max_rows=1)
    assert engine.buckets == {Kind.ACT: (1,), Kind.SAMPLE: (1,)}
    with pytest.raises(ValueError, match="point_u_maze has no critic, so it has no SCORE"):
        engine.compile(Kind.SCORE, 1)
    for kind in (Kind.SCORE, Kind.BEST_OF):
        with pytest.raises(ValueError, match=f"point_u_maze has no critic, so it has no {kind.name}"):
            engine.compute(kind, np.zeros((1, engine.columns(kind)), np.float32))


def test_another_version_of_the_same_sizes_reuses_what_is_compiled(engine: Engine, served_bundle: Bundle) -> None:
    spec = served_bundle.spec
    params = fresh_params(5, spec)
    other = Engine(params, spec, max_rows=8)
    compiled: list[str] = []

    def count(event: str, duration_secs: float, **_details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        assert other.reuse(engine)
        rows = np.concatenate(pairs(1, ROWS), axis=1)
        action = other.compute(Kind.ACT, rows)
        drawn = other.compute(Kind.SAMPLE, drawn_rows(3, ROWS))
        energy = other.compute(Kind.SCORE, np.concatenate([rows[:, :4], action, rows[:, 4:]], axis=1))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not compiled
    assert other.compilations == engine.compilations == 10
    assert all(other.is_compiled(kind, bucket) for kind, buckets in other.buckets.items() for bucket in buckets)
    state, goal = pairs(1, ROWS)
    expected = acting.act(params, jnp.asarray(state), jnp.asarray(goal))
    np.testing.assert_allclose(action, expected, atol=1e-6)
    assert np.abs(action - engine.compute(Kind.ACT, rows)).max() > 1e-3
    assert np.abs(drawn - engine.compute(Kind.SAMPLE, drawn_rows(3, ROWS))).max() > 1e-3
    expected = acting.score(params, jnp.asarray(state), jnp.asarray(action), goal=jnp.asarray(goal), energy="l2")
    np.testing.assert_allclose(energy[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "difference",
    [
        {"actor_depth": 8},
        {"critic_width": 32},
        {"activation": "relu"},
        {"energy": "dot"},
        {"action_chunk": 2},
        {"state_quaternions": (0,)},
        WITHOUT_CRITIC,
    ],
)
def test_a_version_that_is_computed_in_another_way_reuses_nothing(
    engine: Engine, served_bundle: Bundle, difference: dict[str, Any]
) -> None:
    spec = dataclasses.replace(served_bundle.spec, **difference)
    other = Engine(fresh_params(5, spec), spec, max_rows=8)
    assert not other.reuse(engine)
    assert other.compilations == 0


def test_other_batch_sizes_reuse_nothing(engine: Engine, served_bundle: Bundle) -> None:
    assert not Engine(served_bundle.params, served_bundle.spec, max_rows=4).reuse(engine)
