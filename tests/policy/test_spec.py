"""PolicySpec: what it refuses and how it says so, and its way through JSON."""

import dataclasses
import json
import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.spec import PolicySpec, SpecError, check_depth

SEEN = {"seen_mean": (0.0,) * 3, "seen_std": (1.0,) * 3, "seen_low": (-2.0,) * 3, "seen_high": (2.0,) * 3}
PLAIN = string.ascii_letters + string.digits


def replaced(spec: PolicySpec, **changes: Any) -> PolicySpec:
    return dataclasses.replace(spec, **changes)


def test_sizes_are_those_of_the_names(spec: PolicySpec) -> None:
    assert (spec.state_dim, spec.goal_dim, spec.action_dim) == (3, 2, 2)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("name", "", "name must be 1 to 64 letters, digits, - _ or ., with a letter or a digit, got ''"),
        ("name", "a/b", "got 'a/b'"),
        ("name", "..", "got '..'"),
        ("name", "a b", "got 'a b'"),
        ("name", "a\nb", r"got 'a\nb'"),
        ("name", "naïve", "got 'naïve'"),
        ("name", "n" * 65, "got 'nnnn"),
        ("environment", "-", "environment must be 1 to 64 letters"),
        ("state_names", (), "state_names must be one name or more"),
        ("state_names", ("x", " "), "none of them blank, got ('x', ' ')"),
        ("goal_names", ("x", "y\x1b[31m"), "goal_names must be one name or more"),
        ("goal_names", ("x", "x"), "goal_names must not repeat a name, got ('x', 'x')"),
        ("action_names", (), "action_names must be one name or more"),
        (
            "action_low",
            (-1.0,),
            "action_low must be 2 finite numbers, one per action name, of at most 1e+38, got",
        ),
        ("action_low", (-1.0, float("-inf")), "action_low must be 2 finite numbers"),
        (
            "action_low",
            (-1e39, -1.0),
            "action_low must be 2 finite numbers, one per action name, of at most 1e+38, got",
        ),
        ("action_high", (1.0, float("nan")), "action_high must be 2 finite numbers"),
        ("action_high", (1.0, 1.0, 1.0), "action_high must be 2 finite numbers, one per action name"),
        ("action_high", (-2.0, 3.0), "action_low must be below action_high, got (-2.0, -3.0) and (-2.0, 3.0)"),
        ("control_period_s", 0.0, "control_period_s must be a positive number, got 0.0"),
        ("control_period_s", float("inf"), "control_period_s must be a positive number, got inf"),
        ("success_radius", -0.5, "success_radius must be a positive number, got -0.5"),
        ("success_radius", float("nan"), "success_radius must be a positive number, got nan"),
        ("actor_depth", 6, "actor_depth must be a positive multiple of 4, got 6; try 4 or 8"),
        ("critic_depth", 1026, "critic_depth must be a positive multiple of 4, got 1026; try 1024 or 1028"),
        ("actor_width", 0, "actor_width must be 1 or more, got 0"),
        ("critic_width", -8, "critic_width must be 1 or more, got -8"),
        ("representation_dim", 0, "representation_dim must be 1 or more, got 0"),
        ("actuator_kind", ("torque",), "actuator_kind must be 2 words, one per action name, got ('torque',)"),
        (
            "actuator_kind",
            ("torque", "motor"),
            "actuator_kind must be one of position, velocity, torque, other, got 'm",
        ),
        ("action_meaning", ("absolute",) * 3, "action_meaning must be 2 words"),
        ("action_meaning", ("delta", "absolute"), "action_meaning must be one of absolute, increment, got 'delta'"),
        ("rest_action", (0.0,), "rest_action must be 2 numbers from -1 to 1, one per action name, got (0.0,)"),
        ("rest_action", (0.0, 1.1), "rest_action must be 2 numbers from -1 to 1"),
        ("rest_action", (float("nan"), 0.0), "rest_action must be 2 numbers from -1 to 1"),
        ("max_action_change", (0.1,), "max_action_change must be empty, or 2 numbers above 0 and at most 2"),
        ("max_action_change", (0.1, 0.0), "max_action_change must be empty, or 2 numbers above 0"),
        ("max_action_change", (0.1, 2.1), "max_action_change must be empty, or 2 numbers above 0"),
        ("max_action_change", (0.1, float("nan")), "max_action_change must be empty, or 2 numbers above 0"),
        ("action_chunk", 0, "action_chunk must be 1 or more, got 0"),
        ("critic", "value", "critic must be one of energy, none, got 'value'"),
        ("critic", "none", "critic_depth must be 0 for a policy without a critic, got 8"),
        ("normalize_observations", True, "normalize_observations needs normalization_mean and normalization_std"),
        ("normalization_mean", (0.0,) * 3, "normalization_mean, normalization_std must be all empty, or none of them"),
        (
            "normalization_mean",
            (0.0,) * 2,
            "normalization_mean must be empty or 3 finite numbers of float32",
        ),
        ("seen_low", (0.0, 0.0, -1e308), "seen_low must be empty or 3 finite numbers of float32, one per state name"),
        ("seen_std", (0.0, 0.0, float("nan")), "seen_std must be empty or 3 finite numbers of float32"),
        ("seen_high", (0.0, 0.0, float("inf")), "seen_high must be empty or 3 finite numbers"),
        ("seen_low", (0.0,) * 3, "seen_mean, seen_std, seen_low, seen_high must be all empty, or none of them"),
        ("state_quaternions", (0,), "state_quaternions must be indices of blocks of 4 values that fit into 3 values"),
        ("goal_quaternions", (-1,), "goal_quaternions must be indices of blocks of 4 values that fit into 2 values"),
    ],
)
def test_a_field_out_of_range_is_named(spec: PolicySpec, field: str, value: Any, complaint: str) -> None:
    with pytest.raises(SpecError, match=re.escape(complaint)):
        replaced(spec, **{field: value})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"normalization_mean": (0.0,) * 3, "normalization_std": (1.0, 1e-31, 1.0)},
            "std must be 1e-30 or more",
        ),
        (SEEN | {"seen_std": (1.0, -1.0, 1.0)}, "seen_std must be 0 or more"),
        (SEEN | {"seen_low": (3.0,) * 3}, "seen_low must not be above seen_high"),
    ],
)
def test_statistics_that_contradict_each_other_are_refused(
    spec: PolicySpec, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SpecError, match=complaint):
        replaced(spec, **changes)


