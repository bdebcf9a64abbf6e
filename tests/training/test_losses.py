"""Each loss against a few lines of numpy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.algorithms.crl import losses


def test_info_nce_by_hand() -> None:
    # row 0: logits 0 and log 3, so P(own) = 1/4; row 1: log 2 and 0, so P(own) = 1/3
    logits = jnp.log(jnp.array([[1.0, 3.0], [2.0, 1.0]]))
    contrast = losses.contrast(losses.forward_info_nce, logits, penalty=0.1)
    nce = (np.log(4) + np.log(3)) / 2
    penalty = 0.1 * (np.log(4) ** 2 + np.log(3) ** 2) / 2
    assert float(contrast.loss) == pytest.approx(nce + penalty, rel=1e-6)
    assert float(contrast.logsumexp) == pytest.approx((np.log(4) + np.log(3)) / 2, rel=1e-6)
    assert float(contrast.accuracy) == 0.0
    assert float(losses.contrast(losses.forward_info_nce, logits[::-1], penalty=0.1).accuracy) == 1.0


LOPSIDED = jnp.log(jnp.array([[1.0, 3.0], [4.0, 2.0]]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward", (np.log(4 / 1) + np.log(6 / 2)) / 2),  # rows: 1 of 1 + 3, and 2 of 4 + 2
        ("backward", (np.log(5 / 1) + np.log(5 / 2)) / 2),  # columns: 1 of 1 + 4, and 2 of 3 + 2
        ("symmetric", (np.log(4) + np.log(3) + np.log(5) + np.log(2.5)) / 4),
        # sigmoid(log x) = x / (1 + x): own 1/2 and 2/3, the others told apart with 1 - 3/4 and 1 - 4/5
        ("binary", -(np.log(1 / 2) + np.log(2 / 3)) / 2 - (np.log(1 / 4) + np.log(1 / 5)) / 2),
    ],
)
def test_every_loss_by_hand(name: str, expected: float) -> None:
    assert float(losses.CRITIC_LOSSES[name](LOPSIDED)) == pytest.approx(expected, rel=1e-6)


def test_binary_nce_weighs_one_positive_as_much_as_all_negatives() -> None:
    """Of 5 x 5 equal logits, the diagonal and the mean of the 20 others count alike."""
    logits = jnp.full((5, 5), 0.7)
    expected = np.log1p(np.exp(-0.7)) + np.log1p(np.exp(0.7))
    assert float(losses.binary_nce(logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "row_counts", "column_counts"), [("forward", False, True), ("backward", True, False)])
def test_the_side_that_negatives_come_from(name: str, *, row_counts: bool, column_counts: bool) -> None:
    """A softmax over rows does not feel a whole row move, one over columns not a whole column."""
    base = float(losses.CRITIC_LOSSES[name](LOPSIDED))
    row_moved = float(losses.CRITIC_LOSSES[name](LOPSIDED + jnp.array([[7.0], [0.0]])))
    column_moved = float(losses.CRITIC_LOSSES[name](LOPSIDED + jnp.array([[7.0, 0.0]])))
    assert (abs(row_moved - base) > 0.1) == row_counts
    assert (abs(column_moved - base) > 0.1) == column_counts


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
