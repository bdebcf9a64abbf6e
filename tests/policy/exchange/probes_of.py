"""Random policies of any specification, and what their graphs must give."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from policy import acting
from policy.bundle import PROBE_SEED, Probes, probes
from policy.networks import Network, PolicyParams, init_policy
from policy.normalization import Normalization
from policy.quaternions import Quaternions
from policy.spec import LAYERS_PER_BLOCK, PolicySpec
from tests.samples import policy_spec

ROWS = 6
SMALL: dict[str, Any] = {"actor_width": 8, "critic_depth": 8, "critic_width": 6, "representation_dim": 5}
_NINE = tuple(f"s{index}" for index in range(9))
_STATISTICS = {"normalization_mean": (5.0, -2.0, 0.5, 0.0), "normalization_std": (3.0, 0.25, 1e-3, 1.0)}
# By what is special about each policy.
SPECS = {
    "paper": policy_spec(**SMALL),
    "chunk, normalization": policy_spec(
        **SMALL, **_STATISTICS, action_chunk=3, actor_depth=8, normalize_observations=True
    ),
    "statistics that are not applied": policy_spec(**SMALL, **_STATISTICS),
    "quaternions": policy_spec(
        **SMALL,
        state_names=_NINE,
        goal_names=("qw", "qx", "qy", "qz", "height [m]"),
        state_quaternions=(1, 5),
        goal_quaternions=(0,),
        normalize_observations=True,
        normalization_mean=tuple(np.linspace(-1, 1, 9).tolist()),
        normalization_std=(2.0,) * 9,
    ),
    "quaternion first and between": policy_spec(**SMALL, state_names=_NINE, state_quaternions=(0, 4)),
    "relu": policy_spec(**SMALL, activation="relu", energy="dot"),
    "no LayerNorm": policy_spec(**SMALL, layer_norm=False, energy="cosine"),
    "no residual": policy_spec(**SMALL, residual=False, energy="l2_squared"),
    "one value each": policy_spec(
        **SMALL | {"actor_width": 1},
        layer_norm=False,
        state_names=("x",),
        goal_names=("x",),
        action_names=("u",),
        action_low=(-1.0,),
        action_high=(1.0,),
    ),
}


@functools.cache
def trained_params(spec: PolicySpec) -> PolicyParams:
    """Parameters none of which are 0 or 1, as if the policy was trained; its actions are not at their limits."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_policy(jax.random.key(0), spec))

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        deviation = {"kernel": leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 1, "norm_scale": 0.3}
        values = rng.normal(size=leaf.shape, scale=deviation.get(name.rpartition(".")[2], 0.2))
        return np.asarray(values + ("norm_scale" in name), np.float32)

    def network(shapes: Network | None, *, depth: int) -> Network | None:
        if shapes is None:
            return None
        params = jax.tree_util.tree_map_with_path(drawn, shapes.params)
        # The blocks add up. At its limits, an action would hide what it was computed from.
        output = {key: leaf * np.float32(LAYERS_PER_BLOCK / depth / 2) for key, leaf in params["output"].items()}
        return dataclasses.replace(shapes, params=params | {"output": output})

    actor = network(shapes.actor, depth=spec.actor_depth)
    assert actor is not None
    return PolicyParams(
        actor,
        state_action_encoder=network(shapes.state_action_encoder, depth=spec.critic_depth),
        goal_encoder=network(shapes.goal_encoder, depth=spec.critic_depth),
        normalization=Normalization.from_spec(spec),
        quaternions=Quaternions(state=spec.state_quaternions, goal=spec.goal_quaternions),
    )


def inputs(spec: PolicySpec, *, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Random states and goals; the first values of the quaternions of some rows are 0, or -0."""
    rng = np.random.default_rng(1)
    state, goal = (rng.normal(size=(rows, dim)).astype(np.float32) for dim in (spec.state_dim, spec.goal_dim))
    for values, starts in ((state, spec.state_quaternions), (goal, spec.goal_quaternions)):
        for start in starts:
            for row in range(min(4, rows)):
                values[row, start : start + row] = (0.0, -0.0, 0.0)[:row]
    return state, goal


@functools.cache
def probes_of(spec: PolicySpec) -> Probes:
    """What a bundle of `trained_params` stores."""
    state, goal = inputs(spec)
    computed = probes.compute(trained_params(spec), spec, state=state, goal=goal)
    assert 0.05 < np.abs(computed.action).max() < 0.95  # so that a difference shows
    return computed


def probe_noise(rows: int, size: int) -> np.ndarray:
    """The noise of the probes' sampled actions: that of the seed 0, rows numbered from 0, candidate 0."""
    integers = np.array([[PROBE_SEED, 0, row, 0] for row in range(rows)], np.uint32)
    return np.asarray(jax.vmap(lambda row: acting.seeded_noise(row, size))(integers))
