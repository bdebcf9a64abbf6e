"""Acting and scoring against answers worked out by hand or by numerical integration."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from policy import acting
from policy.networks import Network, PolicyParams, ResidualNetwork, init_network, init_policy
from policy.spec import PolicySpec

act, action_distribution = (jax.jit(f) for f in (acting.act, acting.action_distribution))
score = jax.jit(functools.partial(acting.score, energy="l2"))


def constant_network(template: Network | None, outputs: list[float]) -> Network:
    """A network of the same sizes that gives `outputs` whatever its input."""
    assert template is not None
    return with_arrays(template, {"output": {"bias": np.array(outputs, np.float32)}})


def with_arrays(template: Network, arrays: dict[str, dict[str, np.ndarray]]) -> Network:
    """A network of the same sizes with these arrays; all others are zeros."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), template.params)
    return dataclasses.replace(template, params={name: layer | arrays.get(name, {}) for name, layer in zeros.items()})


def which_is_larger(in_dim: int) -> Network:
    """swish(+1), swish(-1) if the first input exceeds the second, the other way round if it falls short of it.

    LayerNorm maps two values a > b to +1 and -1. The blocks add nothing, and the output layer passes the two on.
    """
    template = jax.eval_shape(lambda: init_network(jax.random.key(0), ResidualNetwork(4, 2, 2), in_dim=in_dim))
    first_two = 1000 * np.eye(in_dim, 2, dtype=np.float32)  # far above the epsilon of LayerNorm
    return with_arrays(
        template,
        {
            "input": {"kernel": first_two, "norm_scale": np.ones(2, np.float32)},
            "output": {"kernel": np.eye(2, dtype=np.float32)},
        },
    )


def test_the_action_is_the_tanh_of_the_mean(params: PolicyParams) -> None:
    fixed = params._replace(actor=constant_network(params.actor, [0.5, -1.0, 7.0, 8.0]))
    action = act(fixed, np.ones((4, 3)), np.ones((4, 2)))
    np.testing.assert_allclose(action, np.tile([0.46211716, -0.76159416], (4, 1)), atol=1e-6)


def test_an_action_stays_within_its_limits_however_large_the_mean(params: PolicyParams) -> None:
    fixed = params._replace(actor=constant_network(params.actor, [1e30, -1e30, 0.0, 0.0]))
    np.testing.assert_array_equal(act(fixed, np.ones(3), np.ones(2)), [1, -1])


def test_state_and_goal_both_count_and_rows_are_independent(params: PolicyParams) -> None:
    rng = np.random.default_rng(0)
    state, goal = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3, 2))
    action = act(params, state, goal)
    assert action.shape == (2, 3, 2)
    np.testing.assert_allclose(action[1, 2], act(params, state[1, 2], goal[1, 2]), atol=1e-6)
    assert not np.allclose(action, act(params, state + 1, goal), atol=1e-3)
    assert not np.allclose(action, act(params, state, goal + 1), atol=1e-3)


@pytest.mark.parametrize(("raw", "log_std"), [(-1e6, -5.0), (0.0, -1.5), (0.5, -1.5 + 3.5 * 0.46211716), (1e6, 2.0)])
def test_log_std_is_squashed_into_its_range(params: PolicyParams, raw: float, log_std: float) -> None:
    fixed = params._replace(actor=constant_network(params.actor, [0.25, -0.25, raw, raw]))
    distribution = action_distribution(fixed, np.ones(3), np.ones(2))
    np.testing.assert_allclose(distribution.log_std, [log_std, log_std], atol=1e-6)
    np.testing.assert_array_equal(distribution.mean, [0.25, -0.25])


def test_a_sample_is_the_squashed_shifted_noise() -> None:
    distribution = acting.ActionDistribution(jnp.array([0.1, -0.2]), log_std=jnp.log(jnp.array([0.5, 2.0])))
    action, _ = acting.sample_action(distribution, jnp.array([0.8, -0.4]))
    np.testing.assert_allclose(action, np.tanh([0.5, -1.0]), atol=1e-6)  # 0.1 + 0.5 * 0.8, -0.2 - 2 * 0.4


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 1.2)])
def test_the_density_of_a_sample_is_the_slope_of_its_distribution(mean: float, std: float) -> None:
    """P(tanh(x) <= a) = P(x <= artanh(a)); its slope in a, by finite differences in float64, is the density at a."""
    normal_cdf = np.vectorize(
        lambda raw: integrate.quad(
            lambda x: np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi)), mean - 12 * std, raw
        )[0]
    )
    noise = np.array([-1.5, -0.3, 0.0, 0.9, 1.7])
    action = np.tanh(mean + std * noise)
    step = 1e-4 * (1 - action**2)
    density = (normal_cdf(np.arctanh(action + step)) - normal_cdf(np.arctanh(action - step))) / (2 * step)
    distribution = acting.ActionDistribution(jnp.full((5, 1), mean), log_std=jnp.full((5, 1), np.log(std)))
    _, log_density = acting.sample_action(distribution, jnp.asarray(noise[:, None]))
    np.testing.assert_allclose(log_density, np.log(density), rtol=1e-4, atol=1e-4)


