"""The arm against its published env_spec, the seven-jointed robot, MuJoCo's own C engine, and what its tasks need."""

from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tests.training.arm_poses import CLOSED, FINGERTIP_M, OPEN, Driver
from tests.training.truth import Rollout, window_errors
from training.envs import registry
from training.envs.core.goal_env import State
from training.envs.manipulation import arm
from training.envs.manipulation.arm import Arm

STEPS = 200
WINDOW = 8  # control steps after which C's own rollout starts anew, before the cube


def made(name: str) -> Arm:
    env = registry.make(name)
    assert isinstance(env, Arm)
    return env


@pytest.fixture(scope="module")
def reach() -> Arm:
    return made("arm_reach")


@pytest.fixture(scope="module")
def grasp() -> Arm:
    return made("arm_grasp")


@pytest.fixture(scope="module")
def push() -> Arm:
    return made("arm_push_easy")


@pytest.fixture(scope="module")
def hard_bins() -> Arm:
    return made("arm_binpick_hard")


def starts(env: Arm, *, worlds: int) -> State:
    return jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), worlds))


@pytest.fixture(scope="module")
def grasp_starts(grasp: Arm) -> State:
    return starts(grasp, worlds=64)


def test_sizes_names_and_limits(reach: Arm, grasp: Arm, push: Arm, hard_bins: Arm) -> None:
    sizes = [(env.state_size, env.goal_size, env.action_size) for env in (reach, grasp, push, hard_bins)]
    assert sizes == [(13, 3, 4), (23, 7, 5), (17, 3, 5), (17, 3, 5)]
    low, high = (0.3491, 0, -3.0718, 2.3562), (2.7925, 1.48353, -0.0698, 3.7525)
    assert (reach.action_low, reach.action_high) == (low, high)
    for env in (grasp, push, hard_bins):
        assert (env.action_low, env.action_high) == ((*low, -1), (*high, 1))
        assert env.control_period_s == pytest.approx(0.05)
    assert push.spec.action_names == (
        *(f"joint {index} target [rad]" for index in (1, 2, 4, 6)),
        "gripper [closed above 0]",
    )
    assert push.spec.state_names[3] == "joint 1 [rad]"
    assert push.spec.state_names[16] == "opening [m]"


def test_an_action_is_target_angles_and_a_hand_that_closes_above_zero(reach: Arm, push: Arm) -> None:
    np.testing.assert_allclose(
        reach.control(jnp.array([-1.0, 0, 1, 0])), [0.3491, 0.741765, -0.0698, 3.05435], atol=1e-6
    )
    for gripper, fingers in ((-1.0, OPEN), (0.0, OPEN), (0.01, CLOSED), (1.0, CLOSED)):
        asked = push.control(jnp.array([0.0, 0, 0, 0, gripper]))
        np.testing.assert_allclose(asked, [1.5708, 0.741765, -1.5708, 3.05435, fingers, fingers], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "start", "goal"),
    [
        ("arm_push_easy", (-0.1, 0.6, 0.1), (0.1, 0.6, 0.1)),
        ("arm_push_hard", (-0.25, 0.65, 0.25), (0.25, 0.65, 0.25)),
        ("arm_binpick_easy", (-0.15, 0.6, 0.09), (0.17, 0.6, 0.09)),
        ("arm_binpick_hard", (-0.3, 0.6, 0.15), (0.3, 0.6, 0.15)),
    ],
)
def test_cube_and_goal_are_drawn_anywhere_in_their_squares(
    name: str, start: tuple[float, ...], goal: tuple[float, ...]
) -> None:
    env = made(name)
    qpos, qvel, goals = jax.jit(jax.vmap(env.sample_task))(jax.random.split(jax.random.key(0), 1000))
    for drawn, (x, y, half) in ((qpos[:, :3], start), (goals, goal)):
        off = np.asarray(drawn) - [x, y, 0.03]
        assert np.abs(off[:, 2]).max() < 1e-6
        assert 0.98 * half < np.abs(off[:, :2]).max() <= half + 1e-6
        np.testing.assert_allclose(np.abs(off[:, :2]).mean(axis=0), half / 2, rtol=0.1)
        assert np.abs(np.corrcoef(off[:, :2].T)[0, 1]) < 0.1
    assert len(np.unique(qpos[:, 0])) > 990
    assert abs(np.corrcoef(qpos[:, 0], goals[:, 0])[0, 1]) < 0.1, "start and goal apart from one another"
    assert not qvel.any()
    np.testing.assert_allclose(qpos[0, 3:], [1, 0, 0, 0, 1.571, 0.742, -1.571, 3.054, 0.04, 0.04], atol=1e-6)


