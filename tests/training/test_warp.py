"""MuJoCo Warp as the physics: against MuJoCo's own C engine, family by family, and what becomes of too little room."""

# brax types its physics by its own retired pipelines.
# pyright: reportOptionalMemberAccess=false

import sys
from collections.abc import Callable, Generator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tests.training.truth import Rollout, roll, window_errors
from training import rollout, run
from training.algorithms.baselines.brax_env import wrap
from training.config import TrainConfig
from training.envs import registry
from training.envs.core import physics
from training.envs.core.goal_env import GoalEnv, State
from training.envs.core.physics import PhysicsOverflowError, WarpSizes
from training.envs.locomotion.ant import Ant
from training.programs import RunState, compile_programs, initial_state
from training.run_dir import checkpoint

TRUTH_STEPS = 96
WINDOW = 6  # control steps that an action is held, after which C's own rollout starts anew
ROLLOUT_STEPS = 200


class Family(NamedTuple):
    """One environment of a family, and how near C its Warp comes in one control step once the solver has converged."""

    name: str
    position: float  # m or rad
    velocity: float  # m/s or rad/s
    places: tuple[tuple[float, float], ...] = ()  # where `qpos[:2]` starts instead, in turn: in the open, at a wall
    touches: bool = True  # whether random actions make some steps with and some without contacts


FAMILIES = (
    Family("point_u_maze", 1e-5, 1e-3, places=((1.0, 1.0), (0.7, 1.0))),
    Family("ant", 1e-4, 1e-2),
    Family("ant_u_maze", 1e-4, 1e-2, places=((4.0, 4.0), (2.4, 2.5))),
    Family("humanoid", 1e-4, 1e-2),
    Family("arm_push_easy", 1e-3, 1e-1, touches=False),  # the cube always lies on the table
    Family("reacher", 1e-5, 1e-3, touches=False),
    Family("pusher_easy", 1e-5, 1e-3, touches=False),
    Family("cheetah", 1e-4, 1e-2),
)


@pytest.fixture(scope="module", autouse=True)
def kernels_compiled_quickly() -> Generator[None]:
    """Without optimizations Warp compiles its kernels in a third of the time, and computes the same."""
    import warp

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warp.config, "optimization_level", 0)
        yield


class Warped(NamedTuple):
    """A family's environment on Warp, and its states at many starts."""

    family: Family
    env: GoalEnv
    starts: State  # [TRUTH_STEPS]


def started(env: GoalEnv, *, worlds: int) -> State:
    return jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), worlds))


