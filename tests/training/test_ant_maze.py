"""The ant mazes: which starts and goals belong together, what meets what, and MuJoCo's own C engine."""

import collections

import jax
import mujoco
import numpy as np
import pytest

from tests.training.truth import roll, touching, window_errors
from training.envs import registry
from training.envs.building.mazes import LayoutError
from training.envs.locomotion import ant_maze
from training.envs.locomotion.ant import FEET
from training.envs.locomotion.ant_maze import AntMaze
from training.run import main

STEPS = 200


@pytest.fixture(scope="module")
def big() -> AntMaze:
    env = registry.make("ant_big_maze")
    assert isinstance(env, AntMaze)
    return env


def tasks(name: str, *, draws: int = 4000) -> collections.Counter[tuple[tuple[float, ...], tuple[float, ...]]]:
    """How often each cell, goal cell pair is drawn."""
    env = registry.make(name)
    qpos, _, goal = jax.jit(jax.vmap(env.sample_task))(jax.random.split(jax.random.key(0), draws))
    start = np.asarray(qpos[:, :2])
    cells = 4 * np.round(start / 4)
    assert np.abs(start - cells).max() <= 0.1
    return collections.Counter((tuple(cell), tuple(end)) for cell, end in zip(cells, np.asarray(goal), strict=True))


def test_a_maze_starts_in_its_start_cell_and_aims_at_the_middle_of_every_goal_cell_alike() -> None:
    drawn = tasks("ant_u_maze")
    goals = [(4, 8), (4, 12), (8, 12), (12, 4), (12, 8), (12, 12)]
    assert set(drawn) == {((4, 4), goal) for goal in goals}
    assert all(abs(count / 4000 - 1 / 6) < 0.03 for count in drawn.values())  # five standard deviations


def test_generalisation_starts_anywhere_with_the_goal_so_many_cells_ahead() -> None:
    """Seven cells: six pairs one apart, five two apart; either distance has half of the draws."""
    drawn = tasks("ant_u_maze_gen_1f2f")
    way = [(4, 4), (4, 8), (4, 12), (8, 12), (12, 12), (12, 8), (12, 4)]
    for distance, share in ((1, 1 / 12), (2, 1 / 10)):
        for begin in range(7 - distance):
            assert abs(drawn.pop((way[begin], way[begin + distance])) / 4000 - share) < 0.025
    assert not drawn


def test_evaluation_by_distance_starts_at_the_start() -> None:
    assert set(tasks("ant_u_maze_eval_4f6f")) == {((4, 4), (12, 12)), ((4, 4), (12, 4))}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("ant_u_maze_gen_7f", r"distances of 1 to 6 cells, not \[7\]"),
        ("ant_u_maze_eval_0f", "distances of 1 to 6"),
    ],
)
def test_a_distance_that_the_corridor_has_not_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(LayoutError, match=complaint):
        registry.make(name)


def test_such_a_distance_is_one_line_on_the_command_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--env", "ant_u_maze_gen_9f", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert told == "error: ant_u_maze_gen_9f: u_maze has distances of 1 to 6 cells, not [9]\n"
    assert not (tmp_path / "run").exists()


def test_the_limit_on_contacts_is_the_only_setting_of_mjx(big: AntMaze) -> None:
    """MJX finds it by its place in this list: among others it would be read as one of theirs."""
    assert big.model.numeric_data.tolist() == [8]
    assert jax.eval_shape(big.reset, jax.random.key(0)).pipeline_state._impl.contact.dist.shape == (4 + 8,)


def test_unknown_variants_are_unknown_names() -> None:
    for name in ("ant_u9_maze_gen_1f", "ant_u_maze_gen_1f2", "ant_u_maze_gen_"):
        with pytest.raises(registry.UnknownNameError, match="nearest first: ant_u"):
            registry.make(name)


def test_every_layout_is_registered() -> None:
    for name in ("ant_u_maze", "ant_u7_maze_eval", "ant_big_maze_eval", "ant_hardest_maze"):
        assert name in registry.names()
    assert len(ant_maze.NAMES) == 17


def placed(env: AntMaze, x: float, y: float, *, height: float = 0.45) -> mujoco.MjData:
    data = mujoco.MjData(env.model)
    data.qpos[:] = [x, y, height, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
    mujoco.mj_forward(env.model, data)
    return data


def test_torso_and_feet_meet_the_walls_and_nothing_else_does(big: AntMaze) -> None:
    assert touching(big, placed(big, 4, 4)) == {tuple(sorted(("floor", foot))) for foot in FEET}
    west = placed(big, 2 + 0.3, 4)  # the border is 2 m from the middle of the first cell, the hull reaches 0.36 m
    assert ("hull", "west") in touching(big, west)
    assert {name for pair in touching(big, west) for name in pair} <= {"hull", "west", "floor", *FEET}
    box = next(index for index, rectangle in enumerate(big.maze.obstacles) if rectangle.low[1] <= 8 < rectangle.high[1])
    (x_low, y_low), (_, y_high) = big.maze.obstacles[box]
    near = placed(big, x_low - 0.3, (y_low + y_high) / 2)
    assert ("hull", f"wall {box}") in touching(big, near)


@pytest.mark.slow
def test_physics_agrees_with_mujoco_c_with_and_without_walls(big: AntMaze) -> None:
    """Windows of one to four control steps from states of C's own rollouts, begun in the open and against a wall.

    C knows no limit on contacts, so this also holds that the deepest eight are enough.
    """
    random = np.random.default_rng(0)
    starts = jax.jit(jax.vmap(big.reset))(jax.random.split(jax.random.key(0), STEPS))

    def place(data: mujoco.MjData, step: int) -> None:
        data.qpos[:] = placed(big, *((4, 4) if step % 12 else (2.5, 2.5 + 0.1 * (step % 5))), height=0.6).qpos

    truth = roll(big, random.uniform(-1, 1, (STEPS, 8)), window=6, place=place)
    against_walls = sum(any("floor" not in pair for pair in met) for met in truth.contacts)
    assert 20 < against_walls < 180
    errors = window_errors(big, starts, truth)
    assert (errors.of(free=False, share=0.7)[0] < [1e-5, 1e-5, 2e-4, 2e-3]).all()
    assert (errors.of(free=False, share=0.7)[1] < [1e-3, 2e-3, 1e-2, 1e-1]).all()
    assert (errors.of(free=False, share=0.9)[0] < [1e-3, 5e-3, 2e-2, 5e-2]).all()
    position, velocity = errors.of(free=False, share=0.8)
    assert position[0] < 1e-3
    assert velocity[0] < 5e-2
    assert (errors.of(free=False)[0] < [0.05, 0.5, 0.5, 0.5]).all()