def test_a_policy_without_a_critic_has_no_sizes_of_one(spec: PolicySpec) -> None:
    without = replaced(spec, critic="none", critic_depth=0, critic_width=0, representation_dim=0)
    assert (spec.has_critic, without.has_critic) == (True, False)


@pytest.mark.parametrize("starts", [(0, 4), (1, 5), (2, 6)])
def test_quaternions_may_lie_side_by_side(spec: PolicySpec, starts: tuple[int, ...]) -> None:
    names = tuple("abcdefghij")
    assert replaced(spec, state_names=names, state_quaternions=starts).state_quaternions == starts
    for wrong in ((0, 3), (4, 0), (7,), (-1, 4)):
        with pytest.raises(SpecError, match="do not overlap"):
            replaced(spec, state_names=names, state_quaternions=wrong)


@pytest.mark.parametrize(
    ("low", "high", "rest"),
    [(-2.0, 2.0, 0.0), (-1.0, 3.0, -0.5), (0.5, 1.0, -1.0), (-4.0, -2.0, 1.0), (0.0, 255.0, -1.0)],
)
def test_a_robot_rests_at_zero_within_its_limits_unless_told_otherwise(
    spec: PolicySpec, low: float, high: float, rest: float
) -> None:
    unsaid = replaced(spec, action_low=(low, -1.0), action_high=(high, 1.0), rest_action=())
    assert unsaid.rest_action == (rest, 0.0)
    assert replaced(spec, rest_action=(0.25, 1.0)).rest_action == (0.25, 1.0)


def test_what_is_not_said_of_actions_has_a_plain_meaning(spec: PolicySpec) -> None:
    assert (spec.actuator_kind, spec.action_meaning) == (("other",) * 2, ("absolute",) * 2)
    assert (spec.max_action_change, spec.action_chunk, spec.critic) == ((), 1, "energy")
    assert replaced(spec, action_chunk=3).chunk_dim == 6


INTERFACE_CHANGES: list[dict[str, Any]] = [
    {"state_names": ("x [m]", "y [m]", "v [cm/s]")},
    {"goal_names": ("x [m]", "z [m]")},
    {"action_names": ("fx [N]", "fz [N]")},
    {"action_low": (-2.5, -3.0)},
    {"action_high": (2.0, 4.0)},
    {"control_period_s": 0.1},
    {"success_radius": 0.25},
    {"actuator_kind": ("torque", "torque")},
    {"rest_action": (0.5, 0.5)},
    {"action_meaning": ("absolute", "increment")},
    {"max_action_change": (0.5, 0.5)},
    {"action_chunk": 2},
]


