"""Statistics of the states of a run, compared with numpy's over the same rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.normalization import Normalization
from training import state_statistics
from training.state_statistics import Statistics

TIME, WORLDS, UNROLLS = 7, 5, 30
ADD = jax.jit(state_statistics.add)


def unrolls() -> tuple[np.ndarray, np.ndarray]:
    """States [unrolls, time, worlds, 4], and which count: far from 0, drifting, constant, constant but for rounding."""
    random = np.random.default_rng(0)
    shape = (UNROLLS, TIME, WORLDS)
    columns = (
        1000 + 0.01 * random.normal(size=shape),
        random.normal(size=shape) + np.arange(UNROLLS)[:, None, None],
        np.full(shape, 1.25),
        3 * (1 + 1e-7 * random.integers(-1, 2, size=shape)),
    )
    return np.stack(columns, axis=-1).astype(np.float32), random.random(shape) > 0.3


def counted(states: np.ndarray, valid: np.ndarray, *, ready_at: int = UNROLLS) -> Statistics:
    statistics = state_statistics.nothing(4)
    for index, (rows, counts) in enumerate(zip(states, valid, strict=True)):
        statistics = ADD(statistics, jnp.asarray(rows), valid=jnp.asarray(counts), ready=jnp.bool_(index >= ready_at))
    return statistics


def test_they_are_numpys_over_the_rows_that_count() -> None:
    states, valid = unrolls()
    fields = state_statistics.spec_fields(counted(states, valid), None)
    rows = states[valid].astype(np.float64)
    np.testing.assert_allclose(fields["seen_mean"], rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fields["seen_std"][:2], rows.std(axis=0)[:2], rtol=1e-3)  # 0.01 beside 1000: 3 digits
    assert fields["seen_std"][2] == 0
    assert fields["seen_low"] == tuple(rows.min(axis=0))
    assert fields["seen_high"] == tuple(rows.max(axis=0))
    assert "normalization_mean" not in fields  # nothing is frozen before learning begins


def test_the_first_unroll_that_is_ready_freezes_them() -> None:
    states, valid = unrolls()
    found = state_statistics.normalization(counted(states, valid, ready_at=3).prefill)
    rows = states[:4][valid[:4]].astype(np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std[:2], rows.std(axis=0)[:2], rtol=1e-3)
    assert found.std[2:].tolist() == [1, 1]  # neither varies, and noise must not be blown up


def test_an_unroll_without_a_row_that_counts_changes_nothing() -> None:
    states, valid = unrolls()
    before = counted(states, valid)
    after = ADD(before, jnp.full((TIME, WORLDS, 4), 7.0), valid=jnp.zeros((TIME, WORLDS), bool), ready=jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    nothing = ADD(
        state_statistics.nothing(4),
        jnp.asarray(states[0]),
        valid=jnp.zeros((TIME, WORLDS), bool),
        ready=jnp.bool_(True),
    )
    assert state_statistics.spec_fields(nothing, None) == {}
    identity = state_statistics.normalization(nothing.prefill)
    assert (identity.mean.tolist(), identity.std.tolist()) == ([0] * 4, [1] * 4)


def test_after_a_billion_rows_new_ones_still_count() -> None:
    """A millionth of the rows, at 1 instead of 0: a float32 sum of 1e9 would have lost them one by one."""
    many = state_statistics.nothing(1).seen._replace(rows=jnp.float32(1e9), low=jnp.zeros(1), high=jnp.zeros(1))
    statistics = Statistics(many, many)
    rows, counts = jnp.ones((10, 100, 1)), jnp.ones((10, 100), bool)
    for _ in range(10):
        statistics = ADD(statistics, rows, valid=counts, ready=jnp.bool_(False))
    assert float(statistics.seen.mean[0]) == pytest.approx(1e-5, rel=1e-3)
    assert float(statistics.seen.variance[0]) == pytest.approx(1e-5, rel=1e-3)


def test_what_a_policy_applies_is_what_its_specification_has() -> None:
    applied = Normalization(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0.1, 0.2, 0.3, 0.4]))
    states, valid = unrolls()
    fields = state_statistics.spec_fields(counted(states, valid, ready_at=3), applied)
    assert fields["normalization_mean"] == (1, 2, 3, 4)
    assert np.array_equal(np.float32(fields["normalization_std"]), applied.std)
