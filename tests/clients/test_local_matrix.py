"""A local policy on the oldest and the newest Python found, with the oldest and the newest libraries of its extra."""

import json
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from kilolayer import LocalPolicy
from scripts import client_matrix
from scripts.client_matrix import CLIENT, Resolution
from tests.clients.exports import exported, publish

PROGRAM = Path(__file__).with_name("local_program.py")


@pytest.mark.slow
@pytest.mark.parametrize(("index", "resolution"), [(0, "lowest"), (-1, "newest")], ids=["oldest", "newest"])
def test_old_and_new_libraries_give_the_same_actions(tmp_path: Path, *, index: int, resolution: Resolution) -> None:
    extra: list[str] = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "local"
    ]
    tools = [each.replace(">=", "==") + ".*" for each in extra] if resolution == "lowest" else extra
    python = list(client_matrix.find_pythons().values())[index]
    try:
        wheel = client_matrix.build_wheel(tmp_path)
        environment = client_matrix.install(python, wheel, tmp_path / "venv", resolution=resolution, tools=tools)
    except client_matrix.NoIndexError as error:
        pytest.skip(f"needs a package index: {error}")
    folder = exported(publish(tmp_path / "policies"), tmp_path / "exported")
    random = np.random.default_rng(0)
    inputs = {name: random.normal(size=(3, size)).tolist() for name, size in (("state", 4), ("goal", 2))}
    done = subprocess.run(
        [environment.python, "-I", PROGRAM, folder],
        input=json.dumps(inputs),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    policy = LocalPolicy(folder, timeout_s=60)
    action, sampled = (policy.act(**inputs, **how).action for how in ({}, {"seed": 7, "best_of": 3}))
    energy = policy.score(inputs["state"], action, goal=inputs["goal"]).energy
    for results in json.loads(done.stdout).values():
        for found, expected in zip(results, (action, sampled, energy), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
