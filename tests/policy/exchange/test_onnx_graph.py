"""The ONNX graphs, opened by ONNX's own checker and by onnxruntime, against the policy's probes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen
from onnx.reference import ReferenceEvaluator

from policy import bundle
from policy.bundle import probes as bundle_probes
from policy.exchange import onnx_graph
from policy.networks import PolicyParams
from policy.spec import ENERGY_NAMES, PolicySpec
from tests.policy.exchange.probes_of import SPECS, inputs, probe_noise, probes_of, trained_params
from tests.samples import WITHOUT_CRITIC, policy_spec


def session(path: Path) -> onnxruntime.InferenceSession:
    """The checked graph in onnxruntime, with every optimization."""
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors; onnxruntime warns of an input with a default value
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(opened: onnxruntime.InferenceSession, **feeds: np.ndarray) -> np.ndarray:
    (result,) = opened.run(None, feeds)
    return np.asarray(result)


def actor(folder: Path, spec: PolicySpec, params: PolicyParams | None = None) -> Path:
    path = folder / "actor.onnx"
    onnx_graph.write_actor(path, params or trained_params(spec), spec, version=2000)
    return path


def critic(folder: Path, spec: PolicySpec, params: PolicyParams | None = None) -> Path:
    path = folder / "critic.onnx"
    onnx_graph.write_critic(path, params or trained_params(spec), spec, version=2000)
    return path


def require_probes(folder: Path, spec: PolicySpec, params: PolicyParams, probes: bundle.Probes) -> None:
    """Compare what the graphs give with the probes, within the tolerances of a bundle."""
    opened = session(actor(folder, spec, params))
    state, goal = probes.state, probes.goal
    energy = probes.energy
    if spec.has_critic:
        energy = run(session(critic(folder, spec, params)), state=state, action=probes.action, goal=goal)[:, None]
    difference = probes.difference(
        run(opened, state=state, goal=goal),
        run(opened, state=state, goal=goal, noise=probe_noise(len(state), spec.chunk_dim)),
        energy=energy,
    )
    assert not difference


@pytest.mark.parametrize("special", SPECS)
def test_the_graphs_give_the_probes(special: str, tmp_path: Path) -> None:
    spec = SPECS[special]
    require_probes(tmp_path, spec, trained_params(spec), probes_of(spec))


def test_the_graphs_of_a_published_bundle_give_its_probes(published: Path, tmp_path: Path) -> None:
    read = bundle.read(published / "200")
    require_probes(tmp_path, read.spec, read.params, read.probes)


@pytest.mark.slow
def test_a_thousand_layers_give_the_probes(tmp_path: Path) -> None:
    spec = policy_spec(actor_depth=1024, actor_width=16, critic_depth=1024, critic_width=16)
    require_probes(tmp_path, spec, trained_params(spec), probes_of(spec))


@pytest.mark.parametrize("special", ["quaternions", "no LayerNorm"])
def test_onnxs_own_reference_gives_the_probes(special: str, tmp_path: Path) -> None:
    spec = SPECS[special]
    probes = probes_of(spec)
    feeds = {"state": probes.state, "goal": probes.goal}
    noise = probe_noise(len(probes.state), spec.chunk_dim)
    opened, scored = (ReferenceEvaluator(str(write(tmp_path, spec))) for write in (actor, critic))
    assert not probes.difference(
        evaluated(opened, feeds),
        evaluated(opened, feeds | {"noise": noise}),
        energy=evaluated(scored, feeds | {"action": probes.action})[:, None],
    )


def evaluated(reference: ReferenceEvaluator, feeds: dict[str, np.ndarray]) -> np.ndarray:
    results: Any = reference.run(None, feeds)
    return np.asarray(results[0])


def test_noise_that_is_not_fed_is_zero(tmp_path: Path) -> None:
    spec = SPECS["chunk, normalization"]
    opened = session(actor(tmp_path, spec))
    state, goal = inputs(spec)
    zeros = np.zeros((len(state), spec.chunk_dim), np.float32)
    without = run(opened, state=state, goal=goal)
    np.testing.assert_array_equal(without, run(opened, state=state, goal=goal, noise=zeros))
    assert not np.allclose(without, run(opened, state=state, goal=goal, noise=zeros + 1), atol=1e-2)


def test_one_row_of_noise_is_for_all_states_and_one_state_for_all_rows_of_noise(tmp_path: Path) -> None:
    spec = SPECS["paper"]
    opened = session(actor(tmp_path, spec))
    state, goal = inputs(spec)
    noise = probe_noise(len(state), spec.chunk_dim)
    given = run(opened, state=state, goal=goal, noise=noise[:1])
    np.testing.assert_allclose(
        given, run(opened, state=state, goal=goal, noise=np.repeat(noise[:1], len(state), axis=0)), atol=1e-6
    )
    given = run(opened, state=state[:1], goal=goal[:1], noise=noise)
    repeated = [np.repeat(rows[:1], len(noise), axis=0) for rows in (state, goal)]
    np.testing.assert_allclose(given, run(opened, state=repeated[0], goal=repeated[1], noise=noise), atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_the_graphs_take_any_number_of_rows(rows: int, tmp_path: Path) -> None:
    spec = SPECS["quaternions"]
    state, goal = inputs(spec, rows=rows)
    action = run(session(actor(tmp_path, spec)), state=state, goal=goal)
    assert action.shape == (rows, spec.chunk_dim)
    assert run(session(critic(tmp_path, spec)), state=state, action=action, goal=goal).shape == (rows,)


def test_opposite_quaternions_give_the_same_action_bit_for_bit(tmp_path: Path) -> None:
    spec = SPECS["quaternions"]
    opened = session(actor(tmp_path, spec))
    state, goal = inputs(spec)
    opposite_state, opposite_goal = state.copy(), goal.copy()
    opposite_state[:, 1:9] *= -1
    opposite_goal[:, 0:4] *= -1
    action = run(opened, state=state, goal=goal)
    np.testing.assert_array_equal(action, run(opened, state=opposite_state, goal=opposite_goal))
    opposite_state[:, 0] *= -1  # no quaternion
    assert not np.allclose(action, run(opened, state=opposite_state, goal=opposite_goal), atol=1e-3)


def test_a_subnormal_number_in_a_quaternion_is_0_as_in_jax(tmp_path: Path) -> None:
    spec = SPECS["quaternions"]
    state, goal = inputs(spec)
    state[:, 1:5], goal[:, 0:4] = (0, 0, -1e-40, 1), (0, -1e-40, 0, 1)
    without_state, without_goal = state.copy(), goal.copy()
    without_state[:, 3], without_goal[:, 1] = 0, 0
    opened = session(actor(tmp_path, spec))
    action = run(opened, state=state, goal=goal)
    np.testing.assert_array_equal(action, run(opened, state=without_state, goal=without_goal))
    expected = bundle_probes.compute(trained_params(spec), spec, state=state, goal=goal).action
    np.testing.assert_allclose(action, expected, atol=1e-5)


def with_arrays(spec: PolicySpec, arrays: dict[str, dict[str, Any]], *, network: str = "actor") -> PolicyParams:
    """Parameters that are 0 except for `arrays` of one network."""
    params = trained_params(spec)
    template = getattr(params, network)
    zeros = jax.tree.map(np.zeros_like, template.params)
    given = {layer: {key: np.asarray(array, np.float32) for key, array in of.items()} for layer, of in arrays.items()}
    changed = {name: layer | given.get(name, {}) for name, layer in zeros.items()}
    return params._replace(**{network: dataclasses.replace(template, params=changed)})


def test_layer_norm_swish_and_squashing_by_hand(tmp_path: Path) -> None:
    """LayerNorm maps two values a > b to 1 and -1, swish these to 0.7310586 and -0.2689414. The blocks add nothing."""
    spec = policy_spec(actor_width=2)
    first_two = 1000 * np.eye(6, 2)  # far above the epsilon of LayerNorm
    to_means_and_raw_log_stds = [[1, 0, 0, 0], [0, 1, 0, 0]]
    arrays = {
        "input": {"kernel": first_two, "norm_scale": [1, 1]},
        "output": {"kernel": to_means_and_raw_log_stds, "bias": [0, 0, 0, -1e6]},
    }
    opened = session(actor(tmp_path, spec, with_arrays(spec, arrays)))
    state = np.array([[2, 1, 9, 9], [1, 2, 9, 9]], np.float32)
    goal = np.ones((2, 2), np.float32)
    mean = np.array([[0.7310586, -0.2689414], [-0.2689414, 0.7310586]])
    np.testing.assert_allclose(run(opened, state=state, goal=goal), np.tanh(mean), rtol=0, atol=1e-6)
    noise = np.array([[2, -3], [0, 10]], np.float32)
    deviation = noise * np.exp([-1.5, -5])  # raw 0 is the middle of [-5, 2], raw -1e6 its end
    sampled = run(opened, state=state, goal=goal, noise=noise)
    np.testing.assert_allclose(sampled, np.tanh(mean + deviation), rtol=0, atol=1e-6)


def test_the_epsilon_of_layer_norm_by_hand(tmp_path: Path) -> None:
    """0.001 and -0.001 have the variance 1e-6; with 1e-6 more, LayerNorm gives 0.5 ** 0.5 and its opposite."""
    spec = policy_spec(actor_width=2, activation="relu")
    arrays = {
        "input": {"kernel": 1e-3 * np.eye(6, 2), "norm_scale": [1, 1]},
        "output": {"kernel": [[1, 0, 0, 0], [0, 1, 0, 0]]},
    }
    opened = session(actor(tmp_path, spec, with_arrays(spec, arrays)))
    action = run(opened, state=np.array([[1, -1, 9, 9]], np.float32), goal=np.ones((1, 2), np.float32))
    np.testing.assert_allclose(action, np.tanh([[0.70710678, 0]]), rtol=0, atol=1e-6)


def test_the_order_of_layers_and_blocks_by_hand(tmp_path: Path) -> None:
    spec = policy_spec(actor_width=2, actor_depth=8, activation="relu", layer_norm=False)
    one, first, second = np.eye(2), [[1, 1], [0, 1]], [[1, 0], [1, 1]]
    arrays = {
        "input": {"kernel": np.eye(6, 2)},  # (1, 2)
        "blocks": {
            # (1, 2) -> (1, 3) -> (4, 3), plus the block's input: (5, 5). The other order would give (4, 7).
            # (5, 5) -> (2, 6), plus (5, 5): (7, 11).
            "kernel": [[first, second, one, one], [one, one, one, one]],
            "bias": [[[0, 0]] * 4, [[0, 0], [0, 0], [0, 0], [-3, 1]]],
        },
        "output": {"kernel": [[0.1, 0, 0, 0], [0, -0.1, 0, 0]]},
    }
    opened = session(actor(tmp_path, spec, with_arrays(spec, arrays)))
    action = run(opened, state=np.array([[1, 2, 9, 9]], np.float32), goal=np.ones((1, 2), np.float32))
    np.testing.assert_allclose(action, np.tanh([[0.7, -1.1]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("energy", "expected"), [("l2", -4), ("l2_squared", -16), ("dot", 9), ("cosine", 0.6)])
def test_energies_by_hand(energy: str, expected: float, tmp_path: Path) -> None:
    spec = policy_spec(representation_dim=2, energy=energy)
    phi = with_arrays(spec, {"output": {"bias": [3, 4]}}, network="state_action_encoder")
    psi = with_arrays(spec, {"output": {"bias": [3, 0]}}, network="goal_encoder")
    opened = session(critic(tmp_path, spec, phi._replace(goal_encoder=psi.goal_encoder)))
    state, goal = inputs(spec)
    energies = run(opened, state=state, action=np.ones((len(state), 2), np.float32), goal=goal)
    np.testing.assert_allclose(energies, np.full(len(state), expected), rtol=1e-6)


@pytest.mark.parametrize("energy", ENERGY_NAMES)
def test_the_energy_of_encodings_that_are_zero_is_finite(energy: str, tmp_path: Path) -> None:
    spec = policy_spec(representation_dim=2, energy=energy)
    phi = with_arrays(spec, {}, network="state_action_encoder")
    psi = with_arrays(spec, {}, network="goal_encoder")
    opened = session(critic(tmp_path, spec, phi._replace(goal_encoder=psi.goal_encoder)))
    state, goal = inputs(spec)
    energies = run(opened, state=state, action=np.ones((len(state), 2), np.float32), goal=goal)
    np.testing.assert_allclose(energies, np.zeros(len(state)), rtol=0, atol=1.1e-6)  # sqrt of the least square


def test_metadata_has_what_a_robot_needs(tmp_path: Path) -> None:
    spec = policy_spec(action_names=("knee [°]", "rail [m]"), action_low=(-90.0, 0.0), action_high=(90.0, 0.8))
    about = session(actor(tmp_path, spec)).get_modelmeta()
    told = about.custom_metadata_map
    assert PolicySpec.from_json(told.pop("spec")) == spec
    assert (told.pop("name"), told.pop("environment"), told.pop("graph")) == ("point_u_maze", "point_u_maze", "actor")
    assert {key: json.loads(text) for key, text in told.items()} == {
        "version": 2000,
        "opset": 17,
        "state_names": ["x [m]", "y [m]", "vx [m/s]", "vy [m/s]"],
        "goal_names": ["x [m]", "y [m]"],
        "action_names": ["knee [°]", "rail [m]"],
        "action_low": [-90, 0],
        "action_high": [90, 0.8],
        "rest_action": [0, -1],
        "action_chunk": 1,
        "control_period_s": 0.08,
    }
    assert (about.version, about.producer_name, about.graph_name) == (2000, "kilolayer", "actor")


def test_inputs_and_outputs_have_names_sizes_and_units(tmp_path: Path) -> None:
    spec = SPECS["chunk, normalization"]
    opened = session(actor(tmp_path, spec))
    assert [(port.name, port.shape, port.type) for port in opened.get_inputs()] == [
        ("state", ["rows", 4], "tensor(float)"),
        ("goal", ["rows", 2], "tensor(float)"),
    ]
    (noise,) = opened.get_overridable_initializers()
    assert (noise.name, noise.shape) == ("noise", ["noise_rows", 6])
    assert [(port.name, port.shape) for port in opened.get_outputs()] == [("action", ["rows", 6])]
    scored = session(critic(tmp_path, spec))
    assert [(port.name, port.shape) for port in scored.get_inputs()] == [
        ("state", ["rows", 4]),
        ("action", ["rows", 6]),
        ("goal", ["rows", 2]),
    ]
    assert [(port.name, port.shape) for port in scored.get_outputs()] == [("energy", ["rows"])]
    graph = onnx.load(str(tmp_path / "actor.onnx")).graph
    assert [port.doc_string for port in graph.input][:2] == ["x [m], y [m], vx [m/s], vy [m/s]", "x [m], y [m]"]


def test_no_lower_opset_has_all_operators(tmp_path: Path) -> None:
    model = onnx.load(str(actor(tmp_path, SPECS["quaternions"])))
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    model.opset_import[0].version = 16
    with pytest.raises(onnx.checker.ValidationError, match="LayerNormalization"):
        onnx.checker.check_model(model)


@pytest.mark.parametrize("max_file_bytes", [0, 10**9])
def test_the_same_policy_gives_the_same_bytes(max_file_bytes: int, tmp_path: Path) -> None:
    spec = SPECS["quaternions"]
    params = trained_params(spec)
    for name, each in (("one", params), ("other", jax.tree.map(jax.numpy.asarray, params))):
        (tmp_path / name).mkdir()
        onnx_graph.write_actor(tmp_path / name / "actor.onnx", each, spec, version=7, max_file_bytes=max_file_bytes)
        onnx_graph.write_critic(tmp_path / name / "critic.onnx", each, spec, version=7, max_file_bytes=max_file_bytes)
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert len(one) == (2 if max_file_bytes else 4)
    assert one == other


def test_arrays_too_large_for_a_model_file_go_to_a_second_one(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPECS["chunk, normalization"], actor_width=20)
    params = trained_params(spec)
    inline = actor(tmp_path, spec)
    parted = tmp_path / "parted" / "actor.onnx"
    parted.parent.mkdir()
    onnx_graph.write_actor(parted, params, spec, version=2000, max_file_bytes=10_000)
    assert sorted(path.name for path in parted.parent.iterdir()) == ["actor.onnx", "actor.onnx.data"]
    tensors = onnx.load(str(parted), load_external_data=False).graph.initializer
    external = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in tensors}
    kernels = {name: where for name, where in external.items() if where}
    blocks = [f"actor.blocks.{block}.{layer}.kernel" for block in range(2) for layer in range(4)]
    assert set(kernels) == set(blocks)  # the others have fewer than 1024 bytes
    assert [int(kernels[name]["offset"]) for name in blocks] == [4096 * index for index in range(8)]  # mapped by page
    assert {kernels[name]["length"] for name in blocks} == {"1600"}
    state, goal = inputs(spec)
    noise = probe_noise(len(state), spec.chunk_dim)
    for feeds in ({}, {"noise": noise}):
        np.testing.assert_array_equal(
            run(session(parted), state=state, goal=goal, **feeds), run(session(inline), state=state, goal=goal, **feeds)
        )


def test_a_policy_without_a_critic_has_no_second_graph(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this policy has no critic to export"):
        critic(tmp_path, policy_spec(**WITHOUT_CRITIC))


def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    params = trained_params(SPECS["paper"])
    other = params._replace(actor=dataclasses.replace(params.actor, module=linen.Dense(4)))
    with pytest.raises(ValueError, match="operators for ResidualNetwork only, and actor is Dense; export another"):
        actor(tmp_path, SPECS["paper"], other)
