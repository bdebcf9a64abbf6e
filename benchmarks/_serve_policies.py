"""Random policies for the serving benchmarks, and the compiled call as the reference for the server."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from policy import acting, bundle
from policy.networks import PolicyParams, init_policy
from policy.spec import PolicySpec
from serving.engine.cpu_device import calling_thread_device

_CHOOSING_S = 0.3


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy on disk and in memory."""

    depth: int
    folder: Path
    spec: PolicySpec
    params: PolicyParams


def publish(folder: Path, depth: int, *, width: int, state_dim: int, goal_dim: int, action_dim: int) -> Policy:
    """Publish a policy with random parameters below `folder`. Its critic is small because it is not used."""
    spec = PolicySpec(
        name=f"depth_{depth}",
        environment="none",
        state_names=tuple(f"state {index}" for index in range(state_dim)),
        goal_names=tuple(f"goal {index}" for index in range(goal_dim)),
        action_names=tuple(f"action {index}" for index in range(action_dim)),
        action_low=(-1.0,) * action_dim,
        action_high=(1.0,) * action_dim,
        control_period_s=0.02,
        success_radius=0.5,
        actor_depth=depth,
        actor_width=width,
        critic_depth=4,
        critic_width=8,
        representation_dim=8,
    )
    policy = Policy(depth, folder / spec.name, spec, init_policy(jax.random.key(depth), spec))
    rng = np.random.default_rng(depth)
    bundle.write(
        policy.folder,
        1,
        spec=spec,
        params=policy.params,
        probe_state=rng.normal(size=(4, state_dim)),
        probe_goal=rng.normal(size=(4, goal_dim)),
        provenance={},
    )
    return policy


def compiled_call(policy: Policy, rows: int, *, seconds: float) -> Callable[[], np.ndarray]:
    """Return a function that repeats the compiled call for `seconds` and returns the seconds of each call.

    On a CPU, the call runs on all cores or in the calling thread only, whichever is faster on this machine.
    """
    spec = policy.spec
    inputs = np.random.default_rng(0).normal(size=(rows, spec.state_dim + spec.goal_dim)).astype(np.float32)

    def act(params: PolicyParams, inputs: jax.Array) -> jax.Array:
        return acting.act(params, inputs[:, : spec.state_dim], inputs[:, spec.state_dim :])

    def compile_for(device: Any) -> Callable[[], np.ndarray]:
        params = jax.device_put(PolicyParams(policy.params.actor), device)
        with jax.default_matmul_precision("highest"):  # the server's setting
            compiled = jax.jit(act).lower(params, jax.ShapeDtypeStruct(inputs.shape, np.float32)).compile()
        return lambda: np.asarray(compiled(params, inputs))

    def repeat(call: Callable[[], np.ndarray], seconds: float) -> np.ndarray:
        moments = [time.perf_counter()]
        while moments[-1] < moments[0] + seconds:
            call()
            moments.append(time.perf_counter())
        return np.diff(moments)

    calls = [compile_for(device) for device in {None, calling_thread_device()}]
    for call in calls:
        call()  # the first call takes longer
    fastest = min(calls, key=lambda call: np.median(repeat(call, _CHOOSING_S)))
    return lambda: repeat(fastest, seconds)
