"""Each loss against a few lines of numpy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import losses


@pytest.fixture
def encodings() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(5, 3)).astype(np.float32), random.normal(size=(5, 3)).astype(np.float32)


def test_energy_is_minus_the_distance_of_every_pair(encodings: tuple[np.ndarray, np.ndarray]) -> None:
    pairs, goals = encodings
    expected = -np.linalg.norm(pairs[:, None].astype(float) - goals[None, :].astype(float), axis=-1)
    np.testing.assert_allclose(losses.pairwise_energy(jnp.asarray(pairs), jnp.asarray(goals)), expected, rtol=1e-5)


def test_energy_and_its_gradient_stay_finite_where_encodings_meet() -> None:
    same = jnp.full((4, 3), 100.0)
    energy, gradient = jax.value_and_grad(lambda pairs: losses.pairwise_energy(pairs, same).sum())(same)
    assert abs(float(energy)) < 1e-4
    assert bool(jnp.isfinite(gradient).all())


def test_info_nce_by_hand() -> None:
    # row 0: logits 0 and log 3, so P(own) = 1/4; row 1: log 2 and 0, so P(own) = 1/3
    logits = jnp.log(jnp.array([[1.0, 3.0], [2.0, 1.0]]))
    contrast = losses.forward_info_nce(logits, logsumexp_penalty=0.1)
    nce = (np.log(4) + np.log(3)) / 2
    penalty = 0.1 * (np.log(4) ** 2 + np.log(3) ** 2) / 2
    assert float(contrast.loss) == pytest.approx(nce + penalty, rel=1e-6)
    assert float(contrast.logsumexp) == pytest.approx((np.log(4) + np.log(3)) / 2, rel=1e-6)
    assert float(contrast.accuracy) == 0.0
    assert float(losses.forward_info_nce(logits[::-1], logsumexp_penalty=0.1).accuracy) == 1.0


def test_info_nce_takes_its_negatives_from_the_row() -> None:
    """Forward InfoNCE: moving a whole row changes nothing but the penalty, moving a column does."""
    logits = jnp.array([[1.0, 2.0], [0.5, 0.2]])
    base = losses.forward_info_nce(logits, logsumexp_penalty=0.0).loss
    row_moved = losses.forward_info_nce(logits + jnp.array([[7.0], [0.0]]), logsumexp_penalty=0.0).loss
    column_moved = losses.forward_info_nce(logits + jnp.array([[7.0, 0.0]]), logsumexp_penalty=0.0).loss
    assert float(row_moved) == pytest.approx(float(base), abs=1e-6)
    assert abs(float(column_moved) - float(base)) > 0.1


def test_symmetric_info_nce_by_hand() -> None:
    logits = jnp.log(jnp.array([[1.0, 3.0], [2.0, 1.0]]))
    forward = (np.log(4) + np.log(3)) / 2
    backward = (np.log(3) + np.log(4)) / 2  # columns: 1 of 1 + 2, and 1 of 3 + 1
    assert float(losses.symmetric_info_nce(logits, logsumexp_penalty=0.0).loss) == pytest.approx(
        (forward + backward) / 2
    )
    lopsided = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]]))
    expected = ((np.log(4) + np.log(2)) / 2 + (np.log(2) + np.log(4)) / 2) / 2
    assert float(losses.symmetric_info_nce(lopsided, logsumexp_penalty=0.0).loss) == pytest.approx(expected)
    column_moved = losses.symmetric_info_nce(logits + jnp.array([[7.0, 0.0]]), logsumexp_penalty=0.0).loss
    row_moved = losses.symmetric_info_nce(logits + jnp.array([[7.0], [0.0]]), logsumexp_penalty=0.0).loss
    assert float(column_moved) > forward + 1
    assert float(row_moved) > forward + 1


def test_actor_loss_by_hand() -> None:
    loss = losses.actor_loss(jnp.array([-1.0, 3.0]), jnp.array([-2.0, -4.0]), log_temperature=jnp.log(0.5))
    assert float(loss) == pytest.approx((0.5 * -1 + 2 + 0.5 * 3 + 4) / 2)


@pytest.mark.parametrize(("log_probability", "sign"), [(2.0, 1), (-2.0, -1)])
def test_temperature_rises_when_the_entropy_is_too_low(log_probability: float, sign: int) -> None:
    """Entropy -2 is below the target of -1 and asks for a higher temperature, so a negative gradient; 2 is above."""
    loss = lambda log_temperature: losses.temperature_loss(  # noqa: E731
        log_temperature, jnp.array([log_probability]), target_entropy=-1.0
    )
    assert float(loss(jnp.log(2.0))) == pytest.approx(2 * (-log_probability + 1))
    assert np.sign(float(jax.grad(loss)(0.0))) == -sign
