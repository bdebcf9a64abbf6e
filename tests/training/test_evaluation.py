"""Evaluation on an environment whose every number can be foretold, its figures, and when it ends a run."""

import dataclasses
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from policy.networks import PolicyParams
from tests.parameters import fresh_params
from tests.training import probes
from tests.training.counter import SPEC, Counter
from training import evaluation
from training.config import ConfigError
from training.envs import registry
from training.envs.core.goal_env import State
from training.evaluation import Evaluation
from training.progress_display import ConsoleProgress


@pytest.fixture(scope="module")
def params() -> PolicyParams:
    return fresh_params(0, SPEC)


def evaluate(env: Counter, params: PolicyParams, *, seed: int = 0, episodes: int = 3, length: int = 10) -> Evaluation:
    return evaluation.evaluate(env, params, key=jax.random.key(seed), episodes=episodes, episode_length=length)


class Fixed(Counter):
    """Starts at 0.5 with the goal at 4: distances 2.5, 1.5, 0.5, 0.5, 1.5 ... after the steps."""

    def reset(self, rng: jax.Array) -> State:
        return self._observe(jnp.array([0.5, 0.5]), jnp.array([4.0]))


class Diverging(Fixed):
    """The same, but beyond `worst` the world has no numbers any more."""

    def __init__(self, worst: float) -> None:
        super().__init__()
        self.worst = worst

    def step(self, state: State, action: jax.Array) -> State:
        count, start = state.info["state"]
        count = jnp.where(count + 1 > self.worst, jnp.nan, count + 1)
        return self._observe(jnp.stack([count, start]), state.info["goal"], before=state)


def test_an_evaluation_counts_the_steps_at_the_goal_until_the_first_termination(params: PolicyParams) -> None:
    result = evaluate(Fixed(), params)
    assert result.time_at_goal.tolist() == [2, 2, 2]
    assert result.touched.tolist() == [True] * 3
    np.testing.assert_allclose(result.stay, [2 / 8] * 3)  # arrives in step 3 of 10
    np.testing.assert_allclose(result.final_distance, [6.5] * 3, atol=1e-5)
    assert (result.steps.tolist(), result.terminated.tolist()) == ([10] * 3, [False] * 3)

    # 3.5 is still counted, on the step that ends the episode; 4.5 is not
    ended = evaluate(Fixed(limit=3.4), params)
    assert ended.time_at_goal.tolist() == [1, 1, 1]
    np.testing.assert_allclose(ended.stay, [1 / 8] * 3)
    np.testing.assert_allclose(ended.final_distance, [0.5] * 3, atol=1e-5)
    assert (ended.steps.tolist(), ended.terminated.tolist()) == ([3] * 3, [True] * 3)


def test_a_world_that_diverges_has_not_reached_its_goal_and_ends_at_its_last_finite_distance(
    params: PolicyParams,
) -> None:
    result = evaluate(Diverging(worst=5.0), params)  # NaN from the fifth step on, after two at the goal
    assert result.diverged.tolist() == [True] * 3
    assert (result.touched.tolist(), result.time_at_goal.tolist()) == ([False] * 3, [0] * 3)
    np.testing.assert_allclose(result.stay, [0] * 3)
    assert (result.steps.tolist(), result.terminated.tolist()) == ([4] * 3, [False] * 3)
    np.testing.assert_allclose(result.final_distance, [0.5] * 3, atol=1e-5)
    summary = evaluation.summarize(result)
    assert summary["eval/diverged_count"] == 3
    assert all(math.isfinite(figure) for figure in summary.values())


def test_a_policy_without_actions_is_not_blamed_on_the_world(params: PolicyParams) -> None:
    output = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params.actor.params["output"])
    actor = dataclasses.replace(params.actor, params=params.actor.params | {"output": output})
    result = evaluate(Fixed(), params._replace(actor=actor))
    assert np.isnan(result.final_distance).all()
    assert not np.isfinite(evaluation.summarize(result)["eval/final_distance"])


def test_an_evaluation_draws_fresh_goals(params: PolicyParams) -> None:
    first = evaluate(Counter(), params, episodes=5, length=3)
    second = evaluate(Counter(), params, seed=1, episodes=5, length=3)
    both = np.concatenate([first.final_distance, second.final_distance])
    assert len(np.unique(both)) == 10


def test_an_episode_that_begins_at_its_goal_is_counted_as_such(params: PolicyParams) -> None:
    """The starts lie between 0 and 1, the radius is 0.6: the goals 0.5 and 9 are always and never reached at once."""
    goals = np.array([[0.5], [9.0]])
    found = evaluation.evaluate(Counter(), params, key=jax.random.key(0), episodes=5, episode_length=9, goals=goals)
    assert found.reached_at_reset.tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(found.goal, [[0.5], [9.0], [0.5], [9.0], [0.5]])
    # from there the count is 1 to 2 after the first step, and 9 to 10 after the ninth
    near = np.asarray(found.final_distance)
    assert (near[::2] > 8).all()
    assert (near[1::2] < 1).all()
    assert evaluation.summarize(found)["eval/reached_at_reset"] == pytest.approx(3 / 5)


class Pushed(Counter):
    """The count is the sum of the actions so far, which starts at 0; `start` is the last action."""

    def reset(self, rng: jax.Array) -> State:
        return self._observe(jnp.zeros(2), jnp.array([4.0]))

    def step(self, state: State, action: jax.Array) -> State:
        count, _ = state.info["state"]
        return self._observe(jnp.stack([count + action[0], action[0]]), state.info["goal"], before=state)