@pytest.mark.parametrize("change", INTERFACE_CHANGES, ids=lambda change: next(iter(change)))
def test_a_change_that_a_robot_would_notice_is_named(spec: PolicySpec, change: dict[str, Any]) -> None:
    (field,) = change
    other = replaced(spec, **change)
    assert not spec.same_interface(other)
    assert (
        spec.interface_difference(other) == f"{field} is {getattr(other, field)!r} instead of {getattr(spec, field)!r}"
    )


def test_sizes_quaternions_and_the_critic_belong_to_the_interface(spec: PolicySpec) -> None:
    longer = replaced(spec, state_names=tuple("abcde"))
    turned = replaced(longer, state_quaternions=(1,))
    without = replaced(spec, critic="none", critic_depth=0, critic_width=0, representation_dim=0)
    assert spec.interface_difference(longer) == "state_dim is 5 instead of 3"
    assert longer.interface_difference(turned) == "state_quaternions is (1,) instead of ()"
    assert spec.interface_difference(without) == "has_critic is False instead of True"


def test_depth_width_and_statistics_do_not_belong_to_the_interface(spec: PolicySpec) -> None:
    other = replaced(spec, actor_depth=64, actor_width=256, critic_depth=4, energy="dot", name="other", **SEEN)
    assert spec.same_interface(other)
    assert spec.interface_difference(other) == ""


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [(-4, "4"), (0, "4"), (1, "4"), (3, "4"), (5, "4 or 8"), (6, "4 or 8"), (1026, "1024 or 1028")],
)
def test_a_depth_between_blocks_names_its_nearest(depth: int, nearest: str) -> None:
    with pytest.raises(SpecError, match=f"got {depth}; try {nearest}$"):
        check_depth(depth)


@pytest.mark.parametrize("depth", [4, 8, 1024])
def test_whole_blocks_are_a_depth(depth: int) -> None:
    assert check_depth(depth) == depth


def test_a_specification_cannot_change(spec: PolicySpec) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.actor_depth = 8  # type: ignore[misc]


def test_json_holds_the_fields_in_their_order(spec: PolicySpec) -> None:
    stored = json.loads(spec.to_json())
    assert list(stored) == [field.name for field in dataclasses.fields(spec)]
    assert stored["state_names"] == ["x [m]", "y [m]", "v [m/s]"]
    assert stored["action_low"] == [-2, -3]
    assert stored["control_period_s"] == 0.05


names = st.text(PLAIN, min_size=1, max_size=64)
labels = st.lists(
    st.text(max_size=10).filter(lambda label: bool(label.strip()) and label.isprintable()), min_size=1, unique=True
)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
sizes = st.integers(1, 2**40)


statistics = st.floats(-1e6, 1e6)


