"""A published policy acts in one's own process as a server would."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import policy
from policy import LoadedPolicy, bundle
from policy.networks import PolicyParams
from policy.published import MissingVersionError
from policy.spec import PolicySpec
from serving.engine.engine import Engine, Kind, noise_columns
from tests.parameters import fresh_params
from tests.policy.bundles import publish
from tests.samples import WITHOUT_CRITIC

ROWS = 5
STATE = np.linspace(-2, 2, 3 * ROWS, dtype=np.float32).reshape(ROWS, 3)
GOAL = np.linspace(1, -1, 2 * ROWS, dtype=np.float32).reshape(ROWS, 2)


@pytest.fixture(scope="module")
def loaded(published: Path) -> LoadedPolicy:
    return policy.load(published / "200")


@pytest.fixture(scope="module")
def engine(loaded: LoadedPolicy) -> Engine:
    """What computes in a server."""
    engine = Engine(loaded.bundle.params, loaded.spec, max_rows=8)
    for kind in (Kind.ACT, Kind.SAMPLE):
        engine.compile(kind, 8)
    return engine


def test_it_knows_its_specification_and_its_version(loaded: LoadedPolicy, spec: PolicySpec) -> None:
    assert loaded.spec == spec
    assert loaded.version == 200


def test_a_folder_of_versions_gives_the_newest_or_the_one_that_is_named(
    tmp_path: Path, spec: PolicySpec, params: PolicyParams
) -> None:
    for version in (9, 10):
        publish(tmp_path, version, spec=spec, params=params)
    assert policy.load(tmp_path).version == 10
    assert policy.load(str(tmp_path), 9).version == 9
    with pytest.raises(MissingVersionError, match="has no version 8; it has 9, 10$"):
        policy.load(tmp_path, 8)


def test_a_damaged_policy_is_refused(damaged: Path) -> None:
    with (damaged / "probes.npz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(bundle.BundleError, match="probes.npz has "):
        policy.load(damaged)


def test_the_deterministic_action_is_that_of_the_server(loaded: LoadedPolicy, engine: Engine) -> None:
    served = engine.compute(Kind.ACT, np.concatenate([STATE, GOAL], axis=1))
    action = loaded.act(STATE, GOAL)
    assert (action.shape, action.dtype) == ((ROWS, 2), np.float32)
    np.testing.assert_allclose(action, served, atol=1e-6)


def test_a_seed_gives_the_sample_that_the_server_gives(loaded: LoadedPolicy, engine: Engine) -> None:
    seed = 2**63 + 5
    columns = noise_columns(seed, rows=ROWS, candidates=1)
    served = engine.compute(Kind.SAMPLE, np.concatenate([STATE, GOAL, columns], axis=1))
    np.testing.assert_allclose(loaded.act(STATE, GOAL, seed=seed), served, atol=1e-6)
    assert np.abs(served - loaded.act(STATE, GOAL)).max() > 0.01


def test_it_gives_the_published_actions_of_the_probes(loaded: LoadedPolicy) -> None:
    probes = loaded.bundle.probes
    np.testing.assert_allclose(loaded.act(probes.state, probes.goal), probes.action, atol=1e-6)
    np.testing.assert_allclose(loaded.act(probes.state, probes.goal, seed=0), probes.sampled_action, atol=1e-6)


def test_noise_of_zeros_is_the_deterministic_action_and_noise_scales_with_the_standard_deviation(
    loaded: LoadedPolicy,
) -> None:
    deterministic = loaded.act(STATE, GOAL)
    np.testing.assert_allclose(loaded.act(STATE, GOAL, noise=np.zeros(2)), deterministic, atol=1e-7)
    raw = [np.arctanh(loaded.act(STATE, GOAL, noise=[scale, 0.0]).astype(float)) for scale in (0.0, 0.1, 0.2)]
    np.testing.assert_allclose(raw[2] - raw[0], 2 * (raw[1] - raw[0]), atol=1e-4)
    np.testing.assert_allclose(raw[2][:, 1], raw[0][:, 1], atol=1e-5)


def test_one_state_gives_one_action_and_one_goal_serves_every_row(loaded: LoadedPolicy) -> None:
    one = loaded.act(STATE[1].tolist(), GOAL[0])
    assert one.shape == (2,)
    np.testing.assert_allclose(one, loaded.act(STATE, GOAL[0])[1], atol=1e-6)


def test_a_chunk_has_its_actions_one_after_the_other(tmp_path: Path, spec: PolicySpec) -> None:
    chunked = dataclasses.replace(spec, action_chunk=3, **WITHOUT_CRITIC)
    publish(tmp_path, 1, spec=chunked, params=fresh_params(0, chunked))
    assert policy.load(tmp_path).act(STATE, GOAL).shape == (ROWS, 6)


def test_a_program_that_has_enabled_64_bits_gets_the_same_action(loaded: LoadedPolicy) -> None:
    with jax.enable_x64(True):
        action = loaded.act(STATE.astype(np.float64), GOAL, seed=7)
    np.testing.assert_array_equal(action, loaded.act(STATE, GOAL, seed=7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": np.zeros(4)}, "state must have shape [3] or [rows, 3], got [4]"),
        ({"state": np.zeros((0, 3))}, "state must have shape [3] or [rows, 3], got [0, 3]"),
        ({"goal": np.zeros((3, 2))}, "goal must have one row, or 5 as state has, got 3"),
        ({"goal": [math.nan, 0]}, "goal of row 0 (the first is 0) has NaN or infinity"),
        ({"state": STATE * [[1], [1], [1e40], [1], [1]]}, "state of row 2 (the first is 0) has NaN or infinity"),
        ({"noise": np.zeros((5, 3))}, "noise must have shape [2] or [rows, 2], got [5, 3]"),
        ({"seed": -1}, "seed must be an integer from 0 to 18446744073709551615, got -1"),
        ({"seed": 1.0}, "seed must be an integer from 0 to 18446744073709551615, got 1.0"),
        ({"seed": 1, "noise": np.zeros(2)}, "noise and seed cannot be combined: the seed stands for noise; leave out"),
        ({"seed": True}, "seed must be an integer from 0 to 18446744073709551615, got True"),
        ({"seed": np.bool_(True)}, "seed must be an integer from 0 to 18446744073709551615, got np.True_"),
        ({"seed": "7"}, "seed must be an integer from 0 to 18446744073709551615, got '7'"),
        ({"goal": ["left", "up"]}, "goal must be an array of numbers: real numbers are needed, got <U4"),
        ({"goal": [1j, 0]}, "goal must be an array of numbers: real numbers are needed, got complex128"),
        ({"goal": [True, False]}, "goal must be an array of numbers: real numbers are needed, got bool"),
        ({"goal": [[1], [1, 2]]}, "goal must be an array of numbers: "),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(
    loaded: LoadedPolicy, arguments: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"state": STATE, "goal": GOAL} | arguments
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        loaded.act(**given)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.uint64])
def test_a_seed_may_be_an_integer_of_numpy(loaded: LoadedPolicy, kind: type[np.integer[Any]]) -> None:
    np.testing.assert_array_equal(loaded.act(STATE, GOAL, seed=kind(3)), loaded.act(STATE, GOAL, seed=3))


@pytest.mark.filterwarnings("error")
def test_rows_may_have_any_type_of_real_numbers(loaded: LoadedPolicy) -> None:
    expected = loaded.act([1.0, 2.0, -3.0], [0.0, 1.0])
    for state in (np.array([1, 2, -3]), np.array([1, 2, -3], np.float16), jnp.array([1, 2, -3], jnp.bfloat16)):
        np.testing.assert_array_equal(loaded.act(state, [0, 1]), expected)
    with pytest.raises(ValueError, match="state of row 0 .* has NaN or infinity"):
        loaded.act([1e300, 0.0, 0.0], [0.0, 1.0])


def test_to_import_the_package_needs_no_jax() -> None:
    program = "import sys, policy, policy.published; print('jax' in sys.modules, callable(policy.load))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "False True\n"


def test_the_example_of_the_documentation_acts(published: Path, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "act_in_process.py"
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "policies").symlink_to(published)
    ended = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, *sampled = ended.stdout.splitlines()
    assert first.startswith("200 [")
    assert len(sampled) == 3
