"""What networks get of a state and a goal: quaternions with canonical signs, normalized states, goals as they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from policy import acting
from policy.networks import Network, PolicyParams, init_policy
from policy.normalization import Normalization
from policy.quaternions import Quaternions, canonical_signs
from policy.spec import PolicySpec
from tests.samples import policy_spec


class Echo(linen.Module):
    """Gives its inputs back."""

    @linen.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return inputs


ECHO = Network({}, Echo())
SPEC = policy_spec(
    state_names=("x [m]", "qw", "qx", "qy", "qz"),
    goal_names=("qw", "qx", "qy", "qz", "y [m]"),
    state_quaternions=(1,),
    goal_quaternions=(0,),
    actor_width=8,
    critic_width=8,
)
MEAN, STD = (2.0, 0.5, 0.0, 0.0, 0.25), (4.0, 0.5, 1.0, 2.0, 1.0)


def inputs_of_the_actor(params: PolicyParams, state: list[float], goal: list[float]) -> np.ndarray:
    """The actor echoes its inputs, of which the first half is the mean."""
    distribution = acting.action_distribution(params._replace(actor=ECHO), jnp.array(state), jnp.array(goal))
    return np.asarray(distribution.mean)


@pytest.mark.parametrize(
    ("quaternion", "expected"),
    [
        ([0.5, -0.5, 0.5, -0.5], [0.5, -0.5, 0.5, -0.5]),
        ([-0.5, 0.5, -0.5, 0.5], [0.5, -0.5, 0.5, -0.5]),
        ([0, -0.6, 0, 0.8], [0, 0.6, 0, -0.8]),
        ([-0.0, 0.6, 0, -0.8], [0, 0.6, 0, -0.8]),
        ([0, 0, -1, 0], [0, 0, 1, 0]),
        ([0, 0, 0, -1], [0, 0, 0, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_the_first_value_that_is_not_zero_is_made_positive(quaternion: list[float], expected: list[float]) -> None:
    values = np.asarray(canonical_signs(jnp.array([7.0, *quaternion, -7.0]), (1,)))
    assert values.tobytes() == np.array([7, *expected, -7], np.float32).tobytes()


def test_every_quaternion_of_every_row_has_a_sign_of_its_own() -> None:
    rows = jnp.array([[-1.0, 2, 3, 4, -9, 5, -6, 7, 8], [1, -2, -3, -4, -9, -5, 6, -7, -8]])
    expected = [[1, -2, -3, -4, -9, 5, -6, 7, 8], [1, -2, -3, -4, -9, 5, -6, 7, 8]]
    np.testing.assert_array_equal(canonical_signs(rows, (0, 5)), expected)


def test_the_actor_gets_the_canonical_state_normalized_and_the_canonical_goal_as_it_is() -> None:
    params = PolicyParams(
        ECHO, normalization=Normalization(jnp.array(MEAN), jnp.array(STD)), quaternions=Quaternions((1,), (0,))
    )
    inputs = inputs_of_the_actor(params, [10.0, -0.5, 0.5, -0.5, 0.5], [0.0, -2.0, 0.0, 0.0, 3.0])
    np.testing.assert_allclose(inputs, [2, 0, -0.5, 0.25, -0.75], atol=1e-7)  # ((10, .5, -.5, .5, -.5) - MEAN) / STD
    inputs = inputs_of_the_actor(params._replace(actor=ECHO), [2.0, 0.5, 0, 0, 0.25], [-1.0, 2, 3, 4, 5])
    np.testing.assert_array_equal(inputs, np.zeros(5))
    encoded = acting.encode_goal(params._replace(goal_encoder=ECHO), jnp.array([0.0, -2.0, 0.0, 0.0, 3.0]))
    np.testing.assert_array_equal(encoded, [0, 2, 0, 0, 3])


def test_the_critic_gets_the_same_state_as_the_actor_and_the_action_as_it_is() -> None:
    params = PolicyParams(
        ECHO,
        state_action_encoder=ECHO,
        normalization=Normalization(jnp.array(MEAN), jnp.array(STD)),
        quaternions=Quaternions((1,)),
    )
    encoded = acting.encode_state_action(params, jnp.array([10.0, -0.5, 0.5, -0.5, 0.5]), jnp.array([0.25, -1.0]))
    np.testing.assert_allclose(encoded, [2, 0, -0.5, 0.25, -0.75, 0.25, -1], atol=1e-7)


def test_a_policy_with_neither_takes_states_and_goals_as_they_are() -> None:
    inputs = inputs_of_the_actor(PolicyParams(ECHO), [10.0, -0.5, 0.5], [-1.0, 3.0, 4.0])
    np.testing.assert_array_equal(inputs, [10, -0.5, 0.5])
    plain = PolicyParams(ECHO)
    program = jax.make_jaxpr(acting.action_distribution)(plain, jnp.zeros((2, 4)), jnp.zeros((2, 2)))
    assert {str(equation.primitive) for equation in program.eqns}.isdisjoint({"select_n", "scatter", "sub", "div"})


def test_a_quaternion_and_its_negative_give_the_same_bits_and_another_rotation_does_not() -> None:
    params = jax.jit(init_policy, static_argnums=1)(jax.random.key(0), normalizing(SPEC))
    rng = np.random.default_rng(0)
    state, goal = rng.normal(size=(2, 6, 5)).astype(np.float32)
    flipped_state, flipped_goal = state.copy(), goal.copy()
    flipped_state[:, 1:5] *= -1
    flipped_goal[:, :4] *= -1
    action = np.asarray(acting.act(params, state, goal))
    assert np.asarray(acting.act(params, flipped_state, goal)).tobytes() == action.tobytes()
    assert np.asarray(acting.act(params, state, flipped_goal)).tobytes() == action.tobytes()
    conjugate = state * np.array([1, 1, -1, -1, -1], np.float32)
    assert not np.allclose(acting.act(params, conjugate, goal), action, atol=1e-4)
    score = jax.jit(acting.score, static_argnames="energy")
    energy = np.asarray(score(params, state, action, goal=goal, energy="l2"))
    assert (
        np.asarray(score(params, flipped_state, action, goal=flipped_goal, energy="l2")).tobytes() == energy.tobytes()
    )


def test_the_statistics_of_a_policy_are_those_of_its_specification_and_get_no_gradient() -> None:
    params = jax.jit(init_policy, static_argnums=1)(jax.random.key(0), normalizing(SPEC))
    assert params.normalization is not None
    np.testing.assert_array_equal(params.normalization.mean, np.array(MEAN, np.float32))
    np.testing.assert_array_equal(params.normalization.std, np.array(STD, np.float32))
    gradient = jax.jit(jax.grad(lambda params: acting.act(params, jnp.ones(5), jnp.ones(5)).sum()))(params)
    for statistic in gradient.normalization:
        np.testing.assert_array_equal(statistic, np.zeros(5))
    assert np.abs(gradient.actor.params["input"]["kernel"]).max() > 0
    unused = dataclasses.replace(normalizing(SPEC), normalize_observations=False)
    assert jax.eval_shape(lambda: init_policy(jax.random.key(0), unused)).normalization is None


def normalizing(spec: PolicySpec) -> PolicySpec:
    return dataclasses.replace(spec, normalize_observations=True, normalization_mean=MEAN, normalization_std=STD)
