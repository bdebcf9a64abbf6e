"""Environments from MJCF files: the example against MuJoCo's own C engine, and what a file can contradict."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from clients.sim import fleet, summary
from training.envs.core.errors import EnvError
from training.envs.custom.mjcf_env import Box, MjcfEnv

ARM = Path(__file__).parents[2] / "docs" / "examples" / "two_link" / "two_link.xml"
STEPS = 200
UPPER_M, FOREARM_M = 0.3, 0.25
EVERY_JOINT = """
<mujoco>
  <worldbody>
    <body name="base" pos="0 0 1">
      <freejoint name="base"/>
      <geom size="0.1"/>
      <site name="top" pos="0 0 0.1"/>
      <body name="arm" pos="0.2 0 0">
        <joint name="ball" type="ball" pos="0.05 0 0"/>
        <geom size="0.05"/>
        <body pos="0 0.3 0">
          <joint name="rail" type="slide" axis="1 2 0"/>
          <joint name="hinge" axis="0 1 1"/>
          <geom size="0.05"/>
          <site name="tip" pos="0.1 0.2 0.3"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="rail" joint="rail" kp="20" kv="1" ctrlrange="-0.1 0.1"/>
    <velocity name="spin" joint="hinge" kv="3" ctrlrange="-2 2"/>
    <motor name="geared" joint="hinge" gear="5" ctrlrange="-1 1"/>
    <motor joint="rail" ctrlrange="-3 4"/>
  </actuator>
  <keyframe><key name="tilted" qpos="0 0 2 0.8 0.6 0 0 1 0 0 0 0.1 0.2"/></keyframe>
</mujoco>
"""


def two_link(file: Path = ARM, **changes: object) -> MjcfEnv:
    facts = {
        "joints": ("shoulder", "elbow"),
        "goal_sites": "fingertip",
        "goal_axes": "xy",
        "goals": Box(low=(0.2, -0.35), high=(0.4, 0.35)),
        "start_noise": 0.1,
        "success_radius": 0.05,
        "control_period_s": 0.04,
        "episode_length": 100,
    }
    return MjcfEnv("two_link", file, **(facts | changes))


@pytest.fixture(scope="module")
def arm() -> MjcfEnv:
    return two_link()


@pytest.fixture(scope="module")
def starts(arm: MjcfEnv):
    return jax.jit(jax.vmap(arm.reset))(jax.random.split(jax.random.key(0), STEPS))


def test_the_facts_are_those_of_the_file(arm: MjcfEnv) -> None:
    assert arm.spec.state_names == (
        *("shoulder [rad]", "elbow [rad]", "shoulder rate [rad/s]", "elbow rate [rad/s]"),
        *("fingertip x [m]", "fingertip y [m]"),
    )
    assert arm.spec.goal_names == ("fingertip x [m]", "fingertip y [m]")
    assert arm.spec.action_names == ("shoulder [N m]", "elbow [N m]")
    assert (arm.action_low, arm.action_high) == ((-0.5, -0.5), (0.5, 0.5))
    assert arm.control_period_s == pytest.approx(0.04)
    assert arm.substeps == 2


SKY = '<asset><texture name="sky" type="skybox" builtin="flat" rgb1="1 0 0" width="8" height="48"/></asset><worldbody>'
FLOOR = '<geom type="plane" pos="0 0 -1" size="1 1 1"/>'


def test_a_file_without_sky_light_and_floor_gets_them(tmp_path: Path) -> None:
    """A file's own stay as they are: a headlight of (0.1, 0.4) and no sun, a red sky, a floor. Nothing else changes."""
    bare, own = mujoco.MjModel.from_xml_path(str(ARM)), tmp_path / "arm.xml"
    own.write_text(ARM.read_text().replace("<worldbody>", f"{SKY}<light/>{FLOOR}"))
    given, kept = two_link().model, two_link(own).model
    assert (bare.nlight, given.nlight, kept.nlight) == (0, 1, 1)
    assert (bare.ntex, given.ntex, kept.ntex) == (0, 2, 1)  # sky and tiles
    assert (bare.ngeom, given.ngeom, kept.ngeom) == (2, 3, 3)
    for model, height in ((given, -0.02), (kept, -1.0)):  # 2 cm are the radius of the links
        floor = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
        np.testing.assert_allclose(model.geom_pos[floor], [[0, 0, height]], atol=1e-9)
    links = given.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
    assert given.geom_contype[~links] == given.geom_conaffinity[~links] == 0
    for field in ("geom_size", "geom_contype", "geom_pos", "geom_quat", "geom_rgba"):
        np.testing.assert_array_equal(getattr(given, field)[links], getattr(bare, field))
    assert [float(model.vis.headlight.ambient[0]) for model in (given, kept)] == pytest.approx([0.43, 0.1])
    assert kept.tex_data[:3].tolist() == [255, 0, 0]
    for field in ("body_mass", "body_inertia", "jnt_range", "dof_damping", "qpos0"):
        np.testing.assert_array_equal(getattr(given, field), getattr(bare, field))


