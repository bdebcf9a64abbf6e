"""An imported policy acts and scores like the original one, computed by an independent model of the other project."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import bundle
from policy.acting import act, action_distribution, sample_action, score
from policy.exchange import foreign_layouts, import_facts, imported
from policy.exchange.imported import Imported
from policy.networks import PolicyParams
from tests.policy.exchange.foreign_models import (
    ACTION_DIM,
    GOAL_DIM,
    NETWORK,
    STATE_DIM,
    BlockNetwork,
    ForeignModel,
    SkipNetwork,
    random_model,
    write_facts,
)

STATE = np.random.default_rng(1).normal(size=(16, STATE_DIM)).astype(np.float32)
GOAL = np.random.default_rng(2).normal(size=(16, GOAL_DIM)).astype(np.float32)
NOISE = np.random.default_rng(3).normal(size=(16, ACTION_DIM)).astype(np.float32)
ACTION = np.random.default_rng(4).uniform(-1, 1, size=(16, ACTION_DIM)).astype(np.float32)


def converted(folder: Path, model: ForeignModel, **network: Any) -> Imported:
    """The policy of ours that stands for `model`, by way of both files."""
    known = import_facts.read(write_facts(folder / "facts.toml", network=network))
    return imported.convert(foreign_layouts.read(model.save(folder / "params.npz"), known), known)


@partial(jax.jit, static_argnames="energy")
def run(params: PolicyParams, state: Any, goal: Any, *, action: Any, noise: Any, energy: str) -> tuple[jax.Array, ...]:
    """Deterministic actions, drawn actions, and with a critic the energies of `action`."""
    drawn = sample_action(action_distribution(params, state, goal), noise)[0]
    if params.goal_encoder is None:
        return act(params, state, goal), drawn
    return act(params, state, goal), drawn, score(params, state, action, goal=goal, energy=energy)


def require_equal(policy: Imported, model: ForeignModel, *, energy: str = "", tolerance: float = 2e-5) -> None:
    """Compare actions, drawn actions, and energies relative to the largest one.

    Args:
        energy: the other project's name; empty without a critic.
    """
    expected = model.outputs(STATE, GOAL, action=ACTION)
    results = run(policy.params, STATE, GOAL, action=ACTION, noise=NOISE, energy=policy.spec.energy)
    references = [expected.action(), expected.action(NOISE), *([expected.energy(energy)] if energy else [])]
    assert len(results) == len(references)
    for ours, theirs in zip(results, references, strict=True):
        assert np.ptp(theirs, axis=0).max() > 0.1  # the rows differ, so equality says something
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize(("actor", "critic", "use_relu"), [(4, 8, False), (16, 4, False), (8, 8, True)])
def test_policies_of_scaling_crl_act_and_score_as_before(
    tmp_path: Path, actor: int, critic: int, use_relu: bool
) -> None:
    model = random_model(BlockNetwork, depth=actor, critic={"depth": critic, "width": 16}, width=12, use_relu=use_relu)
    network = NETWORK["scaling-crl"] | {"actor_depth": actor, "critic_depth": critic, "use_relu": use_relu}
    policy = converted(tmp_path, model, **network)
    require_equal(policy, model, energy="distance")
    spec = policy.spec
    assert (spec.actor_depth, spec.actor_width, spec.critic_depth, spec.critic_width) == (actor, 12, critic, 16)
    assert (spec.energy, spec.representation_dim, spec.activation) == ("l2", 6, "relu" if use_relu else "swish")
    assert spec.residual
    assert spec.layer_norm


@pytest.mark.parametrize(("energy", "use_ln"), [("norm", True), ("l2", False), ("dot", True)])
def test_policies_of_jaxgcrl_with_skips_every_four_layers_are_residual_ones(
    tmp_path: Path, energy: str, use_ln: bool
) -> None:
    model = random_model(SkipNetwork, hidden=9, width=10, use_ln=use_ln)
    policy = converted(tmp_path, model, **NETWORK["jaxgcrl"] | {"n_hidden": 9, "energy_fn": energy})
    require_equal(policy, model, energy=energy)
    assert (policy.spec.actor_depth, policy.spec.actor_width) == (8, 10)
    assert (policy.spec.residual, policy.spec.layer_norm) == (True, use_ln)


def test_five_layers_that_reach_no_skip_are_a_network_without_residuals(tmp_path: Path) -> None:
    """JaxGCRL adds nothing before layer 5, which a network of 5 layers, counted from 0, does not have."""
    model = random_model(SkipNetwork, hidden=5, width=10, use_ln=True, skip=5)
    policy = converted(tmp_path, model, **NETWORK["jaxgcrl"] | {"n_hidden": 5, "skip_connections": 5})
    require_equal(policy, model, energy="norm")
    assert (policy.spec.actor_depth, policy.spec.residual, policy.spec.layer_norm) == (4, False, True)


@pytest.mark.parametrize(
    ("hidden", "depth", "use_relu"), [(1, 4, False), (2, 4, True), (3, 4, False), (4, 4, False), (6, 8, True)]
)
def test_other_numbers_of_layers_without_layer_norm_are_filled_with_identity_layers(
    tmp_path: Path, hidden: int, depth: int, use_relu: bool
) -> None:
    """Swish doubles the width, because swish(x) - swish(-x) = x."""
    model = random_model(SkipNetwork, hidden=hidden, width=10, use_relu=use_relu, skip=0)
    network = NETWORK["jaxgcrl"] | {"n_hidden": hidden, "skip_connections": 0, "use_relu": use_relu}
    policy = converted(tmp_path, model, **network)
    require_equal(policy, model, energy="norm")
    assert (policy.spec.actor_depth, policy.spec.actor_width) == (depth, 10 if use_relu else 20)
    assert not policy.spec.residual


def test_the_default_of_jaxgcrl_never_reaches_its_first_skip(tmp_path: Path) -> None:
    model = random_model(SkipNetwork, hidden=2, width=10)
    require_equal(converted(tmp_path, model, **NETWORK["jaxgcrl"]), model, energy="norm")


@pytest.mark.slow
def test_a_policy_of_64_layers_acts_and_scores_as_before(tmp_path: Path) -> None:
    model = random_model(BlockNetwork, depth=64, width=64)
    policy = converted(tmp_path, model, **NETWORK["scaling-crl"] | {"actor_depth": 64, "critic_depth": 64})
    require_equal(policy, model, energy="distance", tolerance=bundle.PROBE_TOLERANCE)


def test_an_actor_without_layer_norm_is_imported_without_its_critic(tmp_path: Path) -> None:
    """JaxGCRL passes use_ln to its encoders only."""
    model = random_model(SkipNetwork, hidden=5, width=10, use_ln=False, critic={"use_ln": True})
    network = NETWORK["jaxgcrl"] | {"n_hidden": 5}
    with pytest.raises(foreign_layouts.ForeignPolicyError, match=r"only the encoders have LayerNorm.*critic = false"):
        converted(tmp_path, model, **network)
    policy = converted(tmp_path, model, **network | {"critic": False})
    require_equal(policy, model)
    assert not policy.spec.has_critic
    assert policy.params.state_action_encoder is None


def dense(kernel: list[list[float]], bias: list[float]) -> dict[str, np.ndarray]:
    return {"kernel": np.array(kernel, np.float32), "bias": np.array(bias, np.float32)}


def test_a_policy_of_one_unit_is_the_one_worked_out_by_hand(tmp_path: Path) -> None:
    """n_hidden = 2 with relu. State (2, 1), goal 1, action 0.5."""
    variables = {
        # relu(2 - 1 + 0 + 1) = 2; relu(3 * 2 - 1) = 5; mean 0.1 * 5 + 0.2 = 0.7
        # log-std -5 + 3.5 * (tanh(0) + 1) = -1.5
        "actor": [
            dense([[1], [-1], [0]], [1]),
            dense([[3]], [-1]),
            dense([[0.1]], [0.2]),
            dense([[0]], [0]),
        ],
        # relu(2 + 0.5) = 2.5; relu(2 * 2.5) = 5; (5, 3)
        "sa_encoder": [dense([[1], [0], [1]], [0]), dense([[2]], [0]), dense([[1, 0]], [0, 3])],
        # relu(1) = 1; relu(2 * 1) = 2; (2, 4 - 5) = (2, -1): distance 5 from (5, 3), product 10 - 3 = 7
        "g_encoder": [dense([[1]], [0]), dense([[2]], [0]), dense([[1, 2]], [0, -5])],
    }
    params = {
        name: {"params": {f"Dense_{index}": layer for index, layer in enumerate(layers)}}
        for name, layers in variables.items()
    }
    labels: dict[str, Any] = {"state_names": 2, "goal_names": 1, "action_names": 1}
    limits: dict[str, Any] = {"action_low": [-1.0], "action_high": [1.0]}
    npz = ForeignModel({}, params).save(tmp_path / "params.npz")
    state, goal, action = (jnp.array([row], jnp.float32) for row in ([2, 1], [1], [0.5]))
    for energy, expected in (("norm", -5.0), ("l2", -25.0), ("dot", 7.0)):
        network = NETWORK["jaxgcrl"] | {"use_relu": True, "energy_fn": energy}
        known = import_facts.read(write_facts(tmp_path / "facts.toml", network=network, **labels, **limits))
        spec, policy = imported.convert(foreign_layouts.read(npz, known), known)
        noise = jnp.array([[2.0]])
        acted, drawn, scored = run(policy, state, goal, action=action, noise=noise, energy=spec.energy)
        assert acted.item() == pytest.approx(np.tanh(0.7), abs=1e-6)
        assert drawn.item() == pytest.approx(np.tanh(0.7 + 2 * np.exp(-1.5)), abs=1e-6)
        assert scored.item() == pytest.approx(expected, abs=1e-5)


def test_the_norm_of_equal_encodings_is_a_thousandth(tmp_path: Path) -> None:
    """JaxGCRL's norm is -sqrt(0 + 1e-6) = -1e-3 there, and ours without the constant would be -1e-6."""
    model = random_model(SkipNetwork, hidden=5, width=10)
    for name in ("sa_encoder", "g_encoder"):
        last = model.variables[name]["params"]["Dense_5"]
        last["kernel"][:], last["bias"][:] = 0, 0.25
    policy = converted(tmp_path, model, **NETWORK["jaxgcrl"] | {"n_hidden": 5})
    scored = run(policy.params, STATE, GOAL, action=ACTION, noise=NOISE, energy=policy.spec.energy)[-1]
    np.testing.assert_allclose(scored, np.full(16, -1e-3), rtol=1e-4)


