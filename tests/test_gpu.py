"""What a GPU computes, against the same on the CPU: run these alone, `pytest -m gpu`, where there is one.

Only rounding may differ. Products of float32 are asked for in full ("highest"), as serving asks for them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import bundle
from policy.energy import ENERGIES
from policy.layers import Execution
from policy.networks import init_policy
from serving.engine.engine import Engine, Kind, noise_columns
from tests.samples import policy_spec
from training import trainer
from training.algorithms.crl.losses import CRITIC_LOSSES
from training.algorithms.crl.update import CRL, Trainable
from training.config import TrainConfig
from training.data.replay_buffer import Batch
from training.envs import registry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU"),
]

SPEC = policy_spec(actor_depth=64, actor_width=256, critic_depth=64, critic_width=256, representation_dim=64)
ROWS = 512


def on_cpu(compute: Callable[..., Any], *arguments: Any) -> Any:
    """What `compute` makes of the same arguments on the CPU."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        return jax.jit(compute)(*jax.device_put(arguments, cpu))


def far(value: Any, truth: Any) -> float:
    """The distance of all leaves together, as a share of the truth's length; NaN counts as far."""
    values, truths = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (value, truth))
    return float(np.nan_to_num(np.linalg.norm(values - truths) / np.linalg.norm(truths), nan=np.inf))


@pytest.mark.parametrize(("precision", "products", "at_most"), [("f32", "highest", 1e-3), ("bf16", "default", 5e-2)])
def test_a_deep_gradient_is_the_cpus(precision: str, products: str, at_most: float) -> None:
    def crl(precision: str) -> CRL:
        return CRL(
            achieved_goal=lambda state: state[:, : SPEC.goal_dim],
            actor_learning_rate=3e-4,
            critic_learning_rate=3e-4,
            temperature_learning_rate=3e-4,
            target_entropy=-1.0,
            critic_loss=CRITIC_LOSSES["forward"],
            energy=ENERGIES["l2"],
            logsumexp_penalty=0.1,
            execution=Execution(precision=precision),
        )

    params = init_policy(jax.random.key(0), SPEC)
    draw = np.random.default_rng(0)
    sizes = (SPEC.state_dim, SPEC.action_dim, SPEC.state_dim)
    state, action, future = (draw.normal(size=(ROWS, size)).astype(np.float32) for size in sizes)
    batch = Batch(state=jnp.asarray(state), action=jnp.tanh(action), future_state=jnp.asarray(future))
    noise = jnp.asarray(draw.normal(size=action.shape), jnp.float32)

    def gradient(precision: str) -> Callable[..., Trainable]:
        return lambda *arguments: crl(precision).gradient(*arguments, noise=noise)[0]

    trained = Trainable(params, jnp.zeros(()))
    with jax.default_matmul_precision(products):
        ours = jax.jit(gradient(precision))(trained, batch)
    assert far(ours, on_cpu(gradient("f32"), trained, batch)) < at_most


def test_a_served_policy_answers_as_on_the_cpu() -> None:
    params = init_policy(jax.random.key(1), SPEC)
    engine = Engine(params, SPEC, max_rows=64)
    truth = Engine(params, SPEC, max_rows=64, device="cpu")
    for kind in (Kind.ACT, Kind.SAMPLE, Kind.SCORE):
        truth.compile(kind, 64)
    draw = np.random.default_rng(1)
    for kind in (Kind.ACT, Kind.SAMPLE, Kind.SCORE):
        engine.compile(kind, 64)
        rows = draw.normal(size=(50, engine.columns(kind))).astype(np.float32)
        if kind is Kind.SAMPLE:
            rows[:, -4:] = noise_columns(7, rows=50, candidates=1)
        np.testing.assert_allclose(engine.compute(kind, rows), truth.compute(kind, rows), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "at_most"), [("point_u_maze", 1e-4), ("ant", 1e-3), ("reacher", 1e-3)])
def test_a_step_of_the_physics_is_the_cpus(name: str, at_most: float) -> None:
    env = registry.make(name)
    robots = on_cpu(jax.vmap(env.reset), jax.random.split(jax.random.key(0), 8))
    actions = jax.random.uniform(jax.random.key(1), (8, env.action_size), minval=-1)
    there = jax.device_put(robots, jax.devices()[0])
    after: Any = jax.jit(jax.vmap(env.step))(there, actions)
    truth: Any = on_cpu(jax.vmap(env.step), robots, actions)
    assert far(after.obs, truth.obs) < at_most


def test_a_run_publishes_a_policy_that_can_be_served(tmp_path: Path) -> None:
    config = TrainConfig(
        env="point_u_maze",
        preset="paper",
        out=tmp_path / "run",
        num_envs=32,
        unroll_length=20,
        updates_per_unroll=4,
        batch_size=32,
        max_replay_size=400,
        min_replay_size=40,
        actor_depth=8,
        critic_depth=8,
        actor_width=32,
        critic_width=32,
        total_env_steps=32 * 20 * 6,
        num_evals=1,
        eval_episodes=8,
        episode_length=50,
    )
    outcome = trainer.train(config)
    assert outcome.policy is not None
    published = bundle.read(outcome.policy)
    engine = Engine(published.params, published.spec, max_rows=16)
    engine.compile(Kind.ACT, 16)
    rows = np.concatenate([published.probes.state, published.probes.goal], axis=1)[:16]
    worst = np.abs(engine.compute(Kind.ACT, rows) - published.probes.action[:16]).max()
    assert worst <= bundle.PROBE_TOLERANCE
    assert dataclasses.asdict(published.spec)["environment"] == "point_u_maze"
