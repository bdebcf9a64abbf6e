"""Worlds whose physics diverges: what enters the replay buffer, what is counted, and when a run ends for it."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tests.parameters import fresh_params
from tests.samples import policy_spec
from tests.training import probes
from tests.training.cart import Cart
from tests.training.test_rollout import SPEC, Counter
from training import divergence, evaluation, programs, rollout, trainer
from training.algorithms.baselines.brax_env import wrap
from training.config import ConfigError
from training.data import hindsight, replay_buffer
from training.envs import registry
from training.envs.core import physics
from training.envs.core.goal_env import State
from training.progress_display import NoProgress
from training.run_dir.metrics_log import read_metrics

WORLDS = 4


class Fragile(Counter):
    """Counts from 0; in the worlds whose goal is above 5, the number after `last` is `then`."""

    def __init__(self, last: float, then: float) -> None:
        super().__init__()
        self.last, self.then = last, then

    def reset(self, rng: jax.Array) -> State:
        return self._observe(jnp.zeros(2), self.sample_goal(rng))

    def step(self, state: State, action: jax.Array) -> State:
        counted = state.pipeline_state + jnp.array([1.0, 0.0])
        broken = (counted[0] > self.last) & (state.info["goal"][0] > 5)
        return self._observe(jnp.where(broken, self.then, counted), state.info["goal"], before=state)

    def with_goal(self, state: State, goal: jax.Array) -> State:
        return state  # the goal says which worlds break

    def sample_goal(self, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key), jnp.array([3.0]), jnp.array([7.0]))


def unroll(env, *, length: int, spec=SPEC, worlds: int = WORLDS):
    params = fresh_params(0, spec)
    robots = rollout.start(env, jax.random.key(1), environments=worlds)
    return robots, *rollout.collect(
        env,
        params,
        robots,
        key=jax.random.key(2),
        unroll_length=length,
        episode_length=10,
        resample_goal_probability=0.0,
        resample_at_goal_probability=0.0,
    )


@pytest.mark.parametrize("then", [np.nan, np.inf, -1e11])
def test_a_dropped_step_repeats_the_last_one_as_an_episode_of_its_own(then: float) -> None:
    """A world that breaks after 2: the steps at 0 and 1 are kept, that at 2 has no next state."""
    start, robots, seen = unroll(Fragile(last=2, then=then), length=4)
    breaks = np.asarray(start.env_state.info["goal"][:, 0] > 5)
    assert 0 < breaks.sum() < WORLDS
    world = int(np.argmax(breaks))
    assert seen.valid[:, world].tolist() == [True, True, False, True]
    assert seen.steps.state[:, world, 0].tolist() == [0, 1, 1, 0]
    assert seen.steps.episode[:, world].tolist() == [0, 0, 1, 2]
    np.testing.assert_array_equal(seen.steps.action[2, world], seen.steps.action[1, world])
    assert seen.diverged[:, world].tolist() == [-1, -1, 0, -1]
    assert int(robots.age[world]) == 1

    sound = int(np.argmin(breaks))
    assert seen.steps.state[:, sound, 0].tolist() == [0, 1, 2, 3]
    assert seen.steps.episode[:, sound].tolist() == [0] * 4
    assert seen.valid[:, sound].all()
    assert np.isfinite(seen.steps.state).all()


def test_no_pair_of_the_replay_says_what_did_not_happen() -> None:
    """Of the states 0, 1, 1 (repeated), 0, only 1 is a later state of another, 0; all others have but themselves."""
    start, _, seen = unroll(Fragile(last=2, then=np.nan), length=4)
    world = int(np.argmax(start.env_state.info["goal"][:, 0] > 5))
    ring = replay_buffer.empty(4, unroll_length=4, environments=WORLDS, state_dim=2, action_dim=1)
    ring = replay_buffer.insert(ring, seen.steps)
    pairs = hindsight.sample_pairs(jax.random.key(0), ring, (500,), discount=0.9)
    chosen = np.asarray(pairs.step.environment) == world
    ages = {(int(a), int(b)) for a, b in zip(pairs.step.age[chosen], pairs.future.age[chosen], strict=True)}
    assert ages == {(0, 1), (1, 1), (2, 2), (3, 3)}


def test_a_world_that_breaks_in_its_first_step_repeats_a_step_of_another_world() -> None:
    """Its start with an action of 0, as it was once, is a step that never happened."""
    start, robots, seen = unroll(Fragile(last=0, then=np.nan), length=2)
    breaks = np.asarray(start.env_state.info["goal"][:, 0] > 5)
    world, sound = int(np.argmax(breaks)), int(np.argmin(breaks))
    assert not seen.valid[0, world]
    assert seen.steps.state[0, world].tolist() == [0, 0]
    np.testing.assert_array_equal(seen.steps.action[0, world], seen.steps.action[0, sound])
    assert float(seen.steps.action[0, world, 0]) != 0
    assert seen.steps.episode[:2, world].tolist() == [1, 2 + int(not seen.valid[1, world])]
    assert seen.any_kept
    assert np.isnan(robots.kept_state).any(axis=1).tolist() == (~np.asarray(seen.valid).any(axis=0)).tolist()


def test_unrolls_without_any_valid_step_leave_the_replay_buffer_empty(tiny, tmp_path: Path) -> None:
    """Every world breaks in its first step: nothing has happened that could be learned from."""

    class Hopeless(probes.Line):
        broken = True

        def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
            return jnp.full(2, jnp.nan) if self.broken else super().move(state, push)

    env, config = Hopeless(), tiny(tmp_path)
    state = programs.initial_state(config, env)
    collect = jax.jit(functools.partial(programs.collect, config, env))
    for _ in range(3):
        state = collect(state)
    assert int(state.replay.held) == int(state.replay.cursor) == int(state.pending_updates) == 0
    assert int(state.statistics.seen.rows) == 0
    assert np.isfinite(state.statistics.seen.mean).all()
    assert divergence.count(state.divergence) == 3 * 5 * 8
    env.broken = False
    state = jax.jit(functools.partial(programs.collect, config, env))(state)
    assert int(state.replay.held) == 5
    assert np.isfinite(state.replay.steps.state[:5]).all()


def test_an_action_that_is_not_finite_is_dropped_but_the_physics_is_not_blamed() -> None:
    params = fresh_params(0, SPEC)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    robots = rollout.start(Counter(), jax.random.key(1), environments=2)
    probability = {"resample_goal_probability": 0.0, "resample_at_goal_probability": 0.0}
    _, seen = rollout.collect(
        Counter(), broken, robots, key=jax.random.key(2), unroll_length=3, episode_length=9, **probability
    )
    assert not seen.valid.any()
    assert np.isfinite(seen.steps.action).all()
    assert (seen.diverged == -1).all()


class Whip(Cart):
    """A cart on a spring far too stiff for its timestep: its energy grows with every step."""

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        super().__init__(name, impl=impl)
        self.model.jnt_stiffness[:] = 1e7
        self._physics = physics.make(self.model, impl=impl, sizes=None)

    def terminated(self, state: jax.Array) -> jax.Array:
        return jnp.zeros(state.shape[:-1], bool)


WHIP = policy_spec(
    state_names=("x [m]", "vx [m/s]"),
    goal_names=("x [m]",),
    action_names=("force [N]",),
    action_low=(-1.0,),
    action_high=(1.0,),
)


def test_physics_that_diverges_names_the_joint_and_leaves_nothing_behind() -> None:
    env = Whip("whip")
    _, robots, seen = unroll(env, length=8, spec=WHIP)
    counted = divergence.add(divergence.nothing(WORLDS), seen.diverged)
    restarts = divergence.count(counted)
    assert restarts == int((~seen.valid).sum()) >= WORLDS
    assert np.abs(seen.steps.state).max() <= mujoco.mjMAXVAL
    for leaf in jax.tree.leaves(robots.env_state):
        assert np.isfinite(leaf).all()
    line = "of 4 of 4 environments diverged since the last evaluation, first joint 'x'; they were restarted "
    assert f"{line}{restarts} times" in divergence.describe(counted, env)
    twice = divergence.add(counted, seen.diverged)
    assert divergence.count(twice) == 2 * restarts
    assert divergence.describe(divergence.nothing(WORLDS), env) == ""


def test_the_first_joint_in_the_order_of_the_file_is_named() -> None:
    """A free joint has 7 positions and 6 velocities; the hinge after it is joint 1."""
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><freejoint name="base"/><geom size="1"/><body><joint name="hinge"/><geom size="1"/>'
        "</body></body></worldbody></mujoco>"
    )
    data = mujoco.mjx.make_data(model)
    assert int(physics.diverged_joint(model, data)) == 2
    assert int(physics.diverged_joint(model, data.replace(qpos=data.qpos.at[7].set(jnp.inf)))) == 1
    bad = data.replace(qpos=data.qpos.at[7].set(jnp.nan), qvel=data.qvel.at[5].set(2e10))
    assert int(physics.diverged_joint(model, bad)) == 0


@pytest.mark.parametrize(
    ("restarts", "too_many"), [([3, 0, 0, 0] * 5, True), ([7, 7] + [0] * 38, False), ([7] + [0] * 15, False)]
)
def test_worlds_are_counted_and_not_restarts(restarts: list[int], too_many: bool, tiny, tmp_path: Path) -> None:
    """5 of 20 worlds are 25 %; 2 of 40 are 5 %, which is allowed; 1 of 16 is 6 %, but a single world."""
    counted = divergence.Divergence(np.array(restarts), np.int32(0))
    if not too_many:
        divergence.require_few(counted, Cart("cart"), tiny(tmp_path))
        return
    message = (
        r"cart: the physics of 5 of 20 environments .* joint 'x'; .* That is 25.0% of the environments, more than max"
    )
    with pytest.raises(divergence.DivergedError, match=message):
        divergence.require_few(counted, Cart("cart"), tiny(tmp_path))
    divergence.require_few(counted, Cart("cart"), tiny(tmp_path, max_diverged_share=0.25))


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(share: float, tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_diverged_share must be from 0 to 1, got .*; try 0.05"):
        tiny(tmp_path, max_diverged_share=share)


class Cliff(probes.Line):
    """A strong push, which only sampled actions are, leads to nowhere."""

    def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(push) > 0.9, jnp.nan, super().move(state, push))


def test_a_run_goes_on_without_the_worlds_that_diverged_and_says_so(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(registry, "make", lambda *_, **__: Cliff())
    said: list[str] = []

    class Recorder(NoProgress):
        def say(self, text: str) -> None:
            said.append(text)

    trainer.train(tiny(tmp_path / "run", max_diverged_share=1.0), progress=Recorder())
    rows = read_metrics(tmp_path / "run")
    assert all(row["physics/diverged"] > 0 for row in rows)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    counts = [int(line.split()[-2]) for line in said if "environments diverged since the last evaluation" in line]
    assert counts == [row["physics/diverged"] for row in rows]

    message = "line: the physics of .* more than max_diverged_share .5.0%.*; or raise --max-diverged-share"
    with pytest.raises(divergence.DivergedError, match=message):
        trainer.train(tiny(tmp_path / "stopped"))


def test_in_an_evaluation_a_world_that_diverges_has_not_reached_its_goal() -> None:
    """It passes its goal at 1 and is at 1e20 after that, which is no distance to average."""

    class Passing(Fragile):
        def reset(self, rng: jax.Array) -> State:
            return self._observe(jnp.zeros(2), jnp.array([5.1]))

        def achieved_goal(self, state: jax.Array) -> jax.Array:
            return jnp.where(state[..., :1] == 1, 5.1, state[..., :1])

    params = fresh_params(0, SPEC)
    passing = Passing(last=1, then=1e20)
    result = evaluation.evaluate(passing, params, key=jax.random.key(0), episodes=2, episode_length=4)
    assert result.diverged.tolist() == [True, True]
    assert result.touched.tolist() == [False, False]
    np.testing.assert_allclose(result.final_distance, 0.0)  # after the last sound step


def test_a_baseline_goes_on_where_a_world_diverges() -> None:
    """brax's trainers see the end of an episode, and numbers that are finite."""
    env = wrap(Fragile(last=1, then=np.nan), episode_length=9, on_overflow=lambda _: None)
    state = env.reset(jax.random.split(jax.random.PRNGKey(0), WORLDS))
    breaks = np.asarray(state.info["goal"][:, 0] > 5)
    assert 0 < breaks.sum() < WORLDS
    for done in ([False] * WORLDS, breaks):
        state = env.step(state, jnp.zeros((WORLDS, 1)))
        np.testing.assert_array_equal(state.done > 0, done)
        assert np.isfinite(state.obs).all()
    assert state.info["state"][:, 0].tolist() == np.where(breaks, 0, 2).tolist()