def test_an_imported_policy_is_published_with_probes_and_its_origin(tmp_path: Path) -> None:
    model = random_model(BlockNetwork, depth=4, width=12)
    npz = model.save(tmp_path / "params.npz")
    toml = write_facts(tmp_path / "facts.toml", network=NETWORK["scaling-crl"])
    path = imported.publish(npz, toml, tmp_path / "policies", version=3000)
    assert path == tmp_path / "policies" / "3000"
    stored = bundle.read(path)
    assert stored.spec.name == "ant-import"
    assert stored.spec.state_names[:2] == ("state 0", "state 1")
    assert stored.spec.action_high == (1.0, 2.0, 3.0)
    assert stored.probes.state.shape == (32, STATE_DIM)
    expected = model.outputs(stored.probes.state, stored.probes.goal, action=stored.probes.action)
    np.testing.assert_allclose(stored.probes.action, expected.action(), atol=2e-5)
    np.testing.assert_allclose(stored.probes.energy[:, 0], expected.energy("distance"), atol=2e-4)
    origin = json.loads((path / "policy.json").read_text())["provenance"]["imported"]
    assert origin["facts"]["network"] == NETWORK["scaling-crl"]
    assert (origin["layout"], origin["parameters"]) == ("scaling-crl", "params.npz")
    assert origin["parameters_sha256"] == hashlib.sha256(npz.read_bytes()).hexdigest()


