"""What an environment may say of itself before it runs."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.test_mjcf_env import ARM, two_link
from training.envs.core.env_spec import EnvSpec
from training.envs.core.errors import EnvError

SPEC = EnvSpec(
    name="cart",
    state_names=("x [m]", "vx [m/s]"),
    goal_names=("x [m]",),
    action_names=("force [N]",),
    success_radius=0.02,
    episode_length=6,
    source="cart.xml",
)


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        (
            "success_radius",
            (0, -1, math.nan, math.inf, "0.1", None, (0.1,), True),
            "success_radius must be a number above 0, got {}; try 0.1",
        ),
        (
            "episode_length",
            (0, -5, "100", None, 99.5, True, 2**31),
            "episode_length must be an integer above 0, got {}; try 100",
        ),
        (
            "state_names",
            ("x [m]", ["x"], (1, 2), None),
            "state_names must be a tuple of names such as ('x [m]', 'y [m]'), got {}",
        ),
        ("goal_names", ((), (" ",), ("x\n",)), "goal_names must be one name or more, none of them blank, got {}"),
        ("action_names", (("a", "b", "a"),), "action_names must not repeat a name, got {}"),
        ("name", (3, None), "name must be a string, got {}"),
        (
            "actuator_kind",
            (("torque", "torque"), ("torque",) * 3),
            "actuator_kind must have one entry for each of force [N], or none, got {}",
        ),
        ("actuator_kind", ("torque", ["torque"], (1,), None), "actuator_kind must be a tuple of words, got {}"),
        ("rest_action", ((True,), ("0",), 0.0), "rest_action must be a tuple of numbers, got {}"),
        (
            "max_action_change",
            ((0.1, 0.1),),
            "max_action_change must have one entry for each of force [N], or none, got {}",
        ),
        ("state_quaternions", ((0.0,), [0], 0, (True,)), "state_quaternions must be a tuple of indices, got {}"),
        (
            "goal_quaternions",
            ((0,),),
            "goal_quaternions must be indices of blocks of 4 values that fit into 1 values and do not overlap, in "
            "ascending order, got {}",
        ),
    ],
)
def test_a_fact_that_no_policy_could_carry_is_named(field: str, values: tuple[object, ...], message: str) -> None:
    for value in values:
        name = value if field == "name" else "cart"
        with pytest.raises(EnvError) as raised:
            dataclasses.replace(SPEC, **{field: value})
        assert str(raised.value) == f"cart.xml: {name}: {message.format(repr(value))}"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("actuator_kind", "motor", "must be one of position, velocity, torque, other, got 'motor'"),
        ("action_meaning", "delta", "must be one of absolute, increment, got 'delta'"),
        ("rest_action", 1.5, "must be from -1 to 1, got 1.5"),
        ("rest_action", math.nan, "must be from -1 to 1, got nan"),
        ("max_action_change", 0.0, "must be above 0 and at most 2, got 0.0"),
        ("max_action_change", 2.5, "must be above 0 and at most 2, got 2.5"),
    ],
)
def test_a_fact_of_an_action_that_is_not_possible_is_named_with_the_action(field: str, value, message: str) -> None:
    with pytest.raises(EnvError) as raised:
        dataclasses.replace(SPEC, **{field: (value,)})
    assert str(raised.value) == f"cart.xml: cart: {field} of 'force [N]' {message}"


def test_numbers_of_numpy_become_plain_ones() -> None:
    numbers = {"success_radius": np.float32(0.25), "episode_length": np.int64(7), "rest_action": (np.float32(0.5),)}
    env_spec = dataclasses.replace(SPEC, **numbers, max_action_change=(2,))
    plain = [env_spec.success_radius, env_spec.episode_length, env_spec.rest_action, env_spec.max_action_change]
    assert json.dumps(plain) == "[0.25, 7, [0.5], [2.0]]"
    quaternion = dataclasses.replace(SPEC, state_names=("w", "x", "y", "z"), state_quaternions=(np.int64(0),))
    assert json.dumps(quaternion.state_quaternions) == "[0]"


BOX = r"Box\(low=\(0.0, 0.0\), high=\(0.1, 0.1\)\)"


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"success_radius": 0}, "two_link: success_radius must be a number above 0, got 0; try 0.1"),
        ({"episode_length": "x"}, "two_link: episode_length must be an integer above 0, got 'x'; try 100"),
        ({"start_noise": -0.1}, "start_noise must be a number, 0 or more, got -0.1; try 0.1"),
        ({"start_noise": (0.1, 0.1)}, r"start_noise must be a number, 0 or more, got \(0.1, 0.1\); try 0.1"),
        ({"start_noise": "0.1"}, "start_noise must be a number, 0 or more, got '0.1'; try 0.1"),
        ({"control_period_s": "0.04"}, "control_period_s must be a number above 0, got '0.04'; try 0.04"),
        ({"joints": (0, 1)}, "the name of a joint must be a string, got 0; known: shoulder, elbow"),
        ({"joints": 0}, "the name of a joint must be a string, got 0; known: shoulder, elbow"),
        ({"goal_sites": None}, "the name of a site must be a string, got None; known: fingertip"),
        ({"goal_axes": 2}, "goal_axes must be a string, got 2"),
        ({"keyframe": 0}, "keyframe must be a string, got 0"),
        ({"goals": None}, f"goals must be a function of a random key, such as {BOX}, got None"),
        ({"goals": (0.3, 0.1)}, rf"goals must be a function of a random key, such as {BOX}, got \(0.3, 0.1\)"),
        ({"goals": lambda _: (0.3, 0.1)}, f"goals must draw an array of floats, as {BOX} does, got a tuple"),
        (
            {"goals": lambda _: jnp.ones(2, int)},
            f"goals must draw an array of floats, as {BOX} does, got an array of int32",
        ),
        (
            {"goals": lambda _: 1 / 0},
            r"drawing from goals failed: ZeroDivisionError at .*/test_env_spec.py:\d+: .*",
        ),
    ],
)
def test_what_a_fact_cannot_be_is_named_with_what_it_could(fact: dict[str, object], message: str) -> None:
    with pytest.raises(EnvError, match=f"^{ARM}: {message}$"):
        two_link(**fact)