def test_reaching_aims_anywhere_in_a_box(reach: Arm) -> None:
    goals = np.asarray(jax.vmap(reach.sample_goal)(jax.random.split(jax.random.key(0), 1000)))
    np.testing.assert_allclose(goals.min(axis=0), [-0.2, 0.3, 0.1], atol=0.005)
    np.testing.assert_allclose(goals.max(axis=0), [0.2, 0.7, 0.5], atol=0.005)


SEVEN_JOINTS = """
<mujoco><compiler angle="radian"/><default><joint axis="0 0 1" armature="0.1"/></default><worldbody>
<body pos="0 0 0.333"><joint name="1"/><inertial mass="4.970684" pos="0.003875 0.002081 -0.04762"
 fullinertia="0.70337 0.70661 0.009117 -0.000139 0.006772 0.019169"/>
<body quat="1 -1 0 0"><joint name="2"/><inertial mass="0.646926" pos="-0.003141 -0.02872 0.003495"
 fullinertia="0.007962 0.02811 0.025995 -0.003925 0.010254 0.000704"/>
<body pos="0 -0.316 0" quat="1 1 0 0"><joint name="3"/><inertial mass="3.228604" pos="0.027518 0.039252 -0.066502"
 fullinertia="0.037242 0.036155 0.01083 -0.004761 -0.011396 -0.012805"/>
<body pos="0.0825 0 0" quat="1 1 0 0"><joint name="4"/><inertial mass="3.587895" pos="-0.05317 0.104419 0.027454"
 fullinertia="0.025853 0.019552 0.028323 0.007796 -0.001332 0.008641"/>
<body pos="-0.0825 0.384 0" quat="1 -1 0 0"><joint name="5"/><inertial mass="1.225946"
 pos="-0.011953 0.041065 -0.038437" fullinertia="0.035549 0.029474 0.008627 -0.002117 -0.004037 0.000229"/>
<body quat="1 1 0 0"><joint name="6"/><inertial mass="1.666555" pos="0.060149 -0.014117 -0.010517"
 fullinertia="0.001964 0.004354 0.005433 0.000109 -0.001158 0.000341"/>
<body name="7" pos="0.088 0 0" quat="1 1 0 0"><joint name="7"/><inertial mass="0.735522"
 pos="0.010517 -0.004252 0.061597" fullinertia="0.012516 0.010027 0.004815 -0.000428 -0.001196 -0.000741"/>
</body></body></body></body></body></body></body></worldbody></mujoco>
"""


def test_the_arm_is_the_seven_jointed_one_with_three_joints_held(reach: Arm) -> None:
    """Same place of the end effector, same mass matrix and same forces of gravity and inertia, in any pose."""
    whole = mujoco.MjModel.from_xml_string(SEVEN_JOINTS)
    theirs, ours = mujoco.MjData(whole), mujoco.MjData(reach.model)
    moving = [0, 1, 3, 5]
    random = np.random.default_rng(0)
    for _ in range(5):
        ours.qpos[:] = random.uniform(np.array(reach.action_low), np.array(reach.action_high))
        ours.qvel[:] = random.uniform(-1, 1, 4)
        theirs.qpos[:] = [*ours.qpos[:2], 0, ours.qpos[2], 0, ours.qpos[3], 1.4487]
        theirs.qvel[moving] = ours.qvel
        for model, data in ((whole, theirs), (reach.model, ours)):
            mujoco.mj_forward(model, data)
        np.testing.assert_allclose(ours.site("end effector").xpos, theirs.body("7").xpos, atol=1e-9)
        np.testing.assert_allclose(ours.site("end effector").xmat, theirs.body("7").xmat, atol=1e-9)
        np.testing.assert_allclose(
            inertia(reach.model, ours), inertia(whole, theirs)[np.ix_(moving, moving)], atol=1e-9
        )
        np.testing.assert_allclose(ours.qfrc_bias, theirs.qfrc_bias[moving], atol=1e-9)


