"""Which states are out of the range that training saw. Bounds are worked out by hand."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from policy.quaternions import canonical_signs
from serving.engine.engine import Kind
from serving.policies.seen_range import SeenRange
from tests.processor_time import in_comparisons
from tests.samples import policy_spec

SEEN: dict[str, Any] = {
    "seen_mean": (0.0, 0.5, 7.0, 0.0),
    "seen_std": (0.25, 0.1, 0.0, 2.0),
    "seen_low": (-1.0, 0.1, 7.0, -3.0),
    "seen_high": (2.0, 0.9, 7.0, 3.0),
}
# 5 standard deviations beyond, and 0.001 for the value that was always 7
LOW, HIGH = (-2.25, -0.4, 6.999, -13.0), (3.25, 1.4, 7.001, 13.0)
MIDDLE = (0.5, 0.5, 7.0, 0.0)
SPEC = policy_spec(**SEEN)
FAR = [99, 0.5, 7, 0, 1, 1]  # state and goal
NEAR = [*MIDDLE, 1, 1]
LARGE_GOAL = [*MIDDLE, 1, -2e6]


def rows(*states: Any) -> np.ndarray:
    return np.array(states, np.float32)


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize(("bounds", "outwards"), [(LOW, -np.inf), (HIGH, np.inf)])
def test_a_value_is_in_range_up_to_its_bound_and_no_further(
    column: int, bounds: tuple[float, ...], outwards: float
) -> None:
    seen = SeenRange(SPEC)
    bound, state = bounds[column], rows(MIDDLE)
    nearest = np.float32(bound)
    within = abs(float(nearest) - MIDDLE[column]) <= abs(bound - MIDDLE[column])
    last = nearest if within else np.nextafter(nearest, np.float32(-outwards))  # the last float32 that is in range
    state[0, column] = last
    assert seen.contains(state)
    state[0, column] = np.nextafter(last, np.float32(outwards))
    assert not seen.contains(state)
    assert not seen.contains(np.concatenate([rows(MIDDLE, MIDDLE), state]))


def test_bounds_that_a_float32_can_hold_are_in_range_themselves() -> None:
    seen = SeenRange(SPEC)
    assert seen.contains(rows([-2.25, 0.5, 7, -13], [3.25, 0.5, 7, 13]))
    assert not seen.contains(rows([-2.2500002, 0.5, 7, 0]))


def test_a_value_that_varied_only_by_rounding_has_the_tolerance_of_a_constant() -> None:
    seen = SeenRange(
        policy_spec(**SEEN | {"seen_std": (0.25, 0.1, 1e-7, 2.0), "seen_high": (2.0, 0.9, 7.0000005, 3.0)})
    )
    assert seen.contains(rows([0, 0.5, 7.001, 0]))
    assert not seen.contains(rows([0, 0.5, 7.002, 0]))


def test_a_value_that_varied_little_has_5_deviations_and_no_more() -> None:
    tiny = {"seen_mean": (0.0,) * 4, "seen_std": (1e-5,) * 4, "seen_low": (-1e-4,) * 4, "seen_high": (1e-4,) * 4}
    seen = SeenRange(policy_spec(**tiny))
    assert seen.contains(rows([1.4e-4] * 4))
    assert not seen.contains(rows([1.6e-4] * 4))  # the bound is 1.5e-4, although 0.001 is larger


def test_without_statistics_every_state_is_in_range() -> None:
    assert SeenRange(policy_spec()).contains(rows([3e38] * 4))


def test_bounds_beyond_every_float32_admit_everything() -> None:
    wide = {"seen_mean": (0.0,) * 4, "seen_std": (3e38,) * 4, "seen_low": (-3e38,) * 4, "seen_high": (3e38,) * 4}
    largest = float(np.finfo(np.float32).max)
    assert SeenRange(policy_spec(**wide)).contains(rows([largest] * 4, [-largest] * 4))


def test_a_quaternion_and_its_negative_are_in_range_together() -> None:
    """Training counts each quaternion with its first value that is not 0 positive."""
    turned = math.sqrt(0.5)
    spec = policy_spec(
        state_names=("x [m]", "qw [1]", "qx [1]", "qy [1]", "qz [1]"),
        state_quaternions=(1,),
        seen_mean=(0.0, 0.9, 0.2, 0.0, 0.0),
        seen_std=(1.0, 0.02, 0.02, 0.0, 0.0),
        seen_low=(-1.0, 0.8, 0.1, 0.0, 0.0),
        seen_high=(1.0, 1.0, 0.3, 0.0, 0.0),
    )
    seen = SeenRange(spec)
    assert seen.contains(rows([0, 0.9, 0.2, 0, 0], [0, -0.9, -0.2, 0, 0], [-2, -0.9, -0.2, 0, 0]))
    assert not seen.contains(rows([0, 0.9, -0.2, 0, 0]))
    assert not seen.contains(rows([0, -0.9, 0.2, 0, 0]))
    assert not seen.contains(rows([0, turned, turned, 0, 0]))
    assert not seen.contains(rows([0, -turned, -turned, 0, 0]))
    upside_down = dataclasses.replace(spec, seen_low=(-1.0, 0.0, 0.1, 0.0, 0.0), seen_high=(1.0, 0.0, 1.0, 0.0, 0.0))
    assert SeenRange(upside_down).contains(rows([0, 0, 1, 0, 0], [0, 0, -1, 0, 0]))  # w is 0, so x decides
    assert not SeenRange(upside_down).contains(rows([0, 0, -1, 0, 0], [0, 0, 0.5, 0, -1]))
    assert SeenRange(upside_down).contains(rows([0, 0, -1, 0, 0], [0, -0.05, -1, 0, 0]))


def test_the_signs_of_quaternions_are_those_of_the_policy() -> None:
    """States on the bounds of a narrow range are in range exactly if the policy's own signs put them there."""
    random = np.random.default_rng(0)
    low, high = (-1.0, *(-0.3,) * 4, *(-0.2,) * 4), (1.0, 1.0, *(0.5,) * 3, 1.0, *(0.6,) * 3)
    names = ("x [m]", *(f"{part} [1]" for part in ("aw", "ax", "ay", "az", "bw", "bx", "by", "bz")))
    spec = policy_spec(
        state_names=names, state_quaternions=(1, 5), seen_mean=low, seen_std=(0.01,) * 9, seen_low=low, seen_high=high
    )
    state = random.uniform(-0.6, 0.6, size=(400, 9)).astype(np.float32)
    state[::3, 1] = 0
    state[::5, 5:7] = 0
    canonical = np.asarray(canonical_signs(jnp.asarray(state), (1, 5)), np.float64)
    expected = ((canonical >= np.array(low) - 0.05) & (canonical <= np.array(high) + 0.05)).all(axis=1)
    assert 50 < expected.sum() < 350
    found = [SeenRange(spec).contains(row[None]) for row in state]
    assert found == expected.tolist()
    assert SeenRange(spec).contains(state[expected])


