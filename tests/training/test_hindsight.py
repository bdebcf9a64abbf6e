"""The O(1) hindsight sampler against the full probability matrix it replaces, and the ring it draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.data import hindsight, replay_buffer

DISCOUNT = 0.9


def filled(episodes: list[list[int]], capacity: int, *, unroll: int) -> replay_buffer.ReplayBuffer:
    """A ring into which one column of `episodes` per environment went; the state is (environment, time)."""
    columns = np.array(episodes, np.int32).T
    time, environments = np.indices(columns.shape)
    ring = replay_buffer.empty(capacity, unroll_length=unroll, environments=columns.shape[1], state_dim=2, action_dim=1)
    for start in range(0, len(columns), unroll):
        rows = slice(start, start + unroll)
        state = np.stack([environments[rows], time[rows]], axis=-1).astype(np.float32)
        ring = replay_buffer.insert(
            ring, replay_buffer.Steps(state, time[rows, :, None].astype(np.float32), columns[rows])
        )
    return ring


def reference_matrix(episodes: list[int], discount: float) -> np.ndarray:
    """P(future j | step i): discount^(j - i) within the episode, 1e-5 on the diagonal, rows normalized."""
    numbers = np.array(episodes)
    ahead = np.arange(len(numbers))[None, :] - np.arange(len(numbers))[:, None]
    weights = np.where((ahead > 0) & (numbers[None, :] == numbers[:, None]), discount ** np.maximum(ahead, 0), 0.0)
    weights += 1e-5 * np.eye(len(numbers))
    return weights / weights.sum(axis=1, keepdims=True)


def test_steps_left_counts_to_the_end_of_the_episode_in_a_ring_that_has_wrapped() -> None:
    # twelve steps into a ring of eight: the last eight are held, from the middle of an episode on
    episodes = [[0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2], [0] * 12]
    ring = filled(episodes, 8, unroll=4)
    age, environment = jnp.meshgrid(jnp.arange(8), jnp.arange(2), indexing="ij")
    index = replay_buffer.StepIndex(age, environment)
    left = replay_buffer.steps_left(ring, index)
    assert left[:, 0].tolist() == [0, 1, 0, 4, 3, 2, 1, 0]
    assert left[:, 1].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    back = replay_buffer.steps_back(ring, index)
    assert back[:, 0].tolist() == [0, 0, 1, 0, 1, 2, 3, 4]
    assert back[:, 1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    state = ring.steps.state[replay_buffer.rows(ring, index)]
    np.testing.assert_array_equal(state[..., 0], environment)
    np.testing.assert_array_equal(state[..., 1], 4 + age)


def test_steps_left_in_a_ring_that_is_not_yet_full_stops_at_what_it_holds() -> None:
    ring = filled([[0, 0, 0, 0]], 16, unroll=4)  # rows 4 to 15 hold zeros, the same episode number
    left = replay_buffer.steps_left(ring, replay_buffer.StepIndex(jnp.arange(4), jnp.zeros(4, jnp.int32)))
    assert left.tolist() == [3, 2, 1, 0]


def test_an_insert_that_does_not_divide_the_slots_is_refused() -> None:
    ring = filled([[0] * 4], 8, unroll=4)
    three = replay_buffer.Steps(jnp.zeros((3, 1, 2)), jnp.zeros((3, 1, 1)), jnp.zeros((3, 1), jnp.int32))
    with pytest.raises(ValueError, match="8 slots must be a multiple of the 3 steps to insert"):
        replay_buffer.insert(ring, three)


def test_a_capacity_that_is_no_multiple_of_the_unroll_is_kept_to_the_step() -> None:
    # twenty steps, four at a time, into a ring for seven: eight slots, of which the last seven written count
    ring = filled([list(range(20))], 7, unroll=4)
    assert int(ring.held) == 7
    age = jnp.arange(7)
    state = ring.steps.state[replay_buffer.rows(ring, replay_buffer.StepIndex(age, jnp.zeros(7, jnp.int32)))]
    assert state[:, 1].tolist() == [13, 14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("left", [0, 1, 2, 7, 40])
def test_offsets_invert_the_cumulative_probabilities(left: int) -> None:
    """Feeding an even grid of uniforms gives every offset its exact share, up to the grid's spacing."""
    grid = 200_000
    uniform = (jnp.arange(grid) + 0.5) / grid
    offsets = np.asarray(hindsight.future_offset(uniform, jnp.full(grid, left), discount=DISCOUNT))
    shares = np.bincount(offsets, minlength=left + 1) / grid
    expected = reference_matrix([0] * (left + 1), DISCOUNT)[0]
    np.testing.assert_allclose(shares, expected, atol=2e-5)


@pytest.mark.parametrize(("uniform", "offset"), [(1.9999e-5, 0), (2.0000e-5, 1)])
def test_a_step_has_itself_as_its_goal_with_the_weight_of_itself(uniform: float, offset: int) -> None:
    """One later step of weight 0.5 beside 1e-5 for itself: the share of itself is 1e-5 / 0.50001 = 1.99996e-5."""
    assert hindsight.future_offset(jnp.float32(uniform), jnp.int32(1), discount=0.5) == offset


def test_offsets_stay_within_the_episode_for_the_published_discount() -> None:
    uniform = jnp.array([0.0, 1e-7, 0.5, 1 - 2**-24])
    offsets = hindsight.future_offset(uniform, jnp.full(4, 1000), discount=0.99)
    assert offsets[0] == 0
    assert (offsets[1:] >= 0).all()
    assert int(offsets[2]) == 69  # 0.99^69 = 0.49984, just past the half
    assert int(offsets[3]) == 1000


