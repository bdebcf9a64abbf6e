"""One gradient step against the plain reference, and the order in which it reads its parts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from policy.energy import ENERGIES
from policy.layers import REMATERIALIZATIONS, Execution
from policy.networks import PolicyParams, init_policy
from policy.normalization import Normalization
from tests import reference
from tests.samples import policy_spec
from training.algorithms.crl.losses import CRITIC_LOSSES
from training.algorithms.crl.update import CRL, Trainable, TrainState
from training.data.replay_buffer import Batch

RATES = {"actor": 1e-3, "critic": 2e-3, "temperature": 3e-3}
PENALTY = 0.1
TARGET_ENTROPY = -1.0
ROWS = 7


@pytest.fixture(scope="module")
def params() -> PolicyParams:
    """Every leaf at random, around the value of a fresh policy."""
    spec = policy_spec(actor_depth=8, actor_width=12, critic_depth=4, critic_width=10, representation_dim=6)
    fresh = jax.jit(init_policy, static_argnums=1)(jax.random.key(0), spec)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32), fresh)


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(0)
    draw = lambda size: jnp.asarray(random.normal(size=(ROWS, size)), jnp.float32)  # noqa: E731
    return Batch(state=draw(4), action=jnp.tanh(draw(2)), future_state=draw(4))


def crl(loss: str = "forward", energy: str = "l2", **changes: Any) -> CRL:
    fields = {
        "achieved_goal": lambda state: state[..., :2],
        "actor_learning_rate": RATES["actor"],
        "critic_learning_rate": RATES["critic"],
        "temperature_learning_rate": RATES["temperature"],
        "target_entropy": TARGET_ENTROPY,
        "critic_loss": CRITIC_LOSSES[loss],
        "energy": ENERGIES[energy],
        "logsumexp_penalty": PENALTY,
    }
    return CRL(**(fields | changes))


def reference_gradient(
    params: PolicyParams, log_temperature: jax.Array, batch: Batch, noise: jax.Array, **choice: str
) -> tuple[Trainable, tuple[jax.Array, ...]]:
    """Each part's gradient, along its own loss alone; and the three losses."""
    return reference_of(**choice)(params, jnp.asarray(log_temperature), batch, noise)


@functools.cache
def reference_of(**choice: str) -> Callable[..., tuple[Trainable, tuple[jax.Array, ...]]]:
    """The reference with a loss and an energy, compiled once for all tests."""
    losses = functools.partial(reference.losses, goal_dim=2, target_entropy=TARGET_ENTROPY, penalty=PENALTY, **choice)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # its time is compilation
    def gradients(params: PolicyParams, log_temperature: jax.Array, batch: Batch, noise: jax.Array) -> Any:
        def loss(index: int, params: PolicyParams, log_temperature: jax.Array) -> jax.Array:
            return losses(params, log_temperature, batch, noise)[index]

        actor = jax.grad(lambda actor: loss(0, params._replace(actor=actor), log_temperature))(params.actor)
        temperature = jax.grad(lambda log_temperature: loss(1, params, log_temperature))(log_temperature)
        critic = jax.grad(lambda params: loss(2, params, log_temperature))(params)
        found = Trainable(critic._replace(actor=actor), temperature)
        return found, losses(params, log_temperature, batch, noise)

    return gradients


def assert_gradients_agree(found: Trainable, expected: Trainable) -> None:
    """On every leaf, within 1e-5 of the leaf's largest entry; the temperature's is a difference of entropies near 1."""
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = float(np.abs(theirs).max()) if np.ndim(theirs) else 1.0
        assert scale > 0
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("loss", "energy"),
    [*((loss, "l2") for loss in CRITIC_LOSSES), *(("forward", energy) for energy in ENERGIES if energy != "l2")],
)
def test_gradients_and_losses_equal_the_reference(params: PolicyParams, batch: Batch, loss: str, energy: str) -> None:
    noise = jax.random.normal(jax.random.key(4), (ROWS, 2))
    trained = Trainable(params, jnp.log(0.3))
    expected, losses = reference_gradient(*trained, batch, noise, loss=loss, energy=energy)
    found, metrics = jax.jit(crl(loss, energy).gradient)(trained, batch, noise=noise)
    assert_gradients_agree(found, expected)
    for value, name in zip(losses, ("loss/actor", "loss/temperature", "loss/critic"), strict=True):
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5)


def test_commanded_goals_change_the_actors_gradient_alone(params: PolicyParams, batch: Batch) -> None:
    noise = jax.random.normal(jax.random.key(6), (ROWS, 2))
    trained = Trainable(params, jnp.log(0.3))
    goals = 3 + jax.random.normal(jax.random.key(7), (3, 2))
    with_goals = batch._replace(commanded_goal=goals)
    gradient = jax.jit(crl().gradient)
    found, metrics = gradient(trained, with_goals, noise=noise)
    without, _ = gradient(trained, batch, noise=noise)
    expected, losses = reference_gradient(*trained, with_goals, noise)
    assert_gradients_agree(found, expected)
    assert float(metrics["loss/actor"]) == pytest.approx(float(losses[0]), rel=1e-5)
    for encoder in ("state_action_encoder", "goal_encoder"):
        pairs = zip(*(jax.tree.leaves(getattr(each.params, encoder)) for each in (found, without)), strict=True)
        for ours, plain in pairs:
            np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-6 * float(np.abs(plain).max()))
    assert output_kernels_apart(found, without) > 1e-3


