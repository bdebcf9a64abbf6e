"""A small policy that every test of policy/ can build on, in memory and on disk."""

import shutil
from pathlib import Path

import jax
import pytest

from policy.networks import PolicyParams, init_policy
from policy.spec import PolicySpec
from tests.policy.bundles import publish
from tests.samples import policy_spec


@pytest.fixture(scope="session")
def spec() -> PolicySpec:
    """3 state values, 2 goal values, 2 action values; one block of width 8 to act, two of width 4 to score."""
    return policy_spec(
        name="maze-1.0_a",
        state_names=("x [m]", "y [m]", "v [m/s]"),
        action_names=("fx [N]", "fy [N]"),
        action_low=(-2.0, -3.0),
        action_high=(2.0, 3.0),
        control_period_s=0.05,
        success_radius=0.5,
        actor_width=8,
        critic_depth=8,
        critic_width=4,
        representation_dim=5,
    )


@pytest.fixture(scope="session")
def params(spec: PolicySpec) -> PolicyParams:
    return jax.jit(init_policy, static_argnums=1)(jax.random.key(1), spec)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, spec: PolicySpec, params: PolicyParams) -> Path:
    """A root with one version, 200; the tests leave it as it is."""
    root = tmp_path_factory.mktemp("published")
    publish(root, 200, spec=spec, params=params)
    return root


@pytest.fixture
def damaged(published: Path, tmp_path: Path) -> Path:
    """A copy of the published version, for a test to damage."""
    return shutil.copytree(published / "200", tmp_path / "root" / "200")