def test_the_density_of_several_actions_is_the_product_of_theirs() -> None:
    mean, log_std, noise = jnp.array([0.3, -0.6]), jnp.array([-1.0, 0.5]), jnp.array([0.2, 1.1])
    _, together = acting.sample_action(acting.ActionDistribution(mean, log_std=log_std), noise)
    each = acting.ActionDistribution(mean[:, None], log_std=log_std[:, None])
    _, apart = acting.sample_action(each, noise[:, None])
    assert together.shape == ()
    assert float(together) == pytest.approx(float(apart[0] + apart[1]), abs=1e-5)


@pytest.mark.parametrize("raw", [-50.0, 50.0])
def test_the_density_stays_finite_where_tanh_saturates(raw: float) -> None:
    distribution = acting.ActionDistribution(jnp.array([raw]), log_std=jnp.zeros(1))
    action, log_density = acting.sample_action(distribution, jnp.zeros(1))
    assert abs(float(action[0])) == 1
    # log N(0; 0, 1) - log(1 - tanh(50)^2), and 1 - tanh(x)^2 = 4 exp(-2 |x|) to every digit that counts
    assert float(log_density) == pytest.approx(-0.9189385 - (np.log(4) - 100), abs=1e-4)


def test_the_score_is_the_energy_of_the_encodings(params: PolicyParams) -> None:
    fixed = params._replace(
        state_action_encoder=constant_network(params.state_action_encoder, [3, 0, 1, 1, 1]),
        goal_encoder=constant_network(params.goal_encoder, [0, 4, 1, 1, 1]),
    )
    scores = score(fixed, np.ones((2, 6, 3)), np.ones((2, 6, 2)), goal=np.ones((2, 6, 2)))
    np.testing.assert_array_equal(scores, np.full((2, 6), -5.0))  # the triangle of sides 3, 4 and 5
    dots = acting.score(fixed, jnp.ones((6, 3)), jnp.ones((6, 2)), goal=jnp.ones((6, 2)), energy="dot")
    np.testing.assert_array_equal(dots, np.full(6, 3.0))


def test_the_score_sees_the_state_and_the_goal(params: PolicyParams) -> None:
    ordered = params._replace(state_action_encoder=which_is_larger(5), goal_encoder=which_is_larger(2))
    state = np.array([[2.0, 1.0, 9.0], [1.0, 2.0, 9.0]])
    goal = np.array([[5.0, 4.0], [5.0, 4.0]])
    scores = score(ordered, state, np.ones((2, 2)), goal=goal)
    # swish(1) - swish(-1) = 1, so encodings of opposite order lie sqrt(2) apart, those of one order at the same place
    np.testing.assert_allclose(scores, [0, -(2**0.5)], atol=1e-5)


def test_the_score_sees_the_action(spec: PolicySpec, params: PolicyParams) -> None:
    state, goal = np.ones((4, 3)), np.ones((4, 2))
    near = score(params, state, np.zeros((4, 2)), goal=goal)
    far = score(params, state, np.ones((4, 2)), goal=goal)
    assert near.shape == (4,)
    assert not np.allclose(near, far, atol=1e-3)
    assert spec.representation_dim == jax.eval_shape(acting.encode_goal, params, goal).shape[-1]


def test_a_chunk_of_actions_is_squashed_and_sampled_as_one_row(spec: PolicySpec) -> None:
    params = jax.eval_shape(lambda: init_policy(jax.random.key(0), dataclasses.replace(spec, action_chunk=3)))
    chunk, raw = [0.5, -1.0, 0.0, 1.0, -0.5, 7.0], [0.0] * 6
    params = PolicyParams(constant_network(params.actor, chunk + raw))
    np.testing.assert_allclose(
        act(params, np.ones((4, 3)), np.ones((4, 2))), np.tile(np.tanh(chunk), (4, 1)), atol=1e-6
    )
    action, log_density = acting.sample_action(action_distribution(params, np.ones(3), np.ones(2)), jnp.zeros(6))
    np.testing.assert_allclose(action, np.tanh(chunk), atol=1e-6)
    assert log_density.shape == ()


def test_a_policy_without_a_critic_cannot_score(params: PolicyParams) -> None:
    without = PolicyParams(params.actor)
    assert act(without, np.ones(3), np.ones(2)).shape == (2,)
    for call in (
        lambda: acting.score(without, jnp.ones(3), jnp.ones(2), goal=jnp.ones(2), energy="l2"),
        lambda: acting.encode_goal(without, jnp.ones(2)),
    ):
        with pytest.raises(ValueError, match="this policy has no critic, so it cannot score actions"):
            call()
