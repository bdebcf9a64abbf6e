"""A local policy against the served one: the same actions, energies, descriptions, fields and exceptions."""

import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kilolayer
from kilolayer import LocalPolicy, PolicyClient
from kilolayer._local import local_policy
from tests.clients.exports import exported, publish, serving
from tests.samples import WITHOUT_CRITIC

BACKENDS = ("onnx", "numpy")
STATE_DIM, GOAL_DIM, ACTION_DIM, CHUNK, ROWS = 7, 5, 2, 3, 5
# Everything that an action can depend on: chunks, normalization, quaternions in the state and in the goal.
RICH: dict[str, Any] = {
    "state_names": ("x [m]", "y [m]", "qw", "qx", "qy", "qz", "v [m/s]"),
    "goal_names": ("qw", "qx", "qy", "qz", "z [m]"),
    "action_chunk": CHUNK,
    "state_quaternions": (2,),
    "goal_quaternions": (0,),
    "normalize_observations": True,
    "normalization_mean": (0.5, -0.25, 0.1, 0.0, 0.0, 0.0, 1.0),
    "normalization_std": (1.5, 0.7, 0.5, 0.5, 0.5, 0.5, 3.0),
    "seen_mean": (0.0,) * STATE_DIM,
    "seen_std": (1.0,) * 6 + (0.0,),
    "seen_low": (-5.0,) * 6 + (1.0,),
    "seen_high": (5.0,) * 6 + (1.0,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rich")
    return exported(publish(root / "policies", critic_depth=8, **RICH), root / "exported")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[PolicyClient]:
    with serving(folder.parent / "policies", max_batch_rows=8) as client:
        yield client


@pytest.fixture(scope="module", params=BACKENDS)
def local(request: pytest.FixtureRequest, folder: Path) -> LocalPolicy:
    return LocalPolicy(folder, backend=request.param, timeout_s=60)


@pytest.fixture(scope="module")
def state() -> np.ndarray:
    state = np.random.default_rng(1).normal(size=(ROWS, STATE_DIM)).astype(np.float32)
    state[1, 2:4] = 0  # the first two values of a quaternion
    state[2, 2:6] = 0
    state[4, 2:6] = (0, 0, -1e-40, 1)  # which JAX takes for 0
    return state


@pytest.fixture(scope="module")
def goal() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(ROWS, GOAL_DIM)).astype(np.float32)


def require_equal(found: Any, expected: Any, *, name: str, atol: float = 1e-5) -> None:
    """Compare an `Action` or a `Score` with that of the server; times and batches are each one's own."""
    assert type(found) is type(expected)
    ours, theirs = getattr(found, name), getattr(expected, name)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    np.testing.assert_allclose(ours, theirs, atol=atol)
    assert (found.policy, found.version) == (expected.policy, expected.version)


@pytest.mark.parametrize("options", [{}, {"seed": 0}, {"seed": 2**40 + 3}, {"seed": 5, "best_of": 6}])
def test_actions_are_those_of_the_server(
    local: LocalPolicy, client: PolicyClient, state: np.ndarray, goal: np.ndarray, *, options: dict[str, int]
) -> None:
    for arguments in ((state, goal), (state, goal[0]), (state[:1], goal[:1]), (state[3], goal[3])):
        require_equal(local.act(*arguments, **options), client.act(*arguments, **options), name="chunk")
    assert local.act(state[0], goal[0]).action.shape == (ACTION_DIM,)


def test_q_and_minus_q_have_the_same_action(local: LocalPolicy, state: np.ndarray, goal: np.ndarray) -> None:
    turned_state, turned_goal = state.copy(), goal.copy()
    turned_state[:, 2:6] *= -1
    turned_goal[:, :4] *= -1
    np.testing.assert_array_equal(local.act(turned_state, turned_goal).chunk, local.act(state, goal).chunk)


def test_scores_are_those_of_the_server(
    local: LocalPolicy, client: PolicyClient, state: np.ndarray, goal: np.ndarray
) -> None:
    chunks = np.random.default_rng(3).uniform(-1, 1, size=(ROWS, CHUNK, ACTION_DIM))
    for rows, goals in ((slice(None), goal), (slice(None), goal[0]), (0, goal[0])):
        found, expected = (
            each.score(state[rows], chunks[rows], goal=goals, priority=2, sequence=9) for each in (local, client)
        )
        require_equal(found, expected, name="energy", atol=1e-4)
        assert found.sequence == expected.sequence == 9


@pytest.mark.parametrize("energy", ["l2_squared", "dot", "cosine"])  # the others have l2
def test_every_energy_and_both_ablations_are_computed_as_published(tmp_path: Path, energy: str) -> None:
    architecture: dict[str, Any] = {"layer_norm": energy == "dot", "residual": False, "activation": "relu"}
    published = publish(tmp_path / "policies", energy=energy, **architecture)
    folder = exported(published, tmp_path / "exported", formats=["safetensors"])
    probes = dict(np.load(published / "probes.npz"))
    policy = LocalPolicy(folder, timeout_s=60)
    found = policy.score(probes["state"], probes["action"], goal=probes["goal"]).energy
    np.testing.assert_allclose(found, probes["energy"][:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(policy.act(probes["state"], probes["goal"]).action, probes["action"], atol=1e-5)


def test_the_description_is_that_of_the_server(local: LocalPolicy, client: PolicyClient) -> None:
    assert local.describe() == client.describe()
    assert local.wait_until_ready(5) == client.describe()


def test_the_times_are_those_of_this_machine(
    local: LocalPolicy, state: np.ndarray, goal: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = local.act(state, goal).sequence
    response = local.act(state, goal, seed=1, best_of=4)
    assert response.sequence == first + 1
    assert (response.queue_us, response.batch_rows) == (0, 4 * ROWS)
    assert 0 < response.compute_us <= 1e6 * response.round_trip_s + 1
    assert local.score(state[0], response.chunk[0], goal=goal[0]).batch_rows == 1
    assert local.act(state, goal, sequence=2**64 - 1).sequence == 2**64 - 1


@pytest.mark.parametrize(
    ("v", "qw", "is_out"), [(1.0009, 0, False), (1.0011, 0, True), (1, -10.5, False), (1, 11, True)]
)
def test_a_state_far_from_training_is_flagged_as_by_the_server(
    local: LocalPolicy, client: PolicyClient, *, v: float, qw: float, is_out: bool
) -> None:
    """`v` never varied: its tolerance is 0.001. The bound of qw is 10, and -qw is the same rotation as qw."""
    state, goal = [0, 0, qw, 0.5, 0, 0, v], [1, 0, 0, 0, 0]
    expected = client.act(state, goal).out_of_range
    assert local.act(state, goal).out_of_range is expected is (is_out or qw == -10.5)


def test_many_threads_get_the_actions_of_their_own_states(
    local: LocalPolicy, state: np.ndarray, goal: np.ndarray
) -> None:
    expected = [local.act(*row, seed=3).chunk for row in zip(state, goal, strict=True)]
    start = threading.Barrier(ROWS)

    def ask(row: int) -> list[np.ndarray]:
        start.wait(60)
        return [local.act(state[row], goal[row], seed=3).chunk for _ in range(20)]

    with ThreadPoolExecutor(ROWS) as pool:
        for row, chunks in enumerate(pool.map(ask, range(ROWS))):
            for chunk in chunks:
                np.testing.assert_array_equal(chunk, expected[row])


NAN, INFINITY = float("nan"), float("inf")
GOOD_STATE, GOOD_GOAL, GOOD_CHUNK = [0.1] * STATE_DIM, [0.1] * GOAL_DIM, [[0.5, -0.5]] * CHUNK
WRONG: dict[str, Callable[[Any], Any]] = {
    "state too short": lambda policy: policy.act([0.1] * 6, GOOD_GOAL),
    "two states as one": lambda policy: policy.act([0.1] * 14, GOOD_GOAL),
    "rows too short": lambda policy: policy.act([[0.1] * 6] * 7, GOOD_GOAL),
    "goal too long": lambda policy: policy.act(GOOD_STATE, [0.1] * 6),
    "goals too long": lambda policy: policy.act([GOOD_STATE] * 2, [[0.1] * 6] * 2),
    "a goal too many": lambda policy: policy.act([GOOD_STATE] * 2, [GOOD_GOAL] * 3),
    "NaN in a state": lambda policy: policy.act([GOOD_STATE, [*GOOD_STATE[:6], NAN]], GOOD_GOAL),
    "NaN in a goal": lambda policy: policy.act([GOOD_STATE] * 2, [*GOOD_GOAL[:4], NAN]),
    "too large for float32": lambda policy: policy.act([1e39, *GOOD_STATE[1:]], GOOD_GOAL),
    "text": lambda policy: policy.act("state", GOOD_GOAL),
    "three axes": lambda policy: policy.act([[GOOD_STATE]], GOOD_GOAL),
    "masked": lambda policy: policy.act(np.ma.masked_equal(GOOD_STATE, 0.1), GOOD_GOAL),
    "empty": lambda policy: policy.act([], GOOD_GOAL),
    "too many rows": lambda policy: policy.act([GOOD_STATE] * 4097, GOOD_GOAL),
    "a negative seed": lambda policy: policy.act(GOOD_STATE, GOOD_GOAL, seed=-1),
    "best_of without seed": lambda policy: policy.act(GOOD_STATE, GOOD_GOAL, best_of=2),
    "best_of 0": lambda policy: policy.act(GOOD_STATE, GOOD_GOAL, seed=1, best_of=0),
    "too many candidates": lambda policy: policy.act([GOOD_STATE] * 3, GOOD_GOAL, seed=1, best_of=1366),
    "a priority of 4": lambda policy: policy.act(GOOD_STATE, GOOD_GOAL, priority=4),
    "a sequence of 2**64": lambda policy: policy.act(GOOD_STATE, GOOD_GOAL, sequence=2**64),
    "no timeout": lambda policy: policy.act(GOOD_STATE, GOOD_GOAL, timeout_s=0),
    "an infinite timeout": lambda policy: policy.describe(timeout_s=INFINITY),
    "wait for NaN seconds": lambda policy: policy.wait_until_ready(NAN),
    "extreme state": lambda policy: policy.act([3e38] * STATE_DIM, GOOD_GOAL),
    "extreme state, sampled": lambda policy: policy.act([3e38] * STATE_DIM, GOOD_GOAL, seed=1),
    "action for a chunk": lambda policy: policy.score(GOOD_STATE, GOOD_CHUNK[0], goal=GOOD_GOAL),
    "actions of the wrong size": lambda policy: policy.score([GOOD_STATE] * 2, [GOOD_CHUNK[0]] * 2, goal=GOOD_GOAL),
    "an action above 1": lambda policy: policy.score(GOOD_STATE, [[0.5, 1.25]] * CHUNK, goal=GOOD_GOAL),
    "NaN in an action": lambda policy: policy.score(GOOD_STATE, [[0.5, NAN]] * CHUNK, goal=GOOD_GOAL),
    "score a short state": lambda policy: policy.score([0.1] * 6, GOOD_CHUNK, goal=GOOD_GOAL),
    "score an extreme state": lambda policy: policy.score([3e38] * STATE_DIM, GOOD_CHUNK, goal=GOOD_GOAL),
    "score with priority 4": lambda policy: policy.score(GOOD_STATE, GOOD_CHUNK, goal=GOOD_GOAL, priority=4),
}


def failure(call: Callable[[], Any]) -> tuple[Any, ...]:
    """The class, the status, the reason and the message of what `call` raises, without the place that differs."""
    with pytest.raises((kilolayer.KilolayerError, ValueError)) as raised:
        call()
    error, message = raised.value, str(raised.value)
    if " failed (" in message:
        method, _, rest = message.partition(" failed (")
        message = f"{method.split()[0]} failed ({rest}"
    return type(error), getattr(error, "status", None), getattr(error, "reason", None), message


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_raises_what_the_client_of_a_server_raises(
    local: LocalPolicy, client: PolicyClient, case: str
) -> None:
    assert failure(lambda: WRONG[case](local)) == failure(lambda: WRONG[case](client))


def test_a_failure_names_the_folder(local: LocalPolicy, folder: Path) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match="each row of state needs 7 values") as refusal:
        local.act([1], [1])
    assert str(refusal.value).startswith(f"Act in {folder} failed (INVALID_ARGUMENT, timeout 60 s): ")
    assert (refusal.value.status, refusal.value.reason) == ("INVALID_ARGUMENT", "invalid_request")


@pytest.fixture(scope="module")
def actor_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported policy without a critic, which overflows for states that training is said to have seen."""
    root = tmp_path_factory.mktemp("actor_only")
    seen: dict[str, Any] = {"seen_mean": (0.0,) * 4, "seen_std": (1.0,) * 4, "seen_low": (-1e36,) * 4}
    normalization: dict[str, Any] = {"normalization_mean": (0.0,) * 4, "normalization_std": (1.0, 1.0, 1e-6, 1e-6)}
    changes: dict[str, Any] = WITHOUT_CRITIC | seen | normalization
    changes |= {"seen_high": (1e36,) * 4, "normalize_observations": True}
    return exported(publish(root / "policies", **changes), root / "exported", critic=False)


@pytest.fixture(scope="module")
def actor_only_client(actor_only: Path) -> Iterator[PolicyClient]:
    with serving(actor_only.parent / "policies") as client:
        yield client


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_that_is_no_fault_of_the_input_raises_as_in_a_server(
    actor_only: Path, actor_only_client: PolicyClient, backend: str
) -> None:
    policy = LocalPolicy(actor_only, backend=backend, timeout_s=60)
    found = failure(lambda: policy.act([0, 0, 1e35, 1e35], [0, 0]))
    assert found[:3] == (kilolayer.ServerFailure, "INTERNAL", "non_finite_action")
    assert found == failure(lambda: actor_only_client.act([0, 0, 1e35, 1e35], [0, 0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_policy_without_a_critic_refuses_what_needs_one_as_a_server_does(
    actor_only: Path, actor_only_client: PolicyClient, backend: str
) -> None:
    policy = LocalPolicy(actor_only, backend=backend, timeout_s=60)
    calls: list[Callable[[Any], Any]] = [
        lambda each: each.score([0] * 4, [0, 0], goal=[0, 0]),
        lambda each: each.act([0] * 3, [0, 0], seed=1, best_of=2),  # the critic is looked at before the sizes
    ]
    for call in calls:
        found, expected = (failure(functools.partial(call, each)) for each in (policy, actor_only_client))
        assert found[:3] == (kilolayer.NotSupported, "FAILED_PRECONDITION", "no_critic")
        assert found == expected
    assert policy.describe() == actor_only_client.describe()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_critic_that_was_not_exported_is_named_as_the_reason(folder: Path, tmp_path: Path, backend: str) -> None:
    without = exported(folder.parent / "policies/1000", tmp_path / "exported", critic=False)
    policy = LocalPolicy(without, backend=backend, timeout_s=60)
    assert policy.act(GOOD_STATE, GOOD_GOAL, seed=1).action.shape == (ACTION_DIM,)
    assert policy.describe().critic == "none"
    with pytest.raises(kilolayer.NotSupported, match="exported without its critic.*--critic") as refusal:
        policy.score(GOOD_STATE, GOOD_CHUNK, goal=GOOD_GOAL)
    assert refusal.value.reason == "no_critic"
    with pytest.raises(kilolayer.NotSupported, match="cannot choose the best of several actions"):
        policy.act(GOOD_STATE, GOOD_GOAL, seed=1, best_of=2)


def test_a_closed_policy_raises_client_closed(folder: Path) -> None:
    with LocalPolicy(folder) as policy:
        policy.act(GOOD_STATE, GOOD_GOAL, timeout_s=60)
    policy.close()
    calls: list[Callable[[], Any]] = [
        lambda: policy.act(GOOD_STATE, GOOD_GOAL),
        lambda: policy.score(GOOD_STATE, GOOD_CHUNK, goal=GOOD_GOAL),
        policy.describe,
        lambda: policy.wait_until_ready(1),
    ]
    for call in calls:
        with pytest.raises(kilolayer.ClientClosed, match="the policy was closed") as closed:
            call()
        assert closed.value.status == "CANCELLED"


@pytest.mark.parametrize(("took_s", "is_late"), [(0.25, False), (0.5, True)])
def test_a_result_after_the_timeout_is_never_returned(
    local: LocalPolicy, monkeypatch: pytest.MonkeyPatch, *, took_s: float, is_late: bool
) -> None:
    readings = iter([100.0, 100.0 + took_s] * 2)
    monkeypatch.setattr(local_policy, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    calls: list[Callable[[], Any]] = [
        lambda: local.act(GOOD_STATE, GOOD_GOAL, timeout_s=0.25),
        lambda: local.score(GOOD_STATE, GOOD_CHUNK, goal=GOOD_GOAL, timeout_s=0.25),
    ]
    for call in calls:
        if is_late:
            with pytest.raises(kilolayer.DeadlineExceeded, match=r"timeout 0\.25 s\)") as late:
                call()
            assert late.value.status == "DEADLINE_EXCEEDED"
        else:
            assert call().round_trip_s == 0.25


def test_no_jax_and_nothing_of_ours_but_the_client_is_imported(folder: Path) -> None:
    program = (
        "import sys, kilolayer\n"
        "for backend in ('onnx', 'numpy'):\n"
        f"    policy = kilolayer.LocalPolicy({str(folder)!r}, backend=backend, timeout_s=60)\n"
        f"    policy.act({GOOD_STATE}, {GOOD_GOAL}, seed=1, best_of=2)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    imported = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert {"kilolayer", "onnxruntime", "safetensors"} <= imported
    assert not {"jax", "flax", "onnx", "policy", "serving", "training", "torch", "ml_dtypes"} & imported


@pytest.mark.parametrize("depth", [64, pytest.param(1024, marks=pytest.mark.slow)])
def test_deep_networks_give_the_actions_of_the_server(tmp_path: Path, depth: int) -> None:
    published = publish(tmp_path / "policies", spread=0.02, actor_depth=depth, **WITHOUT_CRITIC)
    folder = exported(published, tmp_path / "exported", critic=False)
    random = np.random.default_rng(0)
    state, goal = (random.normal(size=(16, size)).astype(np.float32) for size in (4, 2))
    with serving(tmp_path / "policies") as client:
        for backend in BACKENDS:
            with LocalPolicy(folder, backend=backend, timeout_s=60) as policy:
                require_equal(policy.act(state, goal), client.act(state, goal), name="chunk", atol=1e-4)