def test_the_hash_in_the_provenance_is_that_of_the_parameters_that_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz = random_model(BlockNetwork, depth=4, width=12).save(tmp_path / "params.npz")
    toml = write_facts(tmp_path / "facts.toml", network=NETWORK["scaling-crl"])
    sha256, convert = hashlib.sha256(npz.read_bytes()).hexdigest(), imported.convert

    def convert_and_replace(*arguments: Any) -> Imported:
        npz.write_bytes(b"another file")
        return convert(*arguments)

    monkeypatch.setattr(imported, "convert", convert_and_replace)
    stored = bundle.read(imported.publish(npz, toml, tmp_path / "policies", version=1))
    assert stored.provenance["imported"]["parameters_sha256"] == sha256


def test_probes_are_standard_normal_or_fill_the_ranges_of_the_facts(tmp_path: Path) -> None:
    low, high = [10.0, -3.0, 0.0, 0.0, 5.0], [20.0, -2.0, 1.0, 0.0, 6.0]
    toml = write_facts(
        tmp_path / "facts.toml", network=NETWORK["scaling-crl"], probes={"state_low": low, "state_high": high}
    )
    known = import_facts.read(toml)
    sizes = {"actor_depth": 4, "actor_width": 1, "critic": "none"}
    spec = known.spec(**sizes, critic_depth=0, critic_width=0, representation_dim=0)
    state, goal = imported.probe_inputs(spec, known)
    assert (state >= low).all()
    assert (state <= high).all()
    assert (np.ptp(state, axis=0) >= 0.8 * (np.array(high) - low)).all()
    assert abs(goal.mean()) < 0.5
    assert 0.7 < goal.std() < 1.3
    again = imported.probe_inputs(spec, known)
    assert np.array_equal(state, again[0])
    assert np.array_equal(goal, again[1])


def test_an_import_leaves_the_unfinished_folders_of_other_processes(tmp_path: Path) -> None:
    npz = random_model(BlockNetwork, depth=4, width=12).save(tmp_path / "params.npz")
    toml = write_facts(tmp_path / "facts.toml", network=NETWORK["scaling-crl"])
    root = tmp_path / "policies"
    (root / ".writing-2000-0123abcd" / "params").mkdir(parents=True)
    imported.publish(npz, toml, root, version=3000)
    assert sorted(entry.name for entry in root.iterdir()) == [".writing-2000-0123abcd", "3000"]
    for inside in (root / "3000", root / "3000" / "params" / "new", root / "4000"):
        with pytest.raises(ValueError, match="choose another place|would look like a version"):
            imported.publish(npz, toml, inside, version=5)
    assert bundle.read(root / "3000").version == 3000
