"""A policy is read back bit for bit, and refused by name when its contents do not fit each other."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from policy import bundle
from policy.acting import act, action_distribution, encode_goal, encode_state_action
from policy.bundle import arrays
from policy.networks import PolicyParams, init_policy
from policy.spec import PolicySpec
from tests.parameters import fresh_params
from tests.policy.bundles import PROBE_GOAL, PROBE_STATE, change_json, publish, recompute_manifest, refusal
from tests.samples import WITHOUT_CRITIC, policy_spec


def test_a_published_policy_is_read_back_bit_for_bit(published: Path, spec: PolicySpec, params: PolicyParams) -> None:
    read = bundle.read(published / "200")
    assert (read.path, read.version, read.spec, read.provenance) == (published / "200", 200, spec, {"seed": 7})
    assert type(read.params) is PolicyParams
    assert jax.tree.structure(read.params) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(read.params), jax.tree.leaves(params), strict=True):
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == np.float32
        assert ours.tobytes() == np.asarray(theirs).tobytes()
    np.testing.assert_array_equal(read.probes.state, PROBE_STATE)
    np.testing.assert_array_equal(read.probes.goal, PROBE_GOAL)
    np.testing.assert_allclose(read.probes.action, jax.jit(act)(params, PROBE_STATE, PROBE_GOAL), atol=1e-6)


def test_probes_hold_sampled_actions_with_the_noise_of_seed_0_and_energies(
    published: Path, params: PolicyParams
) -> None:
    probes = bundle.read(published / "200").probes
    state, goal, action = map(jnp.asarray, (PROBE_STATE, PROBE_GOAL, probes.action))
    mean, log_std = action_distribution(params, state, goal)
    key = jax.random.key(0, impl="threefry2x32")
    noise = [jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, row), 0), (2,)) for row in range(4)]
    np.testing.assert_allclose(probes.sampled_action, np.tanh(mean + np.exp(log_std) * np.array(noise)), atol=1e-5)
    pairs, goals = encode_state_action(params, state, action), encode_goal(params, goal)
    np.testing.assert_allclose(probes.energy[:, 0], -np.linalg.norm(pairs - goals, axis=1), atol=1e-5)
    assert probes.energy.shape == (4, 1)


def test_a_policy_without_a_critic_has_no_energies(tmp_path: Path) -> None:
    spec = policy_spec(**WITHOUT_CRITIC)
    params = jax.jit(init_policy, static_argnums=1)(jax.random.key(2), spec)
    inputs = {"probe_state": np.ones((3, 4)), "probe_goal": np.ones((3, 2))}
    assert bundle.read(publish(tmp_path, 1, spec=spec, params=params, **inputs)).probes.energy.shape == (3, 0)


@pytest.mark.parametrize("network", ["actor", "state_action_encoder", "goal_encoder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_that_is_not_finite_is_refused(
    damaged: Path, params: PolicyParams, *, network: str, value: float
) -> None:
    tree = jax.tree.map(np.array, arrays.to_tree(params))
    tree[network]["output"]["kernel"][-1, -1] = value
    shutil.rmtree(damaged / "params")
    ocp.PyTreeCheckpointer().save(damaged / "params", tree)
    recompute_manifest(damaged)
    error = refusal(damaged)
    assert error.reason == "arrays"
    assert f"array {network}.output.kernel contains NaN or infinity" in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"action_chunk": 3}, id="a chunk of three"),
        pytest.param({"critic": "none", "critic_depth": 0, "critic_width": 0, "representation_dim": 0}, id="no critic"),
        pytest.param(
            {
                "state_names": ("w", "x", "y", "z"),
                "state_quaternions": (0,),
                "normalize_observations": True,
                "normalization_mean": (0.1, 0.2, 0.3, 0.4),
                "normalization_std": (1.1, 1.2, 1.3, 1.4),
            },
            id="quaternions and normalized states",
        ),
    ],
)
def test_what_an_action_depends_on_is_read_back(tmp_path: Path, spec: PolicySpec, changes: dict[str, Any]) -> None:
    spec = dataclasses.replace(spec, **changes)
    params = jax.jit(init_policy, static_argnums=1)(jax.random.key(2), spec)
    state = np.linspace(-1, 1, 4 * spec.state_dim, dtype=np.float32).reshape(4, -1)
    expected = jax.jit(act)(params, state, PROBE_GOAL)
    path = publish(tmp_path, 7, spec=spec, params=params, probe_state=state)
    read = bundle.read(path)
    assert read.spec == spec
    assert jax.tree.structure(read.params) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(read.params), jax.tree.leaves(params), strict=True):
        assert isinstance(ours, np.ndarray)
        assert ours.tobytes() == np.asarray(theirs).tobytes()
    assert read.probes.action.shape == (4, spec.chunk_dim)
    np.testing.assert_allclose(read.probes.action, expected, atol=1e-6)


def test_shapes_are_traced_once_for_versions_whose_statistics_differ(
    tmp_path: Path, spec: PolicySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(spec, actor_width=7)  # as in no other test
    params = fresh_params(1, spec)
    traced: list[PolicySpec] = []

    def note(key: jax.Array, spec: PolicySpec) -> PolicyParams:
        traced.append(spec)
        return init_policy(key, spec)

    monkeypatch.setattr(arrays, "init_policy", note)
    for version in (1, 2):
        seen = (float(version),) * spec.state_dim
        changes = {"seen_mean": seen, "seen_std": seen, "seen_low": seen, "seen_high": seen}
        path = publish(tmp_path, version, spec=dataclasses.replace(spec, **changes), params=params)
        assert bundle.read(path).spec.seen_mean == seen
    assert len(traced) == 1


def test_the_digest_names_the_contents(published: Path, damaged: Path, params: PolicyParams, spec: PolicySpec) -> None:
    assert bundle.read(damaged).manifest_sha256 == bundle.read(published / "200").manifest_sha256
    other = publish(damaged.parent, 201, spec=spec, params=params, provenance={"seed": 8})
    assert bundle.read(other).manifest_sha256 != bundle.read(damaged).manifest_sha256


@pytest.mark.parametrize("name", ["007", "latest", "-1", "200.bak"])
def test_a_folder_that_names_no_version_is_refused(damaged: Path, name: str) -> None:
    assert refusal(damaged.rename(damaged.parent / name)).reason == "missing"


def test_an_absent_version_is_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "5").reason == "missing"


def nested(levels: int) -> Any:
    """A number in lists and objects by turns."""
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def test_a_nested_provenance_within_the_limit_is_read(damaged: Path) -> None:
    change_json(damaged / "policy.json", lambda stored: stored.update(provenance={"a": nested(99)}))
    recompute_manifest(damaged)
    assert bundle.read(damaged).provenance == {"a": nested(99)}
    change_json(damaged / "policy.json", lambda stored: stored.update(provenance={"a": nested(100)}))
    recompute_manifest(damaged)
    assert "nested more than 100 levels" in str(refusal(damaged))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda stored: stored.update(format=1), "format 1, but this version reads format 3"),
        (lambda stored: stored.pop("spec"), "spec"),
        (lambda stored: stored.pop("provenance"), "provenance"),
        (lambda stored: stored.update(provenance=[1]), "provenance must be an object, got [1]"),
        (lambda stored: stored.update(provenance="a run"), "provenance must be an object, got 'a run'"),
        (lambda stored: stored.update(provenance=None), "provenance must be an object, got None"),
        (lambda stored: stored.update(provenance={"a": nested(700)}), "nested more than 100 levels deep"),
        (lambda stored: stored.update(spec=[]), "policy.json"),
        (lambda stored: stored["spec"].pop("name"), "lacks name"),
        (lambda stored: stored["spec"].update(actor_depth=6), "try 4 or 8"),
        (lambda stored: stored["spec"].update(control_period_s=10**400), "fits into a float"),
    ],
)
def test_a_description_that_cannot_be_met_is_refused(
    damaged: Path, change: Callable[[dict[str, Any]], Any], complaint: str
) -> None:
    change_json(damaged / "policy.json", change)
    recompute_manifest(damaged)
    error = refusal(damaged)
    assert error.reason == "spec"
    assert complaint in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"actor_width": 16},
        {"actor_depth": 8},
        {"critic_depth": 4},
        {"representation_dim": 6},
        {"goal_names": ["x [m]"]},
        {"actor_width": 10**12},
        {"actor_depth": 4 * 10**30},
        *(
            {size: number}
            for size in ("actor_width", "representation_dim")
            for number in (2**31, 2**63, 10**30, 10**400)
        ),
    ],
    ids=lambda changes: f"{changes!s:.40}",
)
def test_arrays_that_do_not_fit_the_specification_are_refused(damaged: Path, changes: dict[str, Any]) -> None:
    change_json(damaged / "policy.json", lambda stored: stored["spec"].update(changes))
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "arrays"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda tree: tree | {"actor": tree["goal_encoder"]}, id="another network"),
        pytest.param(lambda tree: tree | {"optimizer": np.zeros(3, np.float32)}, id="one more array"),
        pytest.param(lambda tree: {"actor": tree["actor"]}, id="no critic"),
        pytest.param(lambda tree: jax.tree.map(lambda leaf: leaf.astype(np.float16), tree), id="another type"),
    ],
)
def test_other_arrays_are_refused(damaged: Path, params: PolicyParams, make: Callable[[Any], Any]) -> None:
    tree = jax.tree.map(np.asarray, arrays.to_tree(params))
    shutil.rmtree(damaged / "params")
    ocp.PyTreeCheckpointer().save(damaged / "params", make(tree))
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "arrays"


def test_an_array_declared_larger_than_any_memory_is_refused_before_it_is_read(damaged: Path) -> None:
    base = f"file://{damaged / 'params'}/"
    stored = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": "actor.input.kernel/"}}
    array = tensorstore.open(stored).result()
    array.resize(exclusive_max=[10**6, 10**6], resize_metadata_only=True).result()
    recompute_manifest(damaged)
    error = refusal(damaged)
    assert error.reason == "arrays"
    assert "array actor.input.kernel is [1000000, 1000000] float32" in str(error)


def test_a_folder_without_arrays_is_refused(damaged: Path) -> None:
    shutil.rmtree(damaged / "params")
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "arrays"


def test_the_arrays_of_another_policy_miss_the_probes(damaged: Path, spec: PolicySpec) -> None:
    stranger = jax.jit(init_policy, static_argnums=1)(jax.random.key(99), spec)
    other = publish(damaged.parent, 1, spec=spec, params=stranger)
    shutil.rmtree(damaged / "params")
    shutil.copytree(other / "params", damaged / "params")
    recompute_manifest(damaged)
    error = refusal(damaged)
    assert error.reason == "probes"
    assert "actions differ from the published ones by" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"action": np.full((4, 2), np.nan, np.float32)}, id="not a number"),
        pytest.param({"energy": np.full((4, 1), -np.inf, np.float32)}, id="an infinite energy"),
        pytest.param({"energy": np.zeros((4, 0), np.float32)}, id="no energies"),
        pytest.param({"energy": np.full((4, 1), -1.5, np.float32)}, id="other energies"),
        pytest.param({"sampled_action": np.zeros((4, 2), np.float32)}, id="other sampled actions"),
        pytest.param({"state": PROBE_STATE + 1}, id="another state"),
        pytest.param({"goal": PROBE_GOAL[:, :1]}, id="too narrow"),
        pytest.param({"goal": PROBE_GOAL[:2]}, id="too few"),
        pytest.param({"state": PROBE_STATE[0]}, id="one axis"),
        pytest.param({"action": np.array([["a", "b"]] * 4)}, id="text"),
        pytest.param({"action": np.zeros((4, 2))}, id="float64"),
        pytest.param({"action": np.array([[None] * 2] * 4)}, id="pickled objects"),
        pytest.param(
            {
                name: np.zeros((0, width), np.float32)
                for name, width in zip(bundle.Probes._fields, (3, 2, 2, 2, 1), strict=True)
            },
            id="no row",
        ),
    ],
)
def test_probes_that_do_not_fit_are_refused(damaged: Path, change: dict[str, np.ndarray]) -> None:
    with np.load(damaged / "probes.npz") as stored:
        probes = dict(stored)
    np.savez(damaged / "probes.npz", **(probes | change))  # type: ignore[arg-type]
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "probes"


@pytest.mark.parametrize("contents", [b"", b"PK\x03\x04 not a zip archive", b"\x80\x04N."])
def test_probes_that_are_no_archive_are_refused(damaged: Path, contents: bytes) -> None:
    (damaged / "probes.npz").write_bytes(contents)
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "probes"


def test_a_probe_missing_from_the_archive_is_refused(damaged: Path) -> None:
    np.savez(damaged / "probes.npz", state=PROBE_STATE, goal=PROBE_GOAL)
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "probes"


@pytest.mark.parametrize(
    ("name", "content", "detail"),
    [
        ("params/manifest.ocdbt", None, "params/manifest.ocdbt is missing, so it has no arrays"),
        ("policy.json", None, "policy.json is missing"),
        ("policy.json", b"null", "policy.json cannot be parsed: it has another structure than expected"),
        ("policy.json", b"{}", "policy.json cannot be parsed: it lacks 'format'"),
        ("policy.json", b"", "policy.json cannot be parsed: it is not JSON: Expecting value in line 1, column 1"),
        ("policy.json", b"\xff", "policy.json cannot be parsed: it is not JSON: it is not UTF-8 text"),
        ("probes.npz", None, "probes.npz is missing"),
    ],
)
def test_a_file_that_is_missing_or_malformed_is_named_in_plain_words(
    damaged: Path, name: str, content: bytes | None, detail: str
) -> None:
    (damaged / name).unlink()
    if content is not None:
        (damaged / name).write_bytes(content)
    recompute_manifest(damaged)
    assert refusal(damaged).detail == detail


def test_loading_again_and_again_keeps_no_threads_and_no_files(published: Path) -> None:
    import psutil

    process = psutil.Process()
    bundle.read(published / "200")
    before = process.num_threads(), process.num_fds()
    for _ in range(20):
        bundle.read(published / "200")
    after = process.num_threads(), process.num_fds()
    assert after[0] < before[0] + 16  # pools of the libraries may still be filling
    assert after[1] <= before[1]