def test_starts_and_goals_are_fresh_and_where_the_facts_say(arm: MjcfEnv, starts) -> None:
    """The fingertip follows from the angles by hand; nothing in a state tells its goal."""
    state, goal = np.asarray(starts.info["state"]), np.asarray(starts.info["goal"])
    shoulder, elbow = state[:, 0], state[:, 1]
    assert 0.09 < np.abs(state[:, :2]).max() <= 0.1
    assert (state[:, 2:4] == 0).all()
    tip = UPPER_M * direction(shoulder) + FOREARM_M * direction(shoulder + elbow)
    np.testing.assert_allclose(state[:, 4:], tip, atol=1e-6)
    np.testing.assert_array_equal(arm.achieved_goal(starts.info["state"]), state[:, 4:])
    assert (goal >= [0.2, -0.35]).all()
    assert (goal <= [0.4, 0.35]).all()
    assert goal.std(axis=0) == pytest.approx([0.2 / 12**0.5, 0.7 / 12**0.5], rel=0.1)
    assert np.abs(np.corrcoef(state[:, :2], goal, rowvar=False)[:2, 2:]).max() < 0.25


def direction(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def test_physics_agrees_with_mujoco_c(arm: MjcfEnv, starts) -> None:
    """Position, velocity and fingertip one control step after every moment of a rollout that comes to its limits.

    MuJoCo itself leaves the site where it was before the last physics step; there it is 1 cm off at full speed.
    """
    random = np.random.default_rng(0)
    data, stale = mujoco.MjData(arm.model), 0.0
    actions = np.repeat(random.uniform(-1, 1, (STEPS // 40, 2)), 40, axis=0)
    actions[:80] = np.repeat([[1.0, -1.0], [-1.0, 1.0]], 40, axis=0)
    truth, limited = [], np.zeros(STEPS, bool)
    before_step: dict[str, list[np.ndarray]] = {"qpos": [], "qvel": [], "qacc_warmstart": []}
    for index, action in enumerate(actions):
        for field, column in before_step.items():
            column.append(getattr(data, field).copy())
        data.ctrl[:] = 0.5 * action
        for _ in range(2):
            mujoco.mj_step(arm.model, data)
        limited[index] = data.nefc > 0
        before = data.site("fingertip").xpos[:2].copy()
        mujoco.mj_kinematics(arm.model, data)
        tip = data.site("fingertip").xpos[:2].copy()
        stale = max(stale, np.abs(tip - before).max())
        truth.append(np.concatenate([data.qpos, data.qvel, tip]))
    arrays = {field: jnp.asarray(np.array(column), jnp.float32) for field, column in before_step.items()}
    robots = starts.replace(pipeline_state=starts.pipeline_state.replace(**arrays))
    after = jax.jit(jax.vmap(arm.step))(robots, jnp.asarray(actions, jnp.float32))
    error = np.abs(np.asarray(after.info["state"]) - np.array(truth))
    angle, rest = error[:, :2].max(axis=1), error[:, 2:].max(axis=1)
    assert limited.sum() > 10
    assert stale > 5e-3
    assert angle.max() < 1e-5
    assert rest[~limited].max() < 1e-5
    assert rest.max() < 1e-3  # a limit is as stiff as its solver is exact


def test_every_kind_of_joint_and_actuator(tmp_path: Path) -> None:
    """A model of a free, a ball, a slide and a hinge joint: what the state is, from where MuJoCo's C engine has it."""
    file = tmp_path / "every.xml"
    file.write_text(EVERY_JOINT)
    sites = Box(low=(-1,) * 4, high=(1,) * 4)
    changes = {"goal_sites": ("tip", "top"), "goal_axes": "zx", "goals": sites, "control_period_s": 0.002}
    env = two_link(file, joints=None, keyframe="tilted", start_noise=0.05, **changes)
    assert env.spec.state_names == (
        *("base x [m]", "base y [m]", "base z [m]"),
        *(f"base quaternion {part}" for part in "wxyz"),
        *(f"ball quaternion {part}" for part in "wxyz"),
        *("rail [m]", "hinge [rad]", "base vx [m/s]", "base vy [m/s]", "base vz [m/s]"),
        *("base wx [rad/s]", "base wy [rad/s]", "base wz [rad/s]", "ball wx [rad/s]", "ball wy [rad/s]"),
        *("ball wz [rad/s]", "rail rate [m/s]", "hinge rate [rad/s]"),
        *("tip z [m]", "tip x [m]", "top z [m]", "top x [m]"),
    )
    assert env.spec.action_names == ("rail [m]", "spin [rad/s]", "geared", "actuator 3 [N]")
    assert (env.action_low[3], env.action_high[3]) == (-3.0, 4.0)

    qpos, qvel = env.sample_start(jax.random.key(1))
    tilted = np.array([0, 0, 2, 0.8, 0.6, 0, 0, 1, 0, 0, 0, 0.1, 0.2])
    assert 0.02 < np.abs(qpos - tilted).max() <= 0.1
    assert jnp.linalg.norm(qpos[3:7]) == pytest.approx(1, abs=1e-6)
    assert jnp.linalg.norm(qpos[7:11]) == pytest.approx(1, abs=1e-6)
    assert not qvel.any()

    data = mujoco.MjData(env.model)
    data.qpos[:], data.qvel[:] = qpos, np.arange(11) / 10
    mujoco.mj_kinematics(env.model, data)
    senses = jax.jit(lambda qpos, qvel: env.sense(fresh(env).replace(qpos=qpos, qvel=qvel)))
    sites = [data.site(site).xpos[axis] for site in ("tip", "top") for axis in (2, 0)]
    truth = np.concatenate([data.qpos, data.qvel, sites])
    np.testing.assert_allclose(senses(qpos, jnp.asarray(data.qvel)), truth, atol=1e-6)

    some = two_link(file, joints=("hinge", "base"), **(changes | {"goal_axes": "x", "goals": lambda _: jnp.ones(2)}))
    assert some.spec.state_names[:8] == ("hinge [rad]", *env.spec.state_names[:7])
    np.testing.assert_array_equal(
        some.sample_start(jax.random.key(0))[0][7:12], [1, 0, 0, 0, 0]
    )  # not among the chosen
    np.testing.assert_array_equal(some.sample_goal(jax.random.key(0)), [1, 1])


def fresh(env: MjcfEnv):
    return mujoco.mjx.make_data(env.model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, where MuJoCo notes down that a file holds a nan."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


KEYFRAME = '<keyframe><key name="home" qpos="0 nan"/></keyframe><actuator>'


MOCAP = '<body name="hand" mocap="true"><site name="mark"/><body><site name="nail"/></body></body>'
SHOULDER = """<motor name="shoulder" joint="shoulder"/>
    <motor name="elbow" """


@pytest.mark.parametrize(
    ("old", "new", "env_spec", "message"),
    [
        ("</mujoco>", "", {}, "MuJoCo cannot load it: XML parse error .*XML_ERROR_PARSING .*Line number=1$"),
        ("<motor name", "<moter name", {}, "MuJoCo cannot load it: .*unrecognized element Element 'moter', line"),
        ('joint="elbow"', 'joint="wrist"', {}, "MuJoCo cannot load it: .*unknown .*'wrist'"),
        ("", "", {"joints": ("shoulder", "elbw")}, "no joint 'elbw'; known, nearest first: elbow, shoulder$"),
        ("", "", {"joints": ()}, "name one joint or more; known: shoulder, elbow$"),
        ("", "", {"joints": ("elbow", "elbow")}, "a joint is named twice: elbow, elbow"),
        ("", "", {"goal_sites": ("fingertip", "tip")}, "no site 'tip'; known, nearest first: fingertip$"),
        ('name="fingertip"', "", {}, "no site 'fingertip'; known, nearest first: none with a name"),
        ("<worldbody>", '<worldbody><site name="mark"/>', {"goal_sites": "mark"}, "site 'mark' is fixed to the world"),
        ("", "", {"goal_axes": "xw"}, "goal_axes must be some of xyz, each once, got 'xw'"),
        ("", "", {"keyframe": "home"}, "no keyframe 'home'; known, nearest first: none with a name"),
        ("<actuator>", KEYFRAME, {"keyframe": "home"}, r"joint 'elbow' starts at \[nan\] in keyframe 'home'"),
        (
            'name="elbow" range',
            'name="elbow" ref="nan" range',
            {},
            r"joint 'elbow' starts at \[nan\] in the positions of the bodies",
        ),
        ('pos="0.25 0 0"', 'pos="nan 0 0"', {}, r"site 'fingertip' is at \[nan nan nan\] at the start"),
        (
            'name="elbow" range',
            'name="elbow" damping="nan" range',
            {},
            "joint 'elbow' starts with a force that is not finite",
        ),
        ('<motor ctrlrange="-0.5 0.5"/>', "", {}, "actuator 'shoulder' has no limits; give it a ctrlrange"),
        ('-0.5 0.5"', '-inf 0.5"', {}, "actuator 'shoulder' has no limits"),
        (
            "",
            "",
            {"control_period_s": 0.05},
            "control_period_s must be a multiple of the timestep, 0.02 s, got 0.05; try 0.04 or 0.06",
        ),
        (
            "",
            "",
            {"control_period_s": 40},
            "control_period_s is in seconds, and 40 is 2,000 timesteps of 0.02 s; try 0.2$",
        ),
        ("", "", {"control_period_s": 0.01}, "a multiple of the timestep, 0.02 s, got 0.01; try 0.02 or 0.04"),
        ("", "", {"control_period_s": -0.04}, "control_period_s must be a number above 0, got -0.04; try 0.04$"),
        (
            "",
            "",
            {"goal_axes": "xyz"},
            r"goals must draw an array of shape \[3\] \(fingertip x .*; sites: 1, axes: xyz\), got \[2\]",
        ),
        (
            "<worldbody>",
            f"<worldbody>{MOCAP}",
            {"goal_sites": "mark"},
            "site 'mark' is on a mocap body, which physics does not move",
        ),
        (
            "<worldbody>",
            f"<worldbody>{MOCAP}",
            {"goal_sites": "nail"},
            "site 'nail' is on a mocap body, which physics does not move",
        ),
        (
            "<actuator>",
            KEYFRAME.replace("nan", "3"),
            {"keyframe": "home"},
            "joint 'elbow' starts at 3 in keyframe 'home', outside its range -2.618 to 2.618; start it inside",
        ),
        (
            'range="-150 150"',
            'range="30 150"',
            {},
            "joint 'elbow' starts at 0 in the positions of the bodies, outside its",
        ),
        (SHOULDER, SHOULDER.replace('name="shoulder" ', "").replace("elbow", "actuator 0", 1), {}, "must not repeat"),
        (
            '"fingertip"',
            '"finger&#9;tip"',
            {"goal_sites": "finger\ttip"},
            "state_names .* none of them blank, got ",
        ),
        ("<option", '<option integrator="implicit"', {}, "MuJoCo MJX cannot simulate it: .*IMPLICIT$"),
    ],
)
def test_what_a_file_contradicts_is_named(
    folder: Path, old: str, new: str, env_spec: dict[str, object], message: str
) -> None:
    text, file = ARM.read_text(), folder / "arm.xml"
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(EnvError, match=message) as raised:
        two_link(file, **env_spec)
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


def test_a_keyframe_may_be_rounded(tmp_path: Path) -> None:
    """Limits are soft: an elbow of 2.65 rad is 0.03 beyond its range of 150 degrees either way."""
    file = tmp_path / "arm.xml"
    file.write_text(ARM.read_text().replace("<actuator>", KEYFRAME.replace("nan", "2.65")))
    assert two_link(file, keyframe="home", start_noise=0).sample_start(jax.random.key(0))[0][1] == pytest.approx(2.65)


def test_noise_stays_within_limits(tmp_path: Path) -> None:
    """From an elbow at its end, 0 of 0 to 0.6 degrees, noise of 1 rad goes one way, and not beyond 0.0105 rad."""
    file = tmp_path / "arm.xml"
    file.write_text(ARM.read_text().replace('range="-150 150"', 'range="0 0.6"'))
    keys = jax.random.split(jax.random.key(0), 200)
    shoulder, elbow = np.asarray(jax.vmap(two_link(file, start_noise=1.0).sample_start)(keys)[0]).T
    assert -1 <= shoulder.min() < -0.95
    assert 0.95 < shoulder.max() <= 1
    assert 0 <= elbow.min() < 0.001
    assert 0.01 < elbow.max() <= np.radians(0.6) + 1e-6


@pytest.mark.parametrize(
    ("axes", "goal", "place"),
    [("xy", [1, 2], [1, 2, 0]), ("xz", [1, 2], [1, 0, 2]), ("y", [3], [0.55, 3, 0]), ("zx", [1, 2], [2, 0, 1])],
)
def test_a_goal_is_marked_along_its_own_axes(axes: str, goal: list[float], place: list[float]) -> None:
    """Along the others, where the fingertip starts, at (0.3 + 0.25, 0, 0)."""
    env = two_link(goal_axes=axes, goals=Box(low=(0.1,) * len(axes), high=(0.3,) * len(axes)))
    np.testing.assert_allclose(env.marker(np.array(goal)), place, atol=1e-12)


def test_of_several_sites_the_goal_of_the_first_is_marked(tmp_path: Path) -> None:
    file = tmp_path / "arm.xml"
    file.write_text(ARM.read_text().replace("<site", '<site name="wrist"/><site'))
    env = two_link(file, goal_sites=("fingertip", "wrist"), goals=Box(low=(0.1,) * 4, high=(0.3,) * 4))
    np.testing.assert_allclose(env.marker(np.array([1, 2, 3, 4])), [1, 2, 0], atol=1e-12)


def test_a_robot_without_actuators_or_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "arm.xml"
    file.write_text(re.sub("<actuator>.*</actuator>", "", ARM.read_text(), flags=re.DOTALL))
    with pytest.raises(EnvError, match=r"arm\.xml: there is no actuator"):
        two_link(file)
    with pytest.raises(EnvError, match=r"/lost\.xml: no such file; .*with_name\('lost\.xml'\)"):
        two_link(tmp_path / "lost.xml")


@pytest.mark.parametrize(
    "corners", [((0, 1), (1, 0)), ((0,), (1, 1)), ((0, float("nan")), (1, 1)), (0.1, 0.2), ("ab", "cd"), (None, (1, 1))]
)
def test_a_box_whose_corners_are_none_is_refused(corners) -> None:
    with pytest.raises(EnvError, match="goals: low and high must be finite, of one length, and low not above high"):
        Box(low=corners[0], high=corners[1])


def test_a_goal_along_one_axis_is_drawn_too(tmp_path: Path) -> None:
    env = two_link(goal_axes="y", goals=Box(low=(0.1,), high=(0.3,)))
    assert env.spec.state_names[4:] == env.spec.goal_names == ("fingertip y [m]",)
    path, goal = np.linspace(0, 0.2, 5)[:, None], np.array([0.2])
    episodes = [fleet.Episode(goal, path, time_at_goal=touched, stay=touched, ticks=(), missed=0) for touched in (0, 1)]
    assert summary.draw_paths(env, episodes, tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