def inertia(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """The mass matrix, column by column."""
    columns = np.zeros((model.nv, model.nv))
    for column, unit in zip(columns, np.eye(model.nv), strict=True):
        mujoco.mj_mulM(model, data, column, unit)
    return columns


def test_a_target_is_reached_within_two_degrees_and_the_speed_is_rated(reach: Arm) -> None:
    driver = Driver(reach)
    driver.data.ctrl[:] = [0.5, 0.3, -2.0, 2.6]
    speeds = []
    for _ in range(600):
        mujoco.mj_step(reach.model, driver.data)
        speeds.append(np.abs(driver.data.qvel).max())
    np.testing.assert_allclose(driver.data.qpos, driver.data.ctrl, atol=np.deg2rad(2))
    assert max(speeds) < 3.5
    assert speeds[-1] < 1e-6


def test_a_cube_rests_on_the_table_and_the_arms_links_pass_through(push: Arm) -> None:
    driver = Driver(push, (-0.1, 0.6))
    driver.move(driver.data.qpos[driver.angles].copy(), fingers=OPEN, seconds=1)
    assert driver.touching() == {("cube", "table")}
    np.testing.assert_allclose(driver.cube, [-0.1, 0.6, 0.03], atol=1e-3)
    driver.data.qpos[driver.angles] = [1.571, 1.7, -1.6, 3.7]  # forearm and wrist within the table
    driver.data.qpos[0] = 3
    mujoco.mj_forward(push.model, driver.data)
    assert driver.data.site("end effector").xpos[2] < -0.05
    assert driver.touching() == {
        ("hand", "table"),
        ("left finger", "table"),
        ("right finger", "table"),
        ("cube", "table"),
    }


def test_fingers_hold_a_cube_and_carry_it_from_bin_to_bin(hard_bins: Arm) -> None:
    driver = Driver(hard_bins, (-0.3, 0.6))
    driver.fingertips_to((-0.3, 0.6, 0.2), fingers=OPEN)
    driver.fingertips_to((-0.3, 0.6, 0.03), fingers=OPEN)
    driver.move(driver.data.qpos[driver.angles].copy(), fingers=CLOSED, seconds=0.5)
    driver.fingertips_to((-0.3, 0.6, 0.2), fingers=CLOSED)
    assert driver.touching() == {("cube", "left finger"), ("cube", "right finger")}
    assert driver.cube[2] - 0.03 > 0.066, "above the walls"
    for x in (-0.1, 0.1, 0.3):
        driver.fingertips_to((x, 0.6, 0.2), fingers=CLOSED, seconds=0.6)
    driver.fingertips_to((0.3, 0.6, 0.06), fingers=CLOSED)
    driver.move(driver.data.qpos[driver.angles].copy(), fingers=OPEN, seconds=1)
    assert ("cube", "table") in driver.touching()
    np.testing.assert_allclose(driver.cube, [0.3, 0.6, 0.03], atol=0.05)


@pytest.mark.parametrize(("velocity", "walls"), [((-2.0, 0), {"wall 2"}), ((-2.0, 2.0), {"wall 1", "wall 2"})])
def test_walls_stop_a_cube(hard_bins: Arm, velocity: tuple[float, float], walls: set[str]) -> None:
    """Thrown at the left wall, and into the far left corner, from a few centimeters."""
    driver = Driver(hard_bins, (-0.44, 0.73))
    driver.data.qvel[:2] = velocity
    met: set[str] = set()
    for _ in range(100):
        mujoco.mj_step(hard_bins.model, driver.data)
        met |= {name for pair in driver.touching() for name in pair}
    assert met - {"cube", "table"} == walls
    assert -0.485 < driver.cube[0] < -0.4
    assert driver.cube[1] < 0.785


def test_a_cube_lies_on_top_of_a_wall(hard_bins: Arm) -> None:
    driver = Driver(hard_bins, (-0.49, 0.6))
    driver.data.qpos[2] = 0.1
    driver.move(driver.data.qpos[driver.angles].copy(), fingers=OPEN, seconds=0.2)
    assert driver.touching() == {("cube", "wall 2")}
    assert driver.cube[2] == pytest.approx(0.066 + 0.03, abs=2e-3)


def test_the_floor_plan_has_the_walls_as_published(hard_bins: Arm, push: Arm) -> None:
    plan = hard_bins.floor_plan()
    assert len(plan) == 8
    np.testing.assert_allclose(plan[0], [(-0.495, 0.405), (-0.105, 0.415)], atol=1e-9)
    np.testing.assert_allclose(plan[7], [(0.485, 0.415), (0.495, 0.785)], atol=1e-9)
    assert push.floor_plan() == ()


def test_closed_fingers_push_a_cube_to_its_goal(push: Arm) -> None:
    driver = Driver(push, (-0.15, 0.6))
    driver.fingertips_to((-0.25, 0.6, 0.15), fingers=CLOSED)
    for x in np.linspace(-0.25, 0.1, 8):
        driver.fingertips_to((x, 0.6, 0.03), fingers=CLOSED, seconds=0.4)
    assert np.linalg.norm(driver.cube - [0.15, 0.6, 0.03]) < push.spec.success_radius
    assert any("finger" in name for pair in driver.touching() if "cube" in pair for name in pair)


@pytest.mark.slow
def test_an_arm_that_is_told_where_to_go_reaches_its_goals(reach: Arm) -> None:
    worlds = 32
    now = starts(reach, worlds=worlds)
    driver = Driver(reach)
    angles = [driver.pose(goal) for goal in np.asarray(now.info["goal"])]
    actions = jnp.asarray([driver.action(pose) for pose in angles], jnp.float32)
    step = jax.jit(jax.vmap(reach.step))
    assert (np.asarray(now.metrics["success"]) > 0).sum() < 8
    for _ in range(40):
        now = step(now, actions)
    assert np.asarray(now.metrics["success"]).all()
    assert np.median(now.metrics["distance"]) < 0.02
    np.testing.assert_allclose(
        now.metrics["distance"], np.linalg.norm(now.info["state"][:, 7:10] - now.info["goal"], axis=1), atol=1e-6
    )


def anywhere(grasp: Arm, grasp_starts: State) -> State:
    """The same worlds in random poses and motion, with all other positions left as they were."""
    random = np.random.default_rng(0)
    low, high = np.array([*grasp.action_low[:4], 0, 0]), np.array([*grasp.action_high[:4], OPEN, OPEN])
    physics: Any = grasp_starts.pipeline_state
    qpos = np.array(physics.qpos)
    qpos[:, :3] += random.uniform(-0.1, 0.1, (64, 3))
    qpos[:, 7:] = random.uniform(low, high, (64, 6))
    qvel = random.uniform(-1, 1, (64, 12))
    moved = physics.replace(qpos=jnp.asarray(qpos, jnp.float32), qvel=jnp.asarray(qvel, jnp.float32))
    return jax.jit(jax.vmap(grasp.with_goal))(grasp_starts.replace(pipeline_state=moved), jnp.zeros((64, 7)))


def test_what_is_sensed_is_where_mujoco_c_says_it_is(grasp: Arm, grasp_starts: State) -> None:
    now = anywhere(grasp, grasp_starts)
    data = mujoco.MjData(grasp.model)
    site = grasp.model.site("end effector").id
    physics: Any = now.pipeline_state
    for row, qpos, qvel in zip(now.info["state"], physics.qpos, physics.qvel, strict=True):
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_forward(grasp.model, data)
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(grasp.model, data, mujoco.mjtObj.mjOBJ_SITE, site, velocity, 0)
        left, right = data.site("left tip").xpos, data.site("right tip").xpos
        angles = [qpos[7], qpos[8], 0, qpos[9], 0, qpos[10], 1.4487]
        truth = [*qpos[:3], *angles, *data.site_xpos[site], *velocity[3:], *left, *right, qpos[11] + qpos[12]]
        np.testing.assert_allclose(row, truth, atol=2e-5)


def test_the_goal_of_a_grasp_goes_with_the_cube(grasp: Arm, grasp_starts: State) -> None:
    now = anywhere(grasp, grasp_starts)
    assert len(np.unique(grasp_starts.info["goal"][:, 0])) == 64
    for at in (grasp_starts, now):
        cube, goal = np.asarray(at.info["state"][:, :3]), np.asarray(at.info["goal"])
        np.testing.assert_allclose(goal[:, :3], cube + np.array([0.0375, 0, 0]), atol=1e-6)
        np.testing.assert_allclose(goal[:, 3:6], cube - np.array([0.0375, 0, 0]), atol=1e-6)
        np.testing.assert_allclose(goal[:, 6], 0.075, atol=1e-6)
        np.testing.assert_array_equal(at.obs, np.concatenate([at.info["state"], goal], axis=1))


@pytest.mark.parametrize(
    ("off", "opening", "reached"),
    [(0.0, 0.075, True), (0.049, 0.0949, True), (0.051, 0.075, False), (0, 0.0951, False), (0, 0.0549, False)],
)
def test_a_grasp_is_the_middle_within_5_cm_and_the_opening_within_2(
    grasp: Arm, off: float, opening: float, reached: bool
) -> None:
    cube, side = np.array([0.1, 0.5, 0.03]), np.array([0.0375, 0, 0])
    middle, along = cube + np.array([0, off, 0]), np.array([0, opening / 2, 0])
    state = jnp.asarray([*cube, *np.zeros(13), *(middle + along), *(middle - along), opening], jnp.float32)
    goal = jnp.asarray([*(cube + side), *(cube - side), 0.075], jnp.float32)
    np.testing.assert_allclose(grasp.achieved_goal(state), [*(middle + along), *(middle - along), opening], rtol=1e-6)
    assert bool(grasp.distance(state, goal) < grasp.spec.success_radius) == reached
    np.testing.assert_allclose(grasp.distance(state, goal), max(off, 2.5 * abs(opening - 0.075)), atol=1e-6)


def test_a_cube_is_at_its_goal_within_10_cm(push: Arm) -> None:
    state = jnp.zeros((3, 17)).at[:, :3].set(jnp.array([[0.1, 0.6, 0.03], [0.199, 0.6, 0.03], [0.1, 0.6, 0.131]]))
    distance = push.distance(state, jnp.array([0.1, 0.6, 0.03]))
    np.testing.assert_allclose(distance, [0, 0.099, 0.101], atol=1e-6)
    assert (distance < push.spec.success_radius).tolist() == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arm_push_easy", "arm_binpick_hard"])
def test_physics_agrees_with_mujoco_c(name: str) -> None:
    """Windows of one and of two control steps, begun at every moment of 200 in which the hand goes at the cube.

    Ten physics steps magnify what little MJX finds otherwise where the hand pins the cube and it springs away, hence
    the quantiles. Where the hand does not touch the cube, nine steps in ten agree within 3e-4 m or rad.
    """
    env = made(name)
    truth = rollout_at_the_cube(env, name)
    everything = frozenset[tuple[str, ...]]().union(*truth.contacts)
    assert {("cube", other) for other in ("hand", "left finger", "right finger", "table")} <= everything
    handled = np.array([any("cube" in pair and pair != ("cube", "table") for pair in met) for met in truth.contacts])
    assert min(handled.sum(), (~handled).sum()) > 30
    errors = window_errors(env, starts(env, worlds=STEPS), truth, length=2)
    assert np.quantile(errors.position[~handled, 0], 0.9) < 3e-4
    assert np.quantile(errors.velocity[~handled, 0], 0.9) < 1e-2
    assert np.quantile(errors.position[handled, 0], 0.7) < 1e-3
    assert np.quantile(errors.velocity[handled, 0], 0.7) < 0.1
    assert np.nanquantile(errors.position[:, 1], 0.6) < 1e-3
    if name == "arm_binpick_hard":
        walls = {tuple(thing.split()[0] if "wall" in thing else thing for thing in pair) for pair in everything}
        assert {(thing, "wall") for thing in ("cube", "hand", "left finger", "right finger")} <= walls


def rollout_at_the_cube(env: Arm, name: str) -> Rollout:
    """C's control steps, in windows in which the hand goes at the cube from all sides, open or closed."""
    random = np.random.default_rng(0)
    before: dict[str, list[np.ndarray]] = {"qpos": [], "qvel": [], "qacc_warmstart": []}
    reached: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    touched: list[frozenset[tuple[str, ...]]] = []
    constraints = np.zeros(STEPS, int)
    x, y, half = arm.TRANSPORTS[name].start
    driver, angles, closed = Driver(env, (x, y)), np.zeros(4), False
    for index in range(STEPS):
        if index % WINDOW == 0:
            cube = np.array([x, y]) + random.uniform(-half, half, 2)
            driver = Driver(env, (cube[0], cube[1]))
            way = np.append(random.uniform(-0.09, 0.09, 2), 0)
            height = [0, 0, random.uniform(-0.01, 0.08)]
            begin, angles = (
                driver.pose([*cube, 0] + side * way + height, along=FINGERTIP_M, downwards=True) for side in (1, -1)
            )
            driver.data.qpos[driver.angles] = begin
            driver.data.qpos[-2:] = random.uniform(0, OPEN)
            closed = bool(random.integers(2))
        for field, column in before.items():
            column.append(getattr(driver.data, field).copy())
        actions.append(driver.action(angles, closed=closed))
        driver.data.ctrl[:4], driver.data.ctrl[4:] = angles, CLOSED if closed else OPEN
        met: set[tuple[str, ...]] = set()
        for _ in range(env.substeps):
            mujoco.mj_step(env.model, driver.data)
            constraints[index] += driver.data.nefc
            met |= driver.touching()
        touched.append(frozenset(met))
        reached.append(np.concatenate([driver.data.qpos, driver.data.qvel]))
    arrays = {field: np.array(column) for field, column in before.items()}
    return Rollout(np.array(actions), arrays, np.array(reached), constraints, tuple(touched), WINDOW)