def test_random_and_zero_actions_take_the_place_of_the_policys(params: PolicyParams) -> None:
    """Zero actions leave the count at 0, 4 from the goal. The policy goes on as without them."""
    kind = [evaluation.POLICY, evaluation.ZERO_ACTIONS, evaluation.RANDOM_ACTIONS] * 2
    source = evaluation.ActionSource(jnp.array(kind), jax.random.key(7))
    run = {"key": jax.random.key(0), "episodes": 6, "episode_length": 5}
    mixed = np.asarray(evaluation.evaluate(Pushed(), params, source=source, **run).final_distance)
    alone = np.asarray(evaluation.evaluate(Pushed(), params, **run).final_distance)
    np.testing.assert_array_equal(mixed[::3], alone[::3])
    assert mixed[1::3].tolist() == [4, 4]
    random = mixed[2::3]
    assert random[0] != random[1]
    assert (np.abs(random - 4) < 5).all()  # five actions within [-1, 1]
    assert not {4.0, *alone.tolist()} & set(random.tolist())


def test_the_figures_over_all_episodes() -> None:
    summary = evaluation.summarize(
        Evaluation(
            time_at_goal=jnp.array([50] * 8 + [0] * 2),
            touched=jnp.array([True] * 8 + [False] * 2),
            stay=jnp.array([0.5] * 8 + [0.0] * 2),
            final_distance=jnp.array([0.25] * 8 + [1.5] * 2),
            diverged=jnp.array([False] * 9 + [True]),
            reached_at_reset=jnp.array([True] + [False] * 9),
            terminated=jnp.array([True] * 3 + [False] * 7),
            steps=jnp.array([50] * 3 + [100] * 7),
            goal=jnp.zeros((10, 1)),
            overflow=jnp.zeros(10, jnp.int32),
        )
    )
    low, high = summary.pop("eval/stay_low"), summary.pop("eval/stay_high")
    # the mean of ten draws of 0.5 with probability 0.8: half of 6 to 10 successes of 10
    assert 0.25 <= low <= 0.3
    assert high == 0.5
    assert summary == pytest.approx(
        {
            "eval/stay": 0.4,
            "eval/touched": 0.8,
            "eval/touched_count": 8,
            "eval/touched_low": 0.490,
            "eval/touched_high": 0.943,
            "eval/time_at_goal": 40,
            "eval/final_distance": 0.5,
            "eval/diverged_count": 1,
            "eval/reached_at_reset": 0.1,
            "eval/terminated": 0.3,
            "eval/episode_length": 85,
        },
        abs=5e-4,
    )


def test_the_line_of_an_evaluation_has_both_figures_with_their_intervals() -> None:
    figures = {"env_steps": 64_000, "eval/stay": 0.5, "eval/stay_low": 0.25, "eval/stay_high": 0.75}
    figures |= {"eval/touched": 0.8, "eval/touched_low": 0.49, "eval/touched_high": 0.943, "eval/diverged_count": 0}
    told = rich.console.Console(file=io.StringIO(), width=10_000)
    for diverged in (0, 3):
        ConsoleProgress(told).evaluated(figures | {"eval/diverged_count": diverged})
    line = "      64,000 steps  stay 0.50 (0.25 to 0.75)  touched 0.80 (0.49 to 0.94)"
    assert told.file.getvalue().splitlines() == [line, f"{line}  3 diverged"]


@pytest.mark.parametrize(
    ("stays", "met"),
    [
        ([], False),
        ([0.95], False),  # one evaluation may be luck
        ([0.95, 0.9], True),
        ([0.95, 0.89, 0.95], False),  # not in a row
        ([0.1, 0.9, 0.9], True),
        ([0.95, 0.95, 0.1], False),
    ],
)
def test_the_target_is_met_by_two_evaluations_in_a_row(stays: list[float], met: bool) -> None:
    rows = [{"env_steps": step, "eval/stay": stay} for step, stay in enumerate(stays)]
    assert evaluation.target_met(rows, 0.9) == met
    assert not evaluation.target_met(rows, math.inf)


def test_a_row_without_the_figure_does_not_meet_a_target() -> None:
    assert not evaluation.target_met([{"env_steps": 1}, {"env_steps": 2, "eval/stay": 1.0}], 0.1)


class Strong(probes.Line):
    """Has twice the force, and acts every second."""

    @property
    def action_high(self) -> tuple[float, ...]:
        return (2.0,)

    @property
    def control_period_s(self) -> float:
        return 1.0


def line(**changes: object) -> probes.Line:
    env = probes.Line()
    env.spec = dataclasses.replace(env.spec, **changes)
    return env


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (Strong(), "action_high is (2.0,) instead of (1.0,)"),
        (line(success_radius=0.25), "success_radius is 0.25 instead of 0.2"),
        (line(state_names=("x [mm]", "y")), "state_names is ('x [mm]', 'y') instead of ('x', 'y')"),
        (line(actuator_kind=("velocity",)), "actuator_kind is ('velocity',) instead of ('other',)"),
        (line(action_meaning=("increment",)), "action_meaning is ('increment',) instead of ('absolute',)"),
    ],
)
def test_an_eval_env_that_a_robot_would_notice_is_refused(
    tiny, tmp_path, monkeypatch, other: probes.Line, difference: str
) -> None:
    monkeypatch.setattr(registry, "make", lambda *_, **__: other)
    with pytest.raises(ConfigError) as refused:
        evaluation.make_env(tiny(tmp_path, env="ant", eval_env="ant_u_maze"), probes.Line())
    assert str(refused.value) == (
        f"eval_env ant_u_maze does not fit env ant: its {difference}; use an environment with the same robot, units, "
        "limits and control period"
    )
