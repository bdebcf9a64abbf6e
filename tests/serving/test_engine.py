import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.acting import act
from policy.bundle import Bundle
from serving.engine import Engine


@pytest.fixture(scope="module")
def engine(served_bundle: Bundle) -> Engine:
    engine = Engine(served_bundle.params, state_dim=4, goal_dim=2, max_rows=4)
    for bucket in engine.buckets:
        engine.compile(bucket)
    return engine


def test_buckets_are_the_powers_of_two_up_to_the_cap_compiled_once_each(engine: Engine) -> None:
    assert engine.buckets == (1, 2, 4)
    assert engine.max_rows == 4
    assert engine.compilations == 3


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_the_action_is_that_of_the_policy_and_padding_stays_inside(
    engine: Engine, served_bundle: Bundle, rows: int
) -> None:
    rng = np.random.default_rng(rows)
    state, goal = rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)
    action = engine.act(np.concatenate([state, goal], axis=1))
    assert action.shape == (rows, 2)
    expected = jax.jit(act)(served_bundle.params, jnp.asarray(state), jnp.asarray(goal))
    np.testing.assert_allclose(action, expected, atol=1e-6)
    assert engine.compilations == 3


@pytest.mark.parametrize(("rows", "padding"), [(1, 0), (2, 0), (3, 1), (4, 0), (5, 3), (9, 7)])
def test_padding_fills_up_to_the_next_power_of_two(engine: Engine, rows: int, padding: int) -> None:
    assert engine.padding(rows) == padding


def test_nothing_is_compiled_on_the_way(served_bundle: Bundle) -> None:
    engine = Engine(served_bundle.params, state_dim=4, goal_dim=2, max_rows=2)
    with pytest.raises(KeyError):
        engine.act(np.zeros((1, 6), np.float32))
    assert engine.compilations == 0
