"""Every energy against numpy in float64, in both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.energy import ENERGIES

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
