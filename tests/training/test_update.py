"""One gradient step against a plain re-statement of it, and the order in which it reads its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from policy.networks import PolicyParams, ResidualNetwork, init_policy
from policy.spec import PolicySpec
from training import losses
from training.relabel import Batch
from training.update import Learner, Updater

RATES = {"actor": 1e-3, "critic": 2e-3, "temperature": 3e-3}
PENALTY = 0.1
TARGET_ENTROPY = -1.0


@pytest.fixture(scope="module")
def params() -> PolicyParams:
    spec = PolicySpec(
        name="p",
        environment="e",
        state_names=("a", "b", "c"),
        goal_names=("a", "b"),
        action_names=("u", "v"),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        control_period_s=0.1,
        success_radius=0.1,
        actor_depth=8,
        actor_width=12,
        critic_depth=4,
        critic_width=10,
        representation_dim=6,
    )
    return init_policy(jax.random.key(0), spec)


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(0)
    draw = lambda size: jnp.asarray(random.normal(size=(7, size)), jnp.float32)  # noqa: E731
    return Batch(state=draw(3), action=jnp.tanh(draw(2)), future_state=draw(3))


def updater() -> Updater:
    return Updater(
        achieved_goal=lambda state: state[..., :2],
        actor_learning_rate=RATES["actor"],
        critic_learning_rate=RATES["critic"],
        temperature_learning_rate=RATES["temperature"],
        target_entropy=TARGET_ENTROPY,
        critic_loss=losses.forward_info_nce,
        logsumexp_penalty=PENALTY,
    )


def plain_network(network: ResidualNetwork, x: jax.Array) -> jax.Array:
    """The network written out, layer by layer."""

    def layer(kernel: jax.Array, bias: jax.Array, scale: jax.Array, shift: jax.Array, x: jax.Array) -> jax.Array:
        x = x @ kernel + bias
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * scale + shift
        return x / (1 + jnp.exp(-x))

    x = layer(*network.input, x)
    for block in range(network.blocks.kernel.shape[0]):
        inner = x
        for index in range(4):
            inner = layer(*(leaf[block, index] for leaf in network.blocks), inner)
        x = x + inner
    return x @ network.output.kernel + network.output.bias


def plain_losses(params: PolicyParams, log_alpha: jax.Array, batch: Batch, noise: jax.Array):
    """Actor, temperature and critic loss, each as the paper states it."""
    goal = batch.future_state[:, :2]
    mean, raw = jnp.split(plain_network(params.actor, jnp.concatenate([batch.state, goal], 1)), 2, axis=1)
    log_std = -5 + 3.5 * (jnp.tanh(raw) + 1)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    gaussian = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    log_probability = (gaussian - jnp.log(1 - action**2)).sum(1)

    def phi(action: jax.Array) -> jax.Array:
        return plain_network(params.state_action_encoder, jnp.concatenate([batch.state, action], 1))

    distance = jnp.sqrt(((phi(action) - plain_network(params.goal_encoder, goal)) ** 2).sum(1))
    actor = (jnp.exp(log_alpha) * log_probability + distance).mean()
    temperature = (jnp.exp(log_alpha) * (-jax.lax.stop_gradient(log_probability) - TARGET_ENTROPY)).mean()
    apart = phi(batch.action)[:, None] - plain_network(params.goal_encoder, goal)[None]
    logits = -jnp.sqrt((apart**2).sum(-1))
    logsumexp = jnp.log(jnp.exp(logits).sum(1))
    critic = (logsumexp - jnp.diag(logits)).mean() + PENALTY * (logsumexp**2).mean()
    return actor, temperature, critic


def test_one_step_equals_the_plain_statement(params: PolicyParams, batch: Batch) -> None:
    """Each part moves by Adam along its own loss's gradient, all gradients taken before anything moves."""
    key = jax.random.key(3)
    subject = updater()
    after, metrics = jax.jit(subject.update)(subject.init(params), batch, key=key)

    noise = jax.random.normal(key, (7, 2))
    zero = jnp.zeros(())

    def loss(index: int, params: PolicyParams, log_alpha: jax.Array) -> jax.Array:
        return plain_losses(params, log_alpha, batch, noise)[index]

    actor_gradient = jax.grad(lambda actor: loss(0, params._replace(actor=actor), zero))(params.actor)
    critic_gradient = jax.grad(lambda critic: loss(2, critic, zero))(params)
    temperature_gradient = jax.grad(lambda log_alpha: loss(1, params, log_alpha))(zero)

    expected = PolicyParams(
        moved(params.actor, actor_gradient, RATES["actor"]),
        moved(params.state_action_encoder, critic_gradient.state_action_encoder, RATES["critic"]),
        moved(params.goal_encoder, critic_gradient.goal_encoder, RATES["critic"]),
    )
    # Adam's first step is its rate times the gradient's sign, so entries with hardly any gradient are left out
    gradients = PolicyParams(actor_gradient, critic_gradient.state_action_encoder, critic_gradient.goal_encoder)
    leaves = (jax.tree.leaves(tree) for tree in (after.params, expected, gradients))
    for ours, theirs, gradient in zip(*leaves, strict=True):
        clear = np.abs(gradient) > 1e-5
        assert clear.mean() > 0.5 or gradient.size < 20
        np.testing.assert_allclose(np.asarray(ours)[clear], np.asarray(theirs)[clear], atol=1e-6)
    assert float(after.log_temperature) == pytest.approx(
        -RATES["temperature"] * np.sign(temperature_gradient), rel=1e-3
    )
    for index, name in enumerate(("loss/actor", "loss/temperature", "loss/critic")):
        assert float(metrics[name]) == pytest.approx(float(loss(index, params, zero)), rel=1e-5)


def test_gradients_equal_the_plain_statement_on_every_leaf(params: PolicyParams, batch: Batch) -> None:
    """Adam's first moment after one step is a tenth of the gradient: compare it, scale and all."""
    key = jax.random.key(4)
    subject = updater()
    after, _ = jax.jit(subject.update)(subject.init(params), batch, key=key)
    noise = jax.random.normal(key, (7, 2))

    def loss(index: int, changed: PolicyParams) -> jax.Array:
        return plain_losses(changed, jnp.zeros(()), batch, noise)[index]

    actor = jax.grad(lambda part: loss(0, params._replace(actor=part)))(params.actor)
    critic = jax.grad(lambda part: loss(2, part))(params)
    for optimiser, gradient in (
        (after.actor_optimiser, actor),
        (after.critic_optimiser, (critic.state_action_encoder, critic.goal_encoder)),
    ):
        moment = optax.tree_utils.tree_get(optimiser, "mu")
        for ours, theirs in zip(jax.tree.leaves(moment), jax.tree.leaves(gradient), strict=True):
            scale = float(np.abs(theirs).max())
            np.testing.assert_allclose(10 * np.asarray(ours), theirs, rtol=1e-4, atol=1e-4 * scale)


def test_repeated_steps_lower_the_critics_loss(params: PolicyParams, batch: Batch) -> None:
    subject = updater()
    step = jax.jit(subject.update)
    learner: Learner = subject.init(params)
    losses: list[float] = []
    for index in range(60):
        learner, metrics = step(learner, batch, key=jax.random.key(index))
        losses.append(float(metrics["loss/critic"]))
    assert losses[-1] < 0.7 * losses[0]


def moved(part, gradient, rate: float):
    optimiser = optax.adam(rate)
    updates, _ = optimiser.update(gradient, optimiser.init(part))
    return optax.apply_updates(part, updates)
