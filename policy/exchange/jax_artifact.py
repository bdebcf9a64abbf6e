"""Write a policy as JAX artifacts, which need JAX to run and none of our code: serialized `jax.export.Exported`s.

    actor   (state [rows, state_dim], goal [rows, goal_dim], noise [rows, chunk_dim]) -> action [rows, chunk_dim]
    critic  (state [rows, state_dim], action [rows, chunk_dim], goal [rows, goal_dim]) -> energy [rows]

Everything is float32, and the number of rows is free. An artifact runs on CPUs and on NVIDIA GPUs, with matrix products
in full float32 on both. Noise of zeros gives the deterministic action, standard normal noise a sample. Normalization,
the signs of quaternions and squashing are inside.

    artifact = jax.export.deserialize(bytearray(pathlib.Path("actor.jax").read_bytes()))
    action = jax.jit(artifact.call)(state, goal, noise)

The parameters are constants of the program, so one file is the whole policy. Parameters of more than 2 GB do not
fit. JAX reads an artifact for about six months of its releases, then refuses it: keep the published policy, to export
it again (https://docs.jax.dev/en/latest/export/export.html, compatibility guarantees). The same policy gives the same
bytes with the same version of JAX.
"""

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from policy import acting
from policy.bits import in_32_bits
from policy.networks import Network, PolicyParams
from policy.spec import PolicySpec

PLATFORMS = ("cpu", "cuda")
MAX_BYTES = 2 * 10**9  # of parameters; from there on, JAX warns of constants, and its format ends at 2 GiB
_SOURCE_LINES = "jax_traceback_in_locations_limit"


def write_actor(path: Path, params: PolicyParams, spec: PolicySpec, *, max_bytes: int = MAX_BYTES) -> None:
    """Write the actor to `path`.

    Args:
        max_bytes: of parameters.

    Raises:
        ValueError: the parameters have more than `max_bytes`.
        OSError: the file cannot be written.
    """
    fixed = _as_constants(params, [params.actor], max_bytes=max_bytes)

    def actor(state: jax.Array, goal: jax.Array, noise: jax.Array) -> jax.Array:
        return acting.sample_action(acting.action_distribution(fixed, state, goal), noise)[0]

    path.write_bytes(_exported(actor, (spec.state_dim, spec.goal_dim, spec.chunk_dim)))


def write_critic(path: Path, params: PolicyParams, spec: PolicySpec, *, max_bytes: int = MAX_BYTES) -> None:
    """Write the critic to `path`.

    Raises:
        ValueError: the policy has no critic, or its parameters have more than `max_bytes`.
        OSError: the file cannot be written.
    """
    if params.state_action_encoder is None or params.goal_encoder is None:
        raise ValueError("this policy has no critic to export")
    fixed = _as_constants(params, [params.state_action_encoder, params.goal_encoder], max_bytes=max_bytes)

    def critic(state: jax.Array, action: jax.Array, goal: jax.Array) -> jax.Array:
        return acting.score(fixed, state, action, goal=goal, energy=spec.energy)

    path.write_bytes(_exported(critic, (spec.state_dim, spec.chunk_dim, spec.goal_dim)))


@in_32_bits
def _exported(function: Callable[..., jax.Array], sizes: tuple[int, ...]) -> bytes:
    """Return `function` as an artifact; its arguments are float32 [rows, size], for each of `sizes`."""
    rows = jax.export.symbolic_shape("rows")
    arguments = [jax.ShapeDtypeStruct((*rows, size), np.float32) for size in sizes]
    with jax.default_matmul_precision("highest"), _without_source_lines():
        return bytes(jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize())


def _as_constants(params: PolicyParams, networks: list[Network], *, max_bytes: int) -> PolicyParams:
    """Return `params` with arrays of numpy: JAX writes those into a program that uses them."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(networks))
    if size > max_bytes:
        raise ValueError(
            f"the parameters have {size / 1e9:.2f} GB, and a JAX artifact has room for {max_bytes / 1e9:.2f} GB; "
            "export another format"
        )
    return jax.tree.map(np.asarray, params)


@contextlib.contextmanager
def _without_source_lines() -> Generator[None]:
    """Keep the paths of our source files out of the program, because they differ between machines."""
    before: Any = getattr(jax.config, _SOURCE_LINES)
    jax.config.update(_SOURCE_LINES, 0)
    try:
        yield
    finally:
        jax.config.update(_SOURCE_LINES, before)
