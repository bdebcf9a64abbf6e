"""Every energy against numpy in float64, in both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.energy import ENERGIES
from policy.spec import ENERGY_NAMES

RANDOM = np.random.default_rng(0)
PAIRS, GOALS = (RANDOM.normal(size=(5, 3)) for _ in range(2))


def reference(name: str, pair: np.ndarray, goal: np.ndarray) -> float:
    dot, lengths = float(pair @ goal), float(np.sqrt(pair @ pair) * np.sqrt(goal @ goal))
    square = float(((pair - goal) ** 2).sum())
    return {"l2": -(square**0.5), "l2_squared": -square, "dot": dot, "cosine": dot / lengths}[name]


@pytest.mark.parametrize("name", ["l2", "l2_squared", "dot", "cosine"])
def test_energies_of_all_pairs_and_row_by_row(name: str) -> None:
    pairs, goals = jnp.asarray(PAIRS, jnp.float32), jnp.asarray(GOALS, jnp.float32)
    expected = np.array([[reference(name, pair, goal) for goal in GOALS] for pair in PAIRS])
    np.testing.assert_allclose(ENERGIES[name].pairwise(pairs, goals), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ENERGIES[name].rowwise(pairs, goals), np.diag(expected), rtol=1e-5, atol=1e-6)


def test_a_specification_may_name_every_energy_of_the_table() -> None:
    assert tuple(ENERGIES) == ENERGY_NAMES


def test_a_cosine_does_not_depend_on_any_length() -> None:
    pairs, goals = jnp.asarray(PAIRS, jnp.float32), jnp.asarray(GOALS, jnp.float32)
    stretched = pairs * jnp.array([[1.0], [2.0], [30.0], [0.1], [5.0]])
    plain = ENERGIES["cosine"].pairwise(pairs, goals)
    np.testing.assert_allclose(ENERGIES["cosine"].pairwise(stretched, goals), plain, rtol=1e-5)


@pytest.mark.parametrize("name", list(ENERGIES))
@pytest.mark.parametrize("value", [0.0, 100.0])
def test_energies_and_their_gradients_stay_finite_where_encodings_meet(name: str, value: float) -> None:
    same = jnp.full((4, 3), value)
    for form in ENERGIES[name]:
        energy, gradient = jax.value_and_grad(lambda pairs, form=form: form(pairs, same).sum())(same)
        assert bool(jnp.isfinite(energy))
        assert bool(jnp.isfinite(gradient).all())
    if name.startswith("l2"):
        assert np.abs(ENERGIES[name].pairwise(same, same)).max() < 1e-4


def far_from_the_origin(norm: float) -> tuple[np.ndarray, np.ndarray]:
    """Encodings [32, 64] of length `norm`, goals near their mean, each pair 0.1 from its goal; in float32."""
    random = np.random.default_rng(1)
    middle = random.normal(size=64)
    goals = norm * middle / np.linalg.norm(middle) + 0.25 * random.normal(size=(32, 64)).clip(-1, 1)
    steps = random.normal(size=(32, 64))
    pairs = goals + 0.1 * steps / np.linalg.norm(steps, axis=1, keepdims=True)
    return pairs.astype(np.float32), goals.astype(np.float32)


def float64_gradient(name: str, pairs: np.ndarray, goals: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """The derivative of the weighted sum of all energies: of -d it is (goal - pair) / d, of -d^2 2 (goal - pair)."""
    apart = goals[None, :, :] - pairs[:, None, :]
    distance = np.linalg.norm(apart, axis=-1)
    factors = weights / distance if name == "l2" else 2 * weights
    by_pair = factors[:, :, None] * apart
    return by_pair.sum(axis=1), -by_pair.sum(axis=0)


@pytest.mark.parametrize("norm", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("name", ["l2", "l2_squared"])
def test_distances_and_their_gradients_do_not_depend_on_where_the_origin_is(name: str, norm: float) -> None:
    """Energies of distances from 0.1 to 2.5 are right to 1e-5, gradients to 1e-4 of their largest entry."""
    pairs, goals = far_from_the_origin(norm)
    exact_pairs, exact_goals = pairs.astype(np.float64), goals.astype(np.float64)
    weights = np.random.default_rng(2).normal(size=(32, 32))
    expected = -np.linalg.norm(exact_pairs[:, None, :] - exact_goals[None, :, :], axis=-1)
    if name == "l2_squared":
        expected = -np.square(expected)
    pairwise = ENERGIES[name].pairwise
    found = np.asarray(pairwise(jnp.asarray(pairs), jnp.asarray(goals)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

    def weighted(pairs: jax.Array, goals: jax.Array) -> jax.Array:
        return jnp.sum(jnp.asarray(weights, jnp.float32) * pairwise(pairs, goals))

    gradient = jax.grad(weighted, argnums=(0, 1))(jnp.asarray(pairs), jnp.asarray(goals))
    for ours, theirs in zip(gradient, float64_gradient(name, exact_pairs, exact_goals, weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
