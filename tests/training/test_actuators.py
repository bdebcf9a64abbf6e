"""What a policy's specification says of actions and quaternions, for every environment and for robots from a file."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from tests.training.cart import Cart
from tests.training.test_mjcf_env import EVERY_JOINT, two_link
from training.config import TrainConfig
from training.envs import registry
from training.envs.core import actuators
from training.envs.core.errors import EnvError
from training.envs.core.goal_env import GoalEnv
from training.envs.custom import loading
from training.envs.custom.mjcf_env import Box

ARM_REST = (  # the start pose is the middle of each range of targets, rounded to 1e-3 rad: offset / half of the range
    (1.571 - 1.5708) / 1.2217,
    (0.742 - 0.741765) / 0.741765,
    (-1.571 + 1.5708) / 1.501,
    (3.054 - 3.05435) / 0.69815,
)
FACTS = {  # by the beginning of a name: kinds, action at rest, quaternions in the state
    "point": (("torque",) * 2, (0,) * 2, ()),
    "ant": (("torque",) * 8, (0,) * 8, (3,)),
    "humanoid": (("torque",) * 17, (0,) * 17, (3,)),
    "reacher": (("torque",) * 2, (0,) * 2, ()),
    "pusher": (("torque",) * 7, (0,) * 7, ()),
    "cheetah": (("torque",) * 6, (0,) * 6, ()),
    "arm_reach": (("position",) * 4, ARM_REST, ()),
    "arm": (("position",) * 4 + ("other",), (*ARM_REST, -1), ()),
}


@pytest.mark.parametrize("name", registry.built_in().entries)
def test_every_environment_says_what_its_actions_and_states_are(name: str, tmp_path: Path) -> None:
    env = registry.make(name)
    spec = TrainConfig(env=name, out=tmp_path).policy_spec(env)
    kinds, rest, quaternions = FACTS.get(name) or FACTS[name.partition("_")[0]]
    assert spec.actuator_kind == kinds
    np.testing.assert_allclose(spec.rest_action, rest, atol=1e-5)
    assert spec.action_meaning == ("absolute",) * spec.action_dim
    assert spec.max_action_change == ()
    assert spec.state_quaternions == quaternions
    assert spec.goal_quaternions == ()
    labels = [f"quaternion {part}" for part in "wxyz"]
    assert [index for index in range(spec.state_dim) if list(spec.state_names[index : index + 4]) == labels] == list(
        quaternions
    )


def test_the_arm_rests_in_its_start_pose_with_open_fingers() -> None:
    env = registry.make("arm_grasp")
    rest = np.asarray(env.control(jnp.array(env.rest_action)))
    np.testing.assert_allclose(rest, [1.571, 0.742, -1.571, 3.054, 0.08, 0.08], atol=1e-5)


@pytest.mark.parametrize(("name", "body"), [("ant", "torso"), ("ant_ball", "torso"), ("humanoid_u_maze", "torso")])
def test_the_quaternion_in_a_state_is_the_orientation_of_the_body(name: str, body: str) -> None:
    """Of MuJoCo's C engine, after a turn by 1 rad about (1, 2, 3)."""
    env = registry.make(name)
    data = mujoco.MjData(env.model)
    turn = np.append(np.cos(0.5), np.sin(0.5) * np.array([1, 2, 3]) / np.sqrt(14))
    data.qpos[:] = np.random.default_rng(0).uniform(-0.2, 0.2, env.model.nq)
    data.qpos[3:7] = turn
    mujoco.mj_kinematics(env.model, data)
    np.testing.assert_allclose(data.body(body).xquat, turn, atol=1e-12)
    (start,) = env.spec.state_quaternions
    sensed = sense(env, data.qpos)
    np.testing.assert_allclose(sensed[start : start + 4], data.body(body).xquat, atol=1e-6)


