"""Contrastive RL solves every probe, and fails each of them once the part it probes is broken on purpose."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import acting
from policy.networks import PolicyParams
from tests.training import probes
from training import evaluation
from training.data import hindsight, replay_buffer

ROWS = 4000
EPISODES = 400

score = jax.jit(functools.partial(acting.score, energy="l2"))


@functools.partial(jax.jit, static_argnums=0)
def evaluate(env: probes.Probe, params: PolicyParams) -> evaluation.Evaluation:
    length = env.spec.episode_length
    return evaluation.evaluate(env, params, key=jax.random.key(1), episodes=EPISODES, episode_length=length)


def test_an_actor_reaches_either_end_of_a_line_only_if_it_sees_the_goal() -> None:
    def share_touched(goal_seen: float) -> float:
        return float(evaluate(line, probes.train(line, goal_seen=goal_seen).params).touched.mean())

    line = probes.Line()
    assert share_touched(1.0) > 0.95
    assert share_touched(0.0) < 0.6  # one end at best: half of the episodes, and four standard deviations


@pytest.mark.slow
def test_actions_are_told_apart_only_if_the_critic_sees_them() -> None:
    """An actor that knows nothing of the goal is off by 1/2 on average, if it always stays at 0, or by more."""
    place, goal = jnp.pad(jax.random.uniform(jax.random.key(2), (2, ROWS, 1), minval=-1), [(0, 0), (0, 0), (0, 1)])
    right = goal[:, :1]
    wrong = right - 0.5 * jnp.sign(right)

    def mean_error_and_preferences(action_seen: float) -> tuple[float, np.ndarray]:
        # half of the goals are the next state; those further ahead depend on later actions
        params = probes.train(probes.Jump(), discount=0.5, action_seen=action_seen).params
        error = jnp.abs(acting.act(params, place, goal) - right).mean()
        preference = score(params, place, right, goal=goal) - score(params, place, wrong, goal=goal)
        return float(error), np.asarray(preference)

    error, preference = mean_error_and_preferences(1.0)
    assert error < 0.15
    assert (preference > 0).mean() > 0.95

    error, preference = mean_error_and_preferences(0.0)
    assert error > 0.4
    assert (preference == 0).all()


@pytest.mark.slow
def test_a_way_that_first_leads_away_from_the_goal_is_found_only_by_looking_past_the_next_step() -> None:
    def share_at_rest_at_the_goal(discount: float) -> float:
        final_distance = evaluate(ratchet, probes.train(ratchet, discount=discount).params).final_distance
        return float((final_distance < ratchet.spec.success_radius).mean())

    ratchet = probes.Ratchet()
    assert share_at_rest_at_the_goal(0.9) > 0.6
    assert share_at_rest_at_the_goal(0.001) < 0.4  # chance alone gives a sixth


@pytest.fixture(scope="module")
def halves() -> dict[bool, tuple[replay_buffer.Batch, PolicyParams]]:
    """Pairs and parameters of two runs, by whether their replay was told where episodes end."""

    def pairs_and_params(episodes_told: int) -> tuple[replay_buffer.Batch, PolicyParams]:
        params, ring = probes.train(probes.Halves(), episodes_told=episodes_told)
        pairs = hindsight.sample_pairs(jax.random.key(3), ring, (ROWS,), discount=0.9)
        return replay_buffer.gather(ring, pairs), params

    return {told: pairs_and_params(int(told)) for told in (True, False)}


@pytest.mark.slow
def test_no_pair_crosses_from_one_episode_to_the_next(halves) -> None:
    def share_crossing(told: bool) -> float:
        batch, _ = halves[told]
        return float((batch.state[:, 1] != batch.future_state[:, 1]).mean())

    assert share_crossing(True) == 0
    # With m = 0 to 3 steps left in an episode, 0.9^m of the goals lie past it, 0.86 on average: half of those cross,
    # or a little less because the ring ends.
    assert 0.3 < share_crossing(False) < 0.5


@pytest.mark.slow
def test_the_critic_learns_that_no_way_leads_across_unless_pairs_cross(halves) -> None:
    """Scores are log ratios of densities: with pairs that cross, a goal on this side is 0.57 / 0.43 times likelier."""

    def share_ten_times_likelier_here(told: bool) -> float:
        batch, params = halves[told]
        here = batch.future_state.at[:, 1].set(batch.state[:, 1])
        across = batch.future_state.at[:, 1].set(-batch.state[:, 1])
        ratio = score(params, batch.state, batch.action, goal=here) - score(
            params, batch.state, batch.action, goal=across
        )
        return float((ratio > math.log(10)).mean())

    assert share_ten_times_likelier_here(True) > 0.95
    assert share_ten_times_likelier_here(False) < 0.05