def test_commanded_goals_in_every_row_replace_every_hindsight_goal(params: PolicyParams, batch: Batch) -> None:
    """The actor of a batch with its own hindsight goals as commanded ones learns what it learns without."""
    noise = jax.random.normal(jax.random.key(6), (ROWS, 2))
    trained = Trainable(params, jnp.log(0.3))
    gradient = jax.jit(crl().gradient)
    expected, _ = gradient(trained, batch, noise=noise)
    goals = batch.future_state[:, :2]
    again = batch._replace(commanded_goal=goals)
    assert_gradients_agree(gradient(trained, again, noise=noise)[0], expected)
    shifted = batch._replace(commanded_goal=goals + jnp.eye(ROWS)[:, -1:])  # only the last row's
    assert output_kernels_apart(gradient(trained, shifted, noise=noise)[0], expected) > 1e-3


def output_kernels_apart(one: Trainable, other: Trainable) -> float:
    kernels = [each.params.actor.params["output"]["kernel"] for each in (one, other)]
    return float(jnp.abs(kernels[0] - kernels[1]).max())


def test_statistics_pass_through_a_gradient_step_unchanged(params: PolicyParams, batch: Batch) -> None:
    """Adam would move them even without a gradient once it had a moment; here they have no optimizer at all."""
    statistics = Normalization(jnp.arange(4.0), jnp.arange(1.0, 5.0))
    train_state = crl().init(params._replace(normalization=statistics))
    noise = jax.random.key(3)
    train_state, metrics = jax.jit(crl().update)(train_state, batch, key=noise)
    assert train_state.params.normalization is not None
    for ours, theirs in zip(train_state.params.normalization, statistics, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    by_hand = batch._replace(state=(batch.state - statistics.mean) / statistics.std)
    by_hand = by_hand._replace(future_state=batch.future_state)
    _, expected = jax.jit(crl().update)(crl().init(params), by_hand, key=noise)
    for name in ("loss/actor", "loss/critic"):  # goals are read out of states that are not normalized
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-5)


@pytest.mark.parametrize("remat", REMATERIALIZATIONS)
def test_gradients_do_not_depend_on_remat(params: PolicyParams, batch: Batch, remat: str) -> None:
    noise = jax.random.normal(jax.random.key(5), (ROWS, 2))
    trained = Trainable(params, jnp.zeros(()))
    expected, _ = reference_gradient(*trained, batch, noise)
    found, _ = jax.jit(crl(execution=Execution(remat=remat)).gradient)(trained, batch, noise=noise)
    assert_gradients_agree(found, expected)


def test_one_step_moves_each_part_by_adam_at_its_own_rate(params: PolicyParams, batch: Batch) -> None:
    """Three steps of optax's Adam on the reference's gradients, all taken before anything moves."""
    subject = crl()
    step = jax.jit(subject.update)
    train_state = subject.init(params)
    parts: dict[str, Any] = {
        "actor": params.actor,
        "critic": (params.state_action_encoder, params.goal_encoder),
        "temperature": jnp.zeros(()),
    }
    states = jax.jit(lambda parts: {name: optax.adam(rate).init(parts[name]) for name, rate in RATES.items()})(parts)

    @jax.jit
    def adam(gradients: Any, states: Any, parts: Any) -> tuple[Any, Any]:
        moved = {
            name: optax.adam(rate).update(gradients[name], states[name], parts[name]) for name, rate in RATES.items()
        }
        after = {name: optax.apply_updates(parts[name], updates) for name, (updates, _) in moved.items()}
        return after, {name: state for name, (_, state) in moved.items()}

    for index in range(3):
        key = jax.random.key(index)
        gradient, _ = reference_gradient(
            PolicyParams(parts["actor"], *parts["critic"]),
            parts["temperature"],
            batch,
            jax.random.normal(key, (ROWS, 2)),
        )
        gradients = {
            "actor": gradient.params.actor,
            "critic": (gradient.params.state_action_encoder, gradient.params.goal_encoder),
            "temperature": gradient.log_temperature,
        }
        parts, states = adam(gradients, states, parts)
        train_state, _ = step(train_state, batch, key=key)
    expected = PolicyParams(parts["actor"], *parts["critic"]), parts["temperature"]
    found = train_state.params, train_state.log_temperature
    for ours, theirs, before in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), jax.tree.leaves((params, jnp.zeros(()))), strict=True
    ):
        assert float(np.abs(np.asarray(theirs) - before).max()) > 5e-4
        # an entry with hardly any gradient moves by the rate times its rounded sign, so not every entry can agree
        assert np.mean(np.abs(np.asarray(ours) - theirs) < 2e-6) > 0.99


def test_repeated_steps_lower_the_critics_loss(params: PolicyParams, batch: Batch) -> None:
    subject = crl()
    step = jax.jit(subject.update)
    train_state: TrainState = subject.init(params)
    losses: list[float] = []
    for index in range(60):
        train_state, metrics = step(train_state, batch, key=jax.random.key(index))
        losses.append(float(metrics["loss/critic"]))
    assert losses[-1] < 0.7 * losses[0]