def test_quaternions_of_free_and_ball_joints_are_found_in_the_order_of_the_chosen_joints(tmp_path: Path) -> None:
    """The base may turn freely, and the arm against the base: its orientation is the product of the two."""
    file = tmp_path / "robot.xml"
    file.write_text(EVERY_JOINT)
    some = {"goal_sites": "tip", "goal_axes": "x", "goals": Box(low=(0,), high=(1,)), "control_period_s": 0.002}
    env = two_link(file, joints=("hinge", "ball", "base"), keyframe="tilted", **some)
    assert env.spec.state_quaternions == (1, 8)  # after the hinge; after the ball joint and the base's position
    data = mujoco.MjData(env.model)
    mujoco.mj_resetDataKeyframe(env.model, data, 0)
    mujoco.mj_kinematics(env.model, data)
    arm, base = (sense(env, data.qpos)[start : start + 4] for start in env.spec.state_quaternions)
    np.testing.assert_allclose(base, data.body("base").xquat, atol=1e-6)
    turned = np.zeros(4)
    mujoco.mju_mulQuat(turned, np.float64(base), np.float64(arm))
    np.testing.assert_allclose(turned, data.body("arm").xquat, atol=1e-6)
    assert two_link().spec.state_quaternions == ()


def sense(env: GoalEnv, qpos: np.ndarray) -> np.ndarray:
    placed = mjx.make_data(env.model).replace(qpos=jnp.asarray(qpos, jnp.float32))
    return np.asarray(jax.jit(env.sense)(placed))


ACTUATORS = {  # attributes of an actuator of one hinge, by its tag
    "motor": ("motor", "", "torque"),
    "gear": ("motor", 'gear="60"', "torque"),
    "strong": ("general", 'gainprm="60"', "torque"),
    "lagging force": ("general", 'dyntype="filter" dynprm="0.1"', "other"),
    "servo": ("position", 'kp="120"', "position"),
    "damped servo": ("position", 'kp="120" kv="3"', "position"),
    "critical servo": ("position", 'kp="120" dampratio="1"', "position"),
    "lagging servo": ("position", 'kp="120" timeconst="0.1"', "position"),
    "general servo": ("general", 'biastype="affine" gainprm="4500" biasprm="0 -4500 -450"', "position"),
    "other unit": ("general", 'biastype="affine" gainprm="0.01568627451" biasprm="0 -100 -10"', "other"),
    "offset": ("general", 'biastype="affine" gainprm="100" biasprm="5 -100 0"', "other"),
    "bias without effect": ("general", 'biastype="none" gainprm="100" biasprm="0 -100 0"', "torque"),
    "speed": ("velocity", 'kv="3"', "velocity"),
    "integrated": ("intvelocity", 'kp="120" kv="3" actrange="-1 1"', "other"),
    "damper": ("damper", 'kv="3"', "other"),
    "cylinder": ("cylinder", 'timeconst="0.1" area="2"', "other"),
    "muscle": ("muscle", "", "other"),
}


def test_the_kind_of_an_actuator_follows_from_its_force() -> None:
    """Of the compiled model, so `general` with the parameters of a servo is one."""
    lines = [
        f'<{tag} name="{name}" joint="hinge" ctrlrange="0 1" {more}/>' for name, (tag, more, _) in ACTUATORS.items()
    ]
    lines += [
        '<position name="tendon servo" tendon="cable" kp="5" ctrlrange="0 1"/>',
        '<motor name="thrust" site="tip" gear="0 0 1 0 0 0" ctrlrange="0 1"/>',
        '<adhesion name="suction" body="link" gain="5" ctrlrange="0 1"/>',
    ]
    model = mujoco.MjModel.from_xml_string(f"""
        <mujoco><worldbody><body name="link"><joint name="hinge" range="-90 90"/><geom size="0.1"/><site name="tip"/>
        </body></worldbody><tendon><fixed name="cable"><joint joint="hinge" coef="2"/></fixed></tendon>
        <actuator>{"".join(lines)}</actuator></mujoco>""")
    found = {model.actuator(index).name: actuators.kind(model, index) for index in range(model.nu)}
    expected = {name: kind for name, (_, _, kind) in ACTUATORS.items()}
    assert found == expected | {"tendon servo": "position", "thrust": "torque", "suction": "other"}


SERVOS = """
<mujoco>
  <worldbody>
    <body><joint name="shoulder" range="-180 180"/><geom size="0.1"/>
      <body pos="0.3 0 0"><joint name="elbow" range="-10 170"/><geom size="0.1"/><site name="fingertip" pos="0.3 0 0"/>
    </body></body>
  </worldbody>
  <actuator>
    <position name="shoulder" joint="shoulder" kp="20" ctrlrange="-2 2"/>
    <position name="elbow" joint="elbow" kp="20" ctrlrange="0.5 2.5"/>
  </actuator>
  {keyframes}
</mujoco>
"""
HOME = '<keyframe><key qpos="-1.2 2.6" ctrl="-1 2.6"/><key name="sitting" qpos="1 2" ctrl="1 2"/></keyframe>'


