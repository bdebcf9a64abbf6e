"""The JAX artefacts, in another process that has JAX and numpy and none of our code, against the policy's probes."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from policy import bundle
from policy.exchange import jax_artefact
from policy.networks import PolicyParams
from policy.spec import ENERGY_NAMES, PolicySpec
from tests.policy.exchange.probes_of import SPECS, probe_noise, probes_of, trained_params
from tests.samples import WITHOUT_CRITIC, policy_spec

WITHOUT_OUR_CODE = """
import json, pathlib, sys
import jax
import numpy as np

results = {}
for job in sys.argv[1:]:
    artefact = jax.export.deserialize(bytearray(pathlib.Path(job).read_bytes()))
    arrays = dict(np.load(job + ".npz"))
    runs = {name: jax.jit(artefact.call)(*[arrays[name + str(index)] for index in range(3)]) for name in ("a", "b")}
    np.savez(job + ".results.npz", allow_pickle=False, **runs)
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded & {"policy", "training", "serving", "kilolayer", "tests", "flax", "orbax"})))
"""


def run_elsewhere(folder: Path, jobs: dict[Path, list[tuple[np.ndarray, ...]]]) -> dict[Path, list[np.ndarray]]:
    """Run each artefact with two lists of arguments in a process of its own, in an empty folder."""
    for path, (first, second) in jobs.items():
        arrays = {
            f"{name}{index}": array for name, run in (("a", first), ("b", second)) for index, array in enumerate(run)
        }
        np.savez(f"{path}.npz", allow_pickle=False, **arrays)
    (folder / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_OUR_CODE, *map(str, jobs)],
        cwd=folder / "elsewhere",
        check=True,
        capture_output=True,
        timeout=600,
        text=True,
    )
    assert json.loads(done.stdout) == []
    results: dict[Path, list[np.ndarray]] = {}
    for path in jobs:
        with np.load(f"{path}.results.npz") as stored:
            results[path] = [stored["a"], stored["b"]]
    return results


def write(folder: Path, spec: PolicySpec, params: PolicyParams) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    jax_artefact.write_actor(folder / "actor.jax", params, spec)
    if spec.has_critic:
        jax_artefact.write_critic(folder / "critic.jax", params, spec)
    return folder / "actor.jax", folder / "critic.jax"


def require_probes(folder: Path, policies: dict[str, tuple[PolicySpec, PolicyParams, bundle.Probes]]) -> None:
    jobs: dict[Path, list[tuple[np.ndarray, ...]]] = {}
    for name, (spec, params, probes) in policies.items():
        actor, critic = write(folder / name, spec, params)
        noise = probe_noise(len(probes.state), spec.chunk_dim)
        jobs[actor] = [(probes.state, probes.goal, each) for each in (np.zeros_like(noise), noise)]
        rows = (probes.state, probes.action, probes.goal)
        jobs[critic] = [rows, tuple(array[:1] for array in rows)]
    results = run_elsewhere(folder, jobs)
    for name, (_, _, probes) in policies.items():
        energy, of_first_row = results[folder / name / "critic.jax"]
        assert not probes.difference(*results[folder / name / "actor.jax"], energy=energy[:, None])
        np.testing.assert_allclose(of_first_row, energy[:1], rtol=1e-3, atol=1e-5)


def test_the_artefacts_give_the_probes_without_our_code(published: Path, tmp_path: Path) -> None:
    read = bundle.read(published / "200")
    require_probes(tmp_path, {"published": (read.spec, read.params, read.probes)})


@pytest.mark.slow
def test_artefacts_of_all_kinds_and_of_a_thousand_layers_give_the_probes(tmp_path: Path) -> None:
    deep = policy_spec(actor_depth=1024, actor_width=16, critic_depth=1024, critic_width=16)
    specs = SPECS | {"deep": deep}
    require_probes(tmp_path, {name: (spec, trained_params(spec), probes_of(spec)) for name, spec in specs.items()})


def test_an_artefact_takes_any_number_of_rows_on_cpus_and_gpus(tmp_path: Path) -> None:
    spec = SPECS["paper"]
    for path, sizes in zip(write(tmp_path, spec, trained_params(spec)), ((4, 2, 2), (4, 2, 2)), strict=True):
        artefact = jax.export.deserialize(bytearray(path.read_bytes()))
        assert artefact.platforms == ("cpu", "cuda")
        assert [str(aval.dtype) for aval in artefact.in_avals] == ["float32"] * 3
        assert [tuple(map(str, aval.shape)) for aval in artefact.in_avals] == [("rows", str(size)) for size in sizes]


def test_products_are_in_full_precision_also_where_a_device_would_round_the_factors(tmp_path: Path) -> None:
    spec = SPECS["paper"]
    for path in write(tmp_path, spec, trained_params(spec)):
        program = jax.export.deserialize(bytearray(path.read_bytes())).mlir_module()
        products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_an_artefact_is_the_same_bytes_each_time_and_says_nothing_of_this_machine(tmp_path: Path) -> None:
    spec = SPECS["quaternions"]
    one, other = (write(tmp_path / name, spec, trained_params(spec)) for name in ("one", "other"))
    for first, second in zip(one, other, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert b".py" not in first.read_bytes()
        assert str(Path(jax_artefact.__file__).parent).encode() not in first.read_bytes()


def test_an_artefact_is_float32_in_a_program_with_64_bits(tmp_path: Path) -> None:
    spec = SPECS["paper"]
    expected = [path.read_bytes() for path in write(tmp_path / "32", spec, trained_params(spec))]
    with jax.enable_x64(True):
        assert [path.read_bytes() for path in write(tmp_path / "64", spec, trained_params(spec))] == expected


@pytest.mark.parametrize("energy", ENERGY_NAMES)
def test_every_energy_has_an_artefact(energy: str, tmp_path: Path) -> None:
    spec = policy_spec(energy=energy, representation_dim=2)
    jax_artefact.write_critic(tmp_path / "critic.jax", trained_params(spec), spec)
    artefact = jax.export.deserialize(bytearray((tmp_path / "critic.jax").read_bytes()))
    assert [tuple(map(str, aval.shape)) for aval in artefact.out_avals] == [("rows",)]


def test_parameters_too_large_for_a_file_are_refused(tmp_path: Path) -> None:
    # Kernels of 6 x 2, 4 x 2 x 2 and 2 x 4 numbers, 5 layers with 3 x 2 more, 4 biases at the end: 70 of 4 bytes.
    spec = policy_spec(actor_width=2)
    jax_artefact.write_actor(tmp_path / "actor.jax", trained_params(spec), spec, max_bytes=280)
    (tmp_path / "actor.jax").unlink()
    with pytest.raises(
        ValueError, match=r"the parameters have .* GB, and a JAX artefact has room for .*; export another"
    ):
        jax_artefact.write_actor(tmp_path / "actor.jax", trained_params(spec), spec, max_bytes=279)
    assert not (tmp_path / "actor.jax").exists()


def test_a_policy_without_a_critic_has_no_second_artefact(tmp_path: Path) -> None:
    spec = policy_spec(**WITHOUT_CRITIC)
    with pytest.raises(ValueError, match="this policy has no critic to export"):
        jax_artefact.write_critic(tmp_path / "critic.jax", trained_params(spec), spec)
