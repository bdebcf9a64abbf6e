"""Compare the critic's encoder passes as two matrix products per layer with one batched matrix product per layer.

    python benchmarks/batched_encoders.py --json batched_encoders.json

A gradient step sends 2 B rows through phi and B rows through psi. Separately, that is a product of [2 B, W] and one
of [B, W] per layer. Batched, it is one product of [3, B, W] by [3, W, W] that holds phi's weights twice: the same
FLOP with fewer kernels. Both run in turns on the blocks of `policy.networks`, forward and backward. Their results
must agree.
"""

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _record
import jax
import jax.numpy as jnp
import numpy as np
import train_step
import tyro

from policy.networks import Network, ResidualNetwork, apply_network, init_network


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare separate and batched passes of the encoders."""

    json: Path | None = None
    """File for the record."""
    depths: train_step.Depths = (4, 16, 64)
    """Depths of the encoders, measured one after another."""
    batch: int = 256
    """Number of rows in a batch."""
    width: int = 256
    """Width of a layer, and size of the inputs and outputs."""
    repeats: int = 15
    """Number of turns. Figures are medians over turns."""
    quick: bool = False
    """Small networks and two turns: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4,), batch=16, width=16, repeats=2)
    about = _record.machine()
    _record.report(
        "the encoders' passes, separate and batched",
        [measure(options, depth) for depth in options.depths],
        about=about,
        json_file=options.json,
        notes=f"batch {options.batch}, width {options.width}, forward and backward, medians of {options.repeats} turns",
    )


def measure(options: Options, depth: int) -> dict[str, Any]:
    """Return one row of the table."""
    phi_key, psi_key, pairs_key, goals_key = jax.random.split(jax.random.key(0), 4)
    phi, psi = (
        init_network(key, ResidualNetwork(depth, options.width, options.width), in_dim=options.width)
        for key in (phi_key, psi_key)
    )
    pairs = jax.random.normal(pairs_key, (2 * options.batch, options.width))
    goals = jax.random.normal(goals_key, (options.batch, options.width))
    programs = [jax.jit(jax.grad(loss, argnums=(0, 1))) for loss in (separate, batched)]
    gradients = [jax.block_until_ready(program(phi, psi, pairs, goals)) for program in programs]
    for ours, theirs in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(ours).max()))

    def turn(program: Callable[..., Any]) -> float:
        return 1e3 * _record.timed(lambda: program(phi, psi, pairs, goals))[1]

    turns = [[turn(program) for program in programs] for _ in range(options.repeats)]
    return {
        "depth": depth,
        "separate ms": statistics.median(separate_ms for separate_ms, _ in turns),
        "batched ms": statistics.median(batched_ms for _, batched_ms in turns),
        "batched / separate": statistics.median(batched_ms / separate_ms for separate_ms, batched_ms in turns),
    }


def separate(phi: Network, psi: Network, pairs: jax.Array, goals: jax.Array) -> jax.Array:
    """Return a scalar of all encodings, with one product per network."""
    return jnp.sum(jnp.square(apply_network(phi, pairs))) + jnp.sum(jnp.square(apply_network(psi, goals)))


def batched(phi: Network, psi: Network, pairs: jax.Array, goals: jax.Array) -> jax.Array:
    """Return the same scalar, with one batched product for three networks."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), phi, phi, psi)
    rows = jnp.concatenate([pairs, goals]).reshape(3, len(goals), -1)
    return jnp.sum(jnp.square(jax.vmap(apply_network)(stacked, rows)))


if __name__ == "__main__":
    main()