@pytest.mark.parametrize(
    ("keyframes", "named", "rest"),
    [
        ("", None, (0, -1)),  # 0 of -2 to 2, and 0 clipped to 0.5 of 0.5 to 2.5
        (HOME, None, (-0.5, 1)),  # -1 of -2 to 2, and 2.6 clipped to 2.5
        (HOME, "sitting", (0.5, 0.5)),  # 1 of -2 to 2, and 2 of 0.5 to 2.5
    ],
)
def test_a_robot_rests_at_the_control_of_its_keyframe(keyframes: str, named: str | None, rest, tmp_path: Path) -> None:
    file = tmp_path / "servos.xml"
    file.write_text(SERVOS.format(keyframes=keyframes))
    env = two_link(file, keyframe=named, start_noise=0)
    np.testing.assert_allclose(env.rest_action, rest, atol=1e-12)
    assert env.actuator_kind == ("position", "position")
    assert two_link(file, rest_action=[0, 0.25]).rest_action == (0.0, 0.25)


def test_what_a_user_says_reaches_the_policy_and_what_the_file_contradicts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "servos.xml"
    file.write_text(SERVOS.format(keyframes=""))
    said = {
        "actuator_kind": ["position"] * 2,
        "action_meaning": ["increment", "absolute"],
        "max_action_change": [0.1, 2],
    }
    env = two_link(file, **said)
    spec = TrainConfig(env="point_u_maze", out=tmp_path).policy_spec(env)
    assert spec.action_meaning == ("increment", "absolute")
    assert spec.max_action_change == (0.1, 2.0)
    message = "actuator_kind of 'elbow .rad.' is 'torque', but its actuator in the model is of the kind 'position'; use"
    with pytest.raises(EnvError, match=message):
        two_link(file, actuator_kind=("position", "torque"))
    file.write_text(
        SERVOS.format(keyframes="")
        .replace('<position name="shoulder"', '<damper name="shoulder" kv="1"')
        .replace(' kp="20" ctrlrange="-2 2"', ' ctrlrange="0 2"')
    )
    assert two_link(file, actuator_kind=("torque", "position")).actuator_kind == ("torque", "position")
    file.write_text(SERVOS.format(keyframes=HOME.replace('ctrl="-1 2.6"', 'ctrl="-1 nan"')))
    with pytest.raises(EnvError, match=r"servos.xml: keyframe '' has the control nan for 'elbow'; use a finite number"):
        two_link(file)


def test_an_environment_with_controls_of_its_own_says_what_they_are() -> None:
    class Halved(Cart):
        def control(self, action: jax.Array) -> jax.Array:
            return action / 2

    assert Cart("cart").actuator_kind == ("torque",)
    assert Halved("halved").actuator_kind == ("other",)
    assert Halved("halved").rest_action == (0.0,)


def test_the_quaternions_of_a_goal_reach_the_policy(tmp_path: Path) -> None:
    cart = Cart("turned")
    goal_names = ("x [m]", "qw [1]", "qx [1]", "qy [1]", "qz [1]")
    cart.spec = dataclasses.replace(cart.spec, goal_names=goal_names, goal_quaternions=(1,))
    assert TrainConfig(env="point_u_maze", out=tmp_path).policy_spec(cart).goal_quaternions == (1,)


def test_indices_of_quaternions_without_quaternions_are_refused() -> None:
    """The state of the cart has no four values, so it is given a longer one: 0.6, 0.8, 0, 0 is a quaternion."""

    class Labeled(Cart):
        def __init__(self, start: int) -> None:
            super().__init__("labeled")
            names = tuple(f"value {index}" for index in range(6))
            self.spec = dataclasses.replace(self.spec, state_names=names, state_quaternions=(start,))

        def sense(self, data) -> jax.Array:
            return jnp.concatenate([data.qpos, jnp.array([0.6, 0.8, 0.0, 0.0, 1.0])])

    loading.require_sound(Labeled(1))
    message = r"labeled: state_quaternions contains 2, but the values 2 to 5 at a reset have the length 1.28; a quatern"
    with pytest.raises(EnvError, match=message):
        loading.require_sound(Labeled(2))