def families(*names: str) -> pytest.MarkDecorator:
    """Run a test on these families, in the slow tier all but the first."""
    chosen = [family for family in FAMILIES if family.name in names]
    later = [pytest.param(family, marks=pytest.mark.slow) for family in chosen[1:]]
    return pytest.mark.parametrize("warped", [chosen[0], *later], indirect=True, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def warped(request: pytest.FixtureRequest) -> Warped:
    env = registry.make(request.param.name, impl="warp")
    return Warped(request.param, env, started(env, worlds=TRUTH_STEPS))


@pytest.fixture(scope="module")
def maze() -> GoalEnv:
    return registry.make("point_u_maze", impl="warp")


def rollout_in_c(warped: Warped) -> Rollout:
    """Held random actions, some of the starts at a wall where there are walls."""
    env, starts = warped.env, warped.starts.pipeline_state
    held = np.random.default_rng(0).uniform(-1, 1, (TRUTH_STEPS // WINDOW, env.action_size))

    def place(data: mujoco.MjData, step: int) -> None:
        data.qpos[:], data.qvel[:] = starts.qpos[step], starts.qvel[step]
        if places := warped.family.places:
            data.qpos[:2] = places[step // WINDOW % len(places)]

    return roll(env, held.repeat(WINDOW, axis=0), window=WINDOW, place=place)


def from_the_same_moments(env: GoalEnv, truth: Rollout) -> Rollout:
    """Where C's control steps end with the solver settings that `env.model` has now."""

    def place(data: mujoco.MjData, step: int) -> None:
        for name, column in truth.arrays.items():
            getattr(data, name)[:] = column[step]

    return roll(env, truth.actions, window=1, place=place)


@families(*(family.name for family in FAMILIES))
def test_one_step_agrees_with_mujoco_c(warped: Warped, monkeypatch: pytest.MonkeyPatch) -> None:
    """From every state of C's own rollouts.

    With as many solver iterations as it takes, Warp and C end at the same place. With the few that an environment runs
    with, both stop short of it, each elsewhere, because their line searches differ: then Warp is about as near as C.
    """
    family, env, starts = warped
    truth = rollout_in_c(warped)
    if family.touches:
        assert 10 < sum(bool(met) for met in truth.contacts) < TRUTH_STEPS - 10
    monkeypatch.setattr(env.model.opt, "iterations", 100)
    monkeypatch.setattr(env.model.opt, "ls_iterations", 50)
    converged = from_the_same_moments(env, truth)
    few = window_errors(env, starts, converged, length=1)
    monkeypatch.setattr(env, "_physics", physics.make(env.model, impl="warp", sizes=env.warp_sizes))
    many = window_errors(env, starts, converged, length=1)
    assert many.position[:, 0].max() < family.position
    assert many.velocity[:, 0].max() < family.velocity
    in_c, joints = np.abs(truth.reached - converged.reached), env.model.nq
    bound = 2 * np.quantile(in_c[:, :joints].max(axis=1), 0.9) + family.position
    assert np.quantile(few.position[:, 0], 0.9) < bound
    bound = 2 * np.quantile(in_c[:, joints:].max(axis=1), 0.9) + family.velocity
    assert np.quantile(few.velocity[:, 0], 0.9) < bound


@families("point_u_maze", "ant_u_maze", "arm_push_easy")  # with walls, with many contacts, with an object to move
def test_many_steps_stay_sound_and_repeat(warped: Warped) -> None:
    """Held random actions: bodies stay whole and outside of walls. Worlds that begin and act alike stay alike."""
    env = warped.env
    starts = jax.tree.map(lambda leaf: leaf[jnp.array([0, 1, 0, 1])], warped.starts)
    actions = jax.random.uniform(jax.random.key(1), (ROLLOUT_STEPS // 10, 2, env.action_size), minval=-1)

    def step(state: State, action: jax.Array) -> tuple[State, jax.Array]:
        state = jax.vmap(env.step)(state, action)
        return state, state.info["state"]

    run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.tile(actions.repeat(10, axis=0), (1, 2, 1))))
    end, states = run(starts)
    assert np.isfinite(states).all()
    assert np.ptp(np.asarray(states), axis=0).max(axis=-1).min() > 0.01  # all have moved
    np.testing.assert_allclose(end.pipeline_state.time, ROLLOUT_STEPS * env.control_period_s, rtol=1e-4)
    env.require_no_overflow(env.overflow(end))
    middle = np.asarray(env.achieved_goal(states))[..., :2]
    for low, high in env.floor_plan():
        assert not ((middle > low) & (middle < high)).all(axis=-1).any()
    np.testing.assert_array_equal(states[:, :2], states[:, 2:])


@pytest.mark.slow
def test_more_maps_around_it_are_more_worlds(maze: GoalEnv) -> None:
    """Two by three worlds go the way of six."""
    six = started(maze, worlds=6)
    actions = jax.random.uniform(jax.random.key(1), (6, 2), minval=-1)

    def in_two_rows(tree: object) -> object:
        return jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), tree)

    rows = jax.jit(jax.vmap(jax.vmap(maze.step)))(in_two_rows(six), in_two_rows(actions))
    row = jax.jit(jax.vmap(maze.step))(six, actions)
    np.testing.assert_array_equal(rows.info["state"].reshape(6, 4), row.info["state"])


STANDING = (0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        (
            WarpSizes(contacts=2, rows=64),
            r"ant: Warp's limits per world \(contacts=2\) are too low.*raise contacts in Ant\.",
        ),
        (WarpSizes(contacts=48, rows=15), r"ant: Warp's limits per world \(rows=15\) are too low.*raise rows in Ant\."),
    ],
)
def test_too_little_room_is_an_error_that_names_it(
    sizes: WarpSizes, complaint: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Four feet on the floor are four contacts, of four rows each."""
    monkeypatch.setattr(Ant, "warp_sizes", sizes)
    env = Ant("ant", impl="warp")
    state = started(env, worlds=2)
    standing = state.pipeline_state.replace(qpos=jnp.tile(jnp.array(STANDING), (2, 1)), qvel=jnp.zeros((2, 14)))
    state = state.replace(pipeline_state=standing)
    env.require_no_overflow(env.overflow(state))
    step = jax.jit(jax.vmap(env.step))
    for _ in range(10):
        state = step(state, jnp.zeros((2, 8)))
    with pytest.raises(PhysicsOverflowError, match=complaint):
        env.require_no_overflow(env.overflow(state))
    assert "overflow" not in capfd.readouterr().out  # Warp's own warning, which would come at every step


def test_no_room_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 1 or more, .*rows=0"):
        WarpSizes(contacts=8, rows=0)


@pytest.mark.slow
def test_what_was_dropped_outlives_the_episode(maze: GoalEnv) -> None:
    kept = {"kept_state": jnp.zeros((3, maze.state_size)), "kept_action": jnp.zeros((3, maze.action_size))}
    robots = rollout.RolloutState(started(maze, worlds=3), *jnp.zeros((2, 3), jnp.int32), **kept)
    data = robots.env_state.pipeline_state
    flags = jnp.array([1, 0, 1], jnp.int32)
    flagged = data.replace(_impl=data._impl.replace(overflow=flags))
    robots = robots._replace(env_state=robots.env_state.replace(pipeline_state=flagged))
    ended = jnp.array([True, True, False])
    restarted = jax.jit(lambda robots: rollout.restart_where(maze, ended, robots, key=jax.random.key(1)))(robots)
    assert restarted.episode.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(maze.overflow(restarted.env_state), flags)


@pytest.mark.slow
@pytest.mark.parametrize(("contacts", "short"), [(1, True), (8, False)])
def test_a_baseline_hears_of_what_was_dropped(contacts: int, short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ants that land on four feet, within the programs that brax compiles."""
    monkeypatch.setattr(Ant, "warp_sizes", WarpSizes(contacts=contacts, rows=64))
    told: list[np.ndarray] = []
    env = wrap(Ant("ant", impl="warp"), episode_length=100, on_overflow=told.append)
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), 2))
    step = jax.jit(env.step)
    for _ in range(5):
        state = step(state, jnp.zeros((2, 8)))
    jax.effects_barrier()
    assert [bool(np.all(flags)) for flags in told] == [True] * 5 * short