def test_the_complaint_names_the_first_value_and_its_bounds() -> None:
    assert SeenRange(SPEC).complaint(rows(MIDDLE, [0, 9.5, 7, 99])) == (
        "y [m] of row 1 (the first is 0) is 9.5; the range that training saw, with 5 standard deviations on each side,"
        " is -0.4 to 1.4"
    )


@pytest.mark.parametrize(("kind", "extra"), [(Kind.ACT, []), (Kind.SAMPLE, [math.nan] * 4), (Kind.BEST_OF, [3e38] * 4)])
def test_rows_are_to_blame_only_if_each_of_them_is_unusual(kind: Kind, extra: list[float]) -> None:
    def explains(*inputs: list[float]) -> bool:
        return SeenRange(SPEC).explains(kind, rows(*([*row, *extra] for row in inputs)))

    assert explains(FAR)
    assert explains(LARGE_GOAL)
    assert explains(FAR, LARGE_GOAL)
    assert not explains(NEAR)
    assert not explains(FAR, NEAR)
    assert not explains([*MIDDLE, -1e6, 1e6])


def test_the_goal_of_a_score_stands_behind_its_action() -> None:
    seen = SeenRange(SPEC)
    assert seen.explains(Kind.SCORE, rows([*MIDDLE, 1, -1, 1, 2e6]))
    assert not seen.explains(Kind.SCORE, rows([*MIDDLE, 1, -1, 1, 1]))


def test_without_statistics_only_implausible_values_are_to_blame() -> None:
    seen = SeenRange(policy_spec())
    assert seen.explains(Kind.ACT, rows([0, 2e6, 0, 0, 1, 1]))
    assert not seen.explains(Kind.ACT, rows([0, 1e6, 0, 0, 1, 1]))


def test_the_check_of_one_row_costs_little() -> None:
    """A call costs the server about 150 us. The limit is about twenty times what it needs."""
    seen, row = SeenRange(SPEC), rows(MIDDLE)
    assert in_comparisons(lambda: seen.contains(row)) < 20


def test_the_complaint_tells_a_value_just_beyond_a_bound_from_the_bound() -> None:
    beyond = 1.4 + 2**-23  # the float32 after the one nearest to 1.4, of which the bound is 1.4 to six digits
    complaint = SeenRange(SPEC).complaint(rows([0, beyond, 7, 99]))
    assert complaint.startswith("y [m] of row 0 (the first is 0) is 1.4000001; the range")
    assert complaint.endswith("-0.4 to 1.4")
