"""What the benchmark of the gradient step counts, and that the two steps it compares are one."""

import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from policy.layers import Execution
from policy.networks import Network
from training.algorithms.crl.update import TrainState

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it finds its own helpers beside itself."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("train_step")


def sizes(train_step: Any, **changes: int) -> Any:
    tiny = {"batch": 2, "width": 3, "depth": 4, "state_dim": 5, "goal_dim": 2, "action_dim": 1, "representation_dim": 6}
    return train_step.Sizes(**(tiny | changes))


def test_the_flop_of_our_step_are_those_counted_by_hand(train_step: Any) -> None:
    blocks = 11 * 4 * (2 * 2 * 3 * 3)
    actor = 2 * (2 * 2 * 7 * 3) + 3 * (2 * 2 * 3 * 2)
    phi = 3 * (2 * 2 * 6 * 3) + (2 * 2 * 1 * 3) + 5 * (2 * 2 * 3 * 6)
    psi = 2 * (2 * 2 * 2 * 3) + 3 * (2 * 2 * 3 * 6)
    logits = 3 * (2 * 2 * 2 * 6)
    assert (blocks, actor, phi, psi, logits) == (1584, 240, 588, 264, 144)
    assert train_step.step_flop(sizes(train_step), train_step.FLOWS["ours"], logits_by_product=True) == 2820


def test_the_paper_style_step_encodes_the_goals_once_more_and_has_no_product_for_the_logits(train_step: Any) -> None:
    psi_forward = 4 * (2 * 2 * 3 * 3) + (2 * 2 * 2 * 3) + (2 * 2 * 3 * 6)
    expected = 2820 - 144 + psi_forward
    assert train_step.step_flop(sizes(train_step), train_step.FLOWS["paper"], logits_by_product=False) == expected


def test_the_compiler_counts_as_many(train_step: Any) -> None:
    """With every block written out, for XLA counts a loop's body once; it counts sums and exponentials as well."""
    options = train_step.Options(batch=128, width=128)
    step = train_step.our_step(options, 8)
    crl: Any = step.update.__self__
    unrolled = train_step.dataclasses.replace(crl, execution=Execution(unroll=2))
    train_state, (batches, keys) = jax.eval_shape(lambda: (step.init(jax.random.key(0)), train_step.inputs(options)))
    batch, key = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (batches, keys))
    counted: Any = jax.jit(unrolled.update).lower(train_state, batch, key=key).compile().cost_analysis()
    own = sizes(
        train_step,
        batch=128,
        width=128,
        depth=8,
        state_dim=options.state_dim,
        goal_dim=options.goal_dim,
        action_dim=options.action_dim,
        representation_dim=options.representation_dim,
    )
    assert 1 < counted["flops"] / train_step.step_flop(own, train_step.FLOWS["ours"], logits_by_product=True) < 1.15


@pytest.mark.slow
def test_both_steps_move_the_same_parameters_alike(train_step: Any) -> None:
    options = train_step.Options(batch=5, width=8, state_dim=4, action_dim=2, representation_dim=6)
    ours, theirs = train_step.our_step(options, 4), train_step.paper_style_step(options, 4)
    train_state: TrainState = ours.init(jax.random.key(0))
    crl = theirs.update.__self__
    networks = [flax_parameters(network) for network in train_state.params if isinstance(network, Network)]
    critic = train_step._paper_style.Critic(*networks[1:])
    other = crl.init(networks[0], critic)
    batches, keys = train_step.inputs(options)
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    found, metrics = jax.jit(ours.update)(train_state, batch, key=keys[0])
    expected, losses = jax.jit(theirs.update)(other, batch, key=keys[0])
    for name, loss in losses.items():
        assert float(metrics[name]) == pytest.approx(float(loss), rel=1e-4)
    first_moments = [
        adam.mu
        for state in (expected.actor_optimizer, expected.critic_optimizer, expected.temperature_optimizer)
        for adam in state
        if isinstance(adam, optax.ScaleByAdamState)
    ]
    partitioned: Any = found.optimizer
    own = {name: state.inner_state[0].mu for name, state in partitioned.inner_states.items() if name != "constant"}
    actor, temperature = own["actor"].params.actor, own["temperature"].log_temperature
    encoders = [own["critic"].params.state_action_encoder, own["critic"].params.goal_encoder]
    moments = [flax_parameters(actor), tuple(flax_parameters(network) for network in encoders), temperature]
    for mine, his in zip(moments, first_moments, strict=True):
        assert_close(mine, his)


def test_a_row_holds_the_medians_of_the_rounds_own_figures(train_step: Any) -> None:
    options = train_step.Options(batch=2, width=3, state_dim=5, goal_dim=2, action_dim=1, representation_dim=6)
    program = train_step.Program(run=None, seconds=1.5, peak_bytes=3 * 2**20)
    rounds = [
        train_step.Round({"ours": ours, "paper": paper}, rate=rate)
        for ours, paper, rate in ((0.1, 0.2, 28200.0), (0.2, 0.8, 28200.0), (0.4, 0.4, 56400.0))
    ]
    row = train_step.row(options, 4, "ours", program=program, rounds=rounds)
    assert row == {
        "depth": 4,
        "step": "ours",
        "build s": 1.5,
        "ms": 200,
        "MiB": 3,
        "GFLOP": 2820e-9,
        "rate": 28200e-9,
        "share": pytest.approx(0.5),  # of 1, 0.5 and 0.125
        "ratio": pytest.approx(2),
        "to paper": pytest.approx(0.5),  # of 0.5, 0.25 and 1
    }


def test_a_program_that_only_compiles_has_no_times(train_step: Any) -> None:
    program = train_step.Program(run=None, seconds=1.5, peak_bytes=2**20)
    row = train_step.row(train_step.Options(), 1024, "ours", program=program, rounds=[])
    assert [name for name, cell in row.items() if cell is None] == ["ms", "rate", "share", "ratio", "to paper"]


def test_every_round_runs_each_program_and_the_products(train_step: Any) -> None:
    options = train_step.Options(
        batch=4, width=8, state_dim=4, action_dim=2, representation_dim=6, repeats=3, steps=2, paper_style_depth=0
    )
    rounds = train_step.take_turns(
        options,
        {"ours": train_step.Step(init=lambda _: jnp.zeros(()), update=None)},
        {"ours": train_step.Program(lambda train_state, *_: (train_state + 1, None), seconds=0.0, peak_bytes=0)},
    )
    assert len(rounds) == 3
    assert all(each.seconds["ours"] > 0 and each.rate > 0 for each in rounds)


def flax_parameters(network: Network) -> Any:
    """The stacked parameters of a network as flax names them, layer by layer."""
    layers, stacked = [network.params["input"]], network.params["blocks"]
    for block, index in np.ndindex(stacked["bias"].shape[:2]):
        layers.append(jax.tree.map(lambda leaf: leaf[block, index], stacked))  # noqa: B023
    named: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        named[f"Dense_{number}"] = {"kernel": layer["kernel"], "bias": layer["bias"]}
        named[f"LayerNorm_{number}"] = {"scale": layer["norm_scale"], "bias": layer["norm_bias"]}
    named[f"Dense_{len(layers)}"] = network.params["output"]
    return {"params": named}


def assert_close(found: Any, expected: Any) -> None:
    """On every leaf, within 1e-4 of the leaf's largest entry."""
    for mine, his in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.max(jnp.abs(his)))
        assert scale > 0
        np.testing.assert_allclose(mine, his, rtol=0, atol=1e-4 * scale)