@pytest.mark.slow
def test_training_stops_where_physics_has_no_room(
    tiny: Callable[..., TrainConfig], tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ants that land on four feet, with room for one of them each."""
    monkeypatch.setattr(Ant, "warp_sizes", WarpSizes(contacts=1, rows=64))
    config = tiny(tmp_path / "run", env="ant", impl="warp", unroll_length=20)
    monkeypatch.setattr(run, "parse", lambda _: config)
    assert run.main([]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ant: Warp's limits per world (contacts=1) are too low")
    assert not (tmp_path / "run" / "policies").exists()


@pytest.mark.slow
def test_training_goes_on_from_a_snapshot_as_if_never_stopped(tiny: Callable[..., TrainConfig], tmp_path) -> None:
    config = tiny(tmp_path, impl="warp")
    env = registry.make(config.env, impl="warp")
    state = initial_state(config, env)
    programs = compile_programs(config, env, state)
    state = programs.collect(programs.collect(state))
    checkpoint.save(tmp_path, 2, state=state)
    on, _ = programs.learn(programs.collect(state), jnp.int32(3))
    restored = checkpoint.restore_latest(tmp_path, like=initial_state(config, env))
    resumed, _ = programs.learn(programs.collect(restored), jnp.int32(3))
    jax.tree.map(np.testing.assert_array_equal, plain(on), plain(resumed))


def plain(state: RunState) -> RunState:
    return state._replace(key=jax.random.key_data(state.key))


def test_warp_that_is_not_installed_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "warp", None)  # what import then finds there is nothing
    with pytest.raises(ImportError, match="pip install warp-lang"):
        registry.make("point_u_maze", impl="warp")
    assert registry.make("point_u_maze").action_size == 2
