"""Two versions of a small policy, on disk, and the command as a function."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import bundle
from policy.spec import PolicySpec
from tests.parameters import fresh_params
from tests.samples import policy_spec
from training.policy_command.run import main

SPEC = policy_spec(
    seen_mean=(0.0, 0.0, 0.0, 0.0),
    seen_std=(1.0, 1.0, 1.0, 1.0),
    seen_low=(-1.0, -2.0, -3.0, -4.0),
    seen_high=(1.0, 2.0, 3.0, 4.0),
)
METRICS = {"env_steps": 2000, "eval/stay": 0.5, "eval/touched_count": 64}
PROBE_STATE = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
PROBE_GOAL = np.linspace(5, -5, 6, dtype=np.float32).reshape(3, 2)

Command = Callable[..., tuple[int, dict[str, Any]]]


def publish(root: Path, version: int, *, spec: PolicySpec = SPEC, seed: int | None = None, **changes: Any) -> Path:
    """Publish parameters that the seed determines, by default the version."""
    plain = dataclasses.replace(spec, **dict.fromkeys(("seen_mean", "seen_std", "seen_low", "seen_high"), ()))
    arguments: dict[str, Any] = {
        "probe_state": PROBE_STATE,
        "probe_goal": PROBE_GOAL,
        "provenance": {"date": "2026-01-01T00:00:00+00:00", "metrics": METRICS, "config": {"seed": 7}},
    }
    params = fresh_params(version if seed is None else seed, plain)  # the statistics that are left out change none
    return bundle.write(root, version, spec=spec, params=params, **(arguments | changes))


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the versions 1000 and 2000; the tests leave it as it is."""
    root = tmp_path_factory.mktemp("policies")
    for version in (1000, 2000):
        publish(root, version)
    return root


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command with --json; return its exit code and its object."""

    def run(*words: object) -> tuple[int, dict[str, Any]]:
        code = main([*map(str, words), "--json"])
        printed = capsys.readouterr()
        assert not printed.err, printed.err
        return code, json.loads(printed.out)

    return run