@st.composite
def specs(draw: st.DrawFn) -> PolicySpec:
    action_names = tuple(draw(labels))
    state_names = tuple(draw(labels))
    has_critic = draw(st.booleans())

    def per_action(values: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return draw(st.one_of(st.just(()), st.tuples(*[values] * len(action_names))))

    def per_state(values: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return draw(st.tuples(*[values] * len(state_names)))

    low = [draw(st.floats(-1e6, 1e6)) for _ in action_names]
    return PolicySpec(
        name=draw(names),
        environment=draw(names),
        state_names=state_names,
        goal_names=tuple(draw(labels)),
        action_names=action_names,
        action_low=tuple(low),
        action_high=tuple(limit + draw(st.floats(1, 1e6)) for limit in low),
        control_period_s=draw(positive),
        success_radius=draw(positive),
        actor_depth=4 * draw(sizes),
        actor_width=draw(sizes),
        critic_depth=4 * draw(sizes) if has_critic else 0,
        critic_width=draw(sizes) if has_critic else 0,
        representation_dim=draw(sizes) if has_critic else 0,
        critic="energy" if has_critic else "none",
        actuator_kind=per_action(st.sampled_from(["position", "velocity", "torque", "other"])),
        rest_action=per_action(st.floats(-1, 1)),
        action_meaning=per_action(st.sampled_from(["absolute", "increment"])),
        max_action_change=per_action(st.floats(0, 2, exclude_min=True)),
        action_chunk=draw(sizes),
        normalize_observations=draw(st.booleans()),
        normalization_mean=per_state(statistics),
        normalization_std=per_state(st.floats(1e-30, 1e6)),
        seen_mean=per_state(statistics),
        seen_std=per_state(st.floats(0, 1e6)),
        seen_low=per_state(st.floats(-1e6, 0)),
        seen_high=per_state(st.floats(0, 1e6)),
        state_quaternions=tuple(range(0, len(state_names) - 3, 4)),
        energy=draw(st.sampled_from(["l2", "l2_squared", "dot", "cosine"])),
        activation=draw(st.sampled_from(["swish", "relu"])),
        layer_norm=draw(st.booleans()),
        residual=draw(st.booleans()),
    )


@given(specs())
def test_json_and_back_is_the_same(any_spec: PolicySpec) -> None:
    assert PolicySpec.from_json(any_spec.to_json()) == any_spec


def test_an_integer_is_a_valid_float(spec: PolicySpec) -> None:
    stored = json.loads(spec.to_json()) | {"control_period_s": 1}
    again = PolicySpec.from_fields(stored)
    assert (again.control_period_s, type(again.control_period_s)) == (1.0, float)


FIELDS = dataclasses.fields(PolicySpec)
OPTIONAL = {field.name: field.default for field in FIELDS if field.default is not dataclasses.MISSING}


@pytest.mark.parametrize("field", [field.name for field in FIELDS if field.name not in OPTIONAL])
def test_a_missing_field_is_named(spec: PolicySpec, field: str) -> None:
    stored = json.loads(spec.to_json())
    del stored[field]
    with pytest.raises(SpecError, match=f"lacks {field}$"):
        PolicySpec.from_fields(stored)


def test_what_an_earlier_version_did_not_write_is_the_papers_choice(spec: PolicySpec) -> None:
    stored = {name: value for name, value in json.loads(spec.to_json()).items() if name not in OPTIONAL}
    assert PolicySpec.from_fields(stored) == spec
    paper = {"energy": "l2", "activation": "swish", "layer_norm": True, "residual": True}
    assert OPTIONAL | paper == OPTIONAL


def test_unknown_fields_are_named(spec: PolicySpec) -> None:
    stored = json.loads(spec.to_json()) | {"depth": 4, "color": "red"}
    with pytest.raises(SpecError, match="unknown fields: color, depth"):
        PolicySpec.from_fields(stored)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("name", 7, "name must be a string, got 7"),
        ("name", None, "name must be a string, got None"),
        ("actor_depth", 4.0, r"actor_depth must be an integer, got 4\.0"),
        ("actor_depth", "4", "actor_depth must be an integer, got '4'"),
        ("actor_width", True, "actor_width must be an integer, got True"),
        ("control_period_s", False, "control_period_s must be a number, got False"),
        ("control_period_s", "0.05", "control_period_s must be a number"),
        ("control_period_s", 10**400, "control_period_s must be a number that fits into a float"),
        ("control_period_s", float("nan"), "control_period_s must be a positive number, got nan"),
        ("state_names", "xyz", "state_names must be a list, got 'xyz'"),
        ("state_names", ["x", 1], "every entry of state_names must be a string, got 1"),
        ("state_names", [["x"]], "every entry of state_names must be a string, got "),
        ("action_low", [-1, None], "every entry of action_low must be a number, got None"),
        ("action_low", {"a": 1}, "action_low must be a list, got "),
        ("action_low", [-(10**400), -1], "every entry of action_low must be a number that fits into a float"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(spec: PolicySpec, field: str, value: Any, complaint: str) -> None:
    text = json.dumps(json.loads(spec.to_json()) | {field: value})
    with pytest.raises(SpecError, match=complaint):
        PolicySpec.from_json(text)


def test_a_complaint_stays_short(spec: PolicySpec) -> None:
    stored = json.loads(spec.to_json()) | {"actor_depth": "9" * 1_000_000}
    with pytest.raises(SpecError) as error:
        PolicySpec.from_fields(stored)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1, 2]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        pytest.param("[" * 100_000, "not JSON", id="nested too deep"),
        pytest.param("9" * 5000, "not JSON", id="number too long"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        PolicySpec.from_json(text)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats() | st.text()))
def test_any_other_object_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        PolicySpec.from_fields(stored)