def test_sampled_pairs_follow_the_full_probability_matrix() -> None:
    episodes = [0, 0, 0, 1, 1, 1, 1, 2]
    ring = filled([episodes, [0] * 8], 8, unroll=4)
    draws = 400_000
    pairs = hindsight.sample_pairs(jax.random.key(0), ring, (draws,), discount=DISCOUNT)
    environment = np.asarray(pairs.step.environment)
    np.testing.assert_array_equal(environment, pairs.future.environment)
    counts = np.zeros((2, 8, 8))
    np.add.at(counts, (environment, np.asarray(pairs.step.age), np.asarray(pairs.future.age)), 1)
    for index, numbers in enumerate([episodes, [0] * 8]):
        expected = reference_matrix(numbers, DISCOUNT) / 16  # steps are uniform over 2 environments x 8 rows
        # five standard deviations of a binomial share
        slack = 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9
        assert (np.abs(counts[index] / draws - expected) <= slack).all()


def test_one_row_per_episode_draws_what_was_drawn_before_the_option() -> None:
    ring = filled([[0, 0, 0, 1, 1, 1, 1, 2], [0] * 8], 8, unroll=4)
    age_key, environment_key, offset_key = jax.random.split(jax.random.key(5), 3)
    pairs = hindsight.sample_pairs(jax.random.key(5), ring, (3, 64), discount=DISCOUNT)
    age = jax.random.randint(age_key, (3, 64), 0, 8)
    environment = jax.random.randint(environment_key, (3, 64), 0, 2)
    left = replay_buffer.steps_left(ring, replay_buffer.StepIndex(age, environment))
    offset = hindsight.future_offset(jax.random.uniform(offset_key, (3, 64)), left, discount=DISCOUNT)
    for found, expected in ((pairs.step, age), (pairs.future, age + offset)):
        np.testing.assert_array_equal(found.age, expected)
        np.testing.assert_array_equal(found.environment, environment)


def test_two_rows_per_episode_are_uniform_alone_and_from_one_episode_together() -> None:
    """Episodes of 5 and of 3 steps: the law by hand."""
    groups = 200_000
    ring = filled([[0, 0, 0, 0, 0, 1, 1, 1]], 8, unroll=4)
    draw = jax.jit(
        lambda: hindsight.sample_pairs(jax.random.key(1), ring, (2, groups), discount=DISCOUNT, rows_per_episode=2)
    )
    pairs = draw()
    assert pairs.step.age.shape == pairs.future.age.shape == (2, groups)
    age = np.asarray(pairs.step.age).reshape(groups, 2)
    first_episode = age < 5

    def assert_share(found: np.ndarray, expected: float) -> None:
        assert abs(found.mean() - expected) < 5 * (expected * (1 - expected) / groups) ** 0.5

    assert (first_episode[:, 0] == first_episode[:, 1]).all()
    assert_share(first_episode[:, 0], 5 / 8)
    assert_share(age[:, 0] == age[:, 1], 1 / 4)  # 5/8 * 1/5 + 3/8 * 1/3
    for row in range(2):
        for step in range(8):
            assert_share(age[:, row] == step, 1 / 8)
    # each row has a future of its own, by the law of its own step
    expected = reference_matrix([0] * 5 + [1] * 3, DISCOUNT)
    future = np.asarray(pairs.future.age).reshape(groups, 2)
    for row in range(2):
        for step, later in ((0, 1), (0, 4), (3, 4), (5, 7)):
            assert_share((age[:, row] == step) & (future[:, row] == later), expected[step, later] / 8)
    apart = (age[:, 0] == 0) & (age[:, 1] == 0)
    both = np.mean((future[:, 0] == 1)[apart] & (future[:, 1] == 1)[apart])
    assert both == pytest.approx(expected[0, 1] ** 2, abs=5 * 0.3 / apart.sum() ** 0.5)


def test_groups_come_from_every_environment_and_keep_to_it() -> None:
    ring = filled([[0] * 4 + [1] * 4, [0] * 8], 8, unroll=4)
    pairs = hindsight.sample_pairs(jax.random.key(2), ring, (300,), discount=DISCOUNT, rows_per_episode=3)
    environment, age = (np.asarray(part).reshape(100, 3) for part in (pairs.step.environment, pairs.step.age))
    assert (environment == environment[:, :1]).all()
    assert set(environment[:, 0]) == {0, 1}
    in_halves = environment[:, 0] == 0
    assert ((age < 4) == (age < 4)[:, :1])[in_halves].all()
    assert not ((age < 4) == (age < 4)[:, :1])[~in_halves].all()
    np.testing.assert_array_equal(pairs.step.environment, pairs.future.environment)


def test_gathered_rows_are_the_ones_named() -> None:
    ring = filled([[0] * 12, [0] * 12], 8, unroll=4)
    pairs = replay_buffer.Pairs(
        step=replay_buffer.StepIndex(jnp.array([0, 7]), jnp.array([1, 0])),
        future=replay_buffer.StepIndex(jnp.array([3, 7]), jnp.array([1, 0])),
    )
    batch = replay_buffer.gather(ring, pairs)
    assert batch.state.tolist() == [[1, 4], [0, 11]]
    assert batch.action.tolist() == [[4], [11]]
    assert batch.future_state.tolist() == [[1, 7], [0, 11]]
