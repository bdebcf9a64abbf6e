"""The client's wheel on the oldest and the newest Python found, against the real server.

`make client-matrix` runs the client's own tests on every Python between them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import acting
from policy.bundle import Bundle
from scripts import client_matrix
from scripts.client_matrix import Resolution

PROGRAM = Path(__file__).with_name("client_program.py")


class Running(Protocol):
    address: str


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return client_matrix.build_wheel(tmp_path_factory.mktemp("wheel"))


def test_pythons_are_found() -> None:
    supported, found = client_matrix.supported_pythons(), client_matrix.find_pythons()
    assert supported == ["3.9", "3.10", "3.11", "3.12", "3.13"]
    assert list(found) == [version for version in supported if version in found]
    assert f"3.{sys.version_info.minor}" in found or f"3.{sys.version_info.minor}" not in supported
    for version, python in found.items():
        assert subprocess.check_output([python, "--version"], text=True).startswith(f"Python {version}.")


@pytest.mark.slow
@pytest.mark.parametrize(("index", "resolution"), [(0, "lowest"), (-1, "newest")], ids=["oldest", "newest"])
def test_the_client_runs_with_old_and_new_dependencies(
    running: Running, served_bundle: Bundle, *, wheel: Path, tmp_path: Path, index: int, resolution: Resolution
) -> None:
    pythons = list(client_matrix.find_pythons().values())
    assert pythons, "no Python from 3.9 to 3.13 found on PATH or among pyenv's versions"
    try:
        environment = client_matrix.install(pythons[index], wheel, tmp_path / "venv", resolution=resolution)
    except client_matrix.NoIndexError as error:
        pytest.skip(f"needs a package index: {error}")
    state = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    goal = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)
    done = subprocess.run(
        [environment.python, "-I", PROGRAM, running.address],
        input=json.dumps({"state": state.tolist(), "goal": goal.tolist()}),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    responses = json.loads(done.stdout)
    params, spec = served_bundle.params, served_bundle.spec
    action = jax.jit(acting.act)(params, jnp.asarray(state), jnp.asarray(goal))
    energy = acting.score(params, jnp.asarray(state), action, goal=jnp.asarray(goal), energy=spec.energy)
    assert Path(responses["kilolayer"]).is_relative_to(tmp_path)
    assert responses["dims"] == [4, 2, 2]
    for way in ("action", "streamed", "awaited"):
        np.testing.assert_allclose(responses[way], action, atol=1e-6, err_msg=way)
    np.testing.assert_allclose(responses["energy"], energy, atol=1e-5)
    assert responses["policies"] == [spec.name]
    assert responses["refusal"] == {"status": "INVALID_ARGUMENT", "reason": "invalid_request"}
