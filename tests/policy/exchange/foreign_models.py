"""Policies as scaling-crl and JaxGCRL build them, written anew in flax: references that share no code with ours.

Their layers are numbered by flax, so the parameters have the names of their checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, traverse_util

STATE_DIM, GOAL_DIM, ACTION_DIM, REPRESENTATION_DIM = 5, 2, 3, 6

NETWORK: Mapping[str, dict[str, Any]] = {
    "scaling-crl": {"layout": "scaling-crl", "use_relu": False, "actor_depth": 4, "critic_depth": 4},
    "jaxgcrl": {"layout": "jaxgcrl", "use_relu": False, "n_hidden": 2, "skip_connections": 4, "energy_fn": "norm"},
}


class BlockNetwork(linen.Module):
    """scaling-crl: one layer, then blocks of four whose input is added to their output."""

    depth: int
    width: int
    outs: tuple[int, ...]
    use_relu: bool = False

    @linen.compact
    def __call__(self, values: jax.Array) -> list[jax.Array]:
        def layer(values: jax.Array) -> jax.Array:
            values = linen.LayerNorm()(linen.Dense(self.width)(values))
            return linen.relu(values) if self.use_relu else linen.swish(values)

        values = layer(values)
        for _ in range(self.depth // 4):
            inner = values
            for _ in range(4):
                inner = layer(inner)
            values += inner
        return [linen.Dense(out)(values) for out in self.outs]


class SkipNetwork(linen.Module):
    """JaxGCRL: layers in a row; after layers k, 2k ... the sum of before is added."""

    hidden: int
    width: int
    outs: tuple[int, ...]
    use_relu: bool = False
    use_ln: bool = False
    skip: int = 4

    @linen.compact
    def __call__(self, values: jax.Array) -> list[jax.Array]:
        total = values
        for index in range(self.hidden):
            values = linen.Dense(self.width)(values)
            if self.use_ln:
                values = linen.LayerNorm()(values)
            values = linen.relu(values) if self.use_relu else linen.swish(values)
            if index == 0:
                total = values
            elif self.skip and index % self.skip == 0:
                total = total + values
                values = total
        return [linen.Dense(out)(values) for out in self.outs]


class ForeignModel(NamedTuple):
    """The three networks of a policy and their variables, as in a checkpoint."""

    modules: dict[str, Any]
    variables: dict[str, Any]  # actor, sa_encoder and g_encoder, each with "params"

    def outputs(self, state: np.ndarray, goal: np.ndarray, *, action: np.ndarray) -> "ForeignOutputs":
        """What the networks give for some rows."""
        inputs = {"actor": (state, goal), "sa_encoder": (state, action), "g_encoder": (goal,)}

        @jax.jit
        def run(variables: dict[str, Any], inputs: dict[str, jax.Array]) -> dict[str, list[jax.Array]]:
            return {name: module.apply(variables[name], inputs[name]) for name, module in self.modules.items()}

        with jax.default_matmul_precision("highest"):
            raw = run(self.variables, {name: jnp.concatenate(parts, axis=1) for name, parts in inputs.items()})
        given = {name: [np.asarray(output, np.float64) for output in outputs] for name, outputs in raw.items()}
        return ForeignOutputs(*given["actor"], *given["sa_encoder"], *given["g_encoder"])

    def save(self, path: Path, **changes: np.ndarray | None) -> Path:
        """Write the arrays to an .npz file; `changes` replace arrays, None leaves one out."""
        flat: dict[str, Any] = dict(traverse_util.flatten_dict(self.variables, sep="/"))
        arrays = {name: array for name, array in (flat | changes).items() if array is not None}
        np.savez(path, allow_pickle=False, **arrays)
        return path


class ForeignOutputs(NamedTuple):
    """What the networks of another project give, and what it computes from this. All float64."""

    mean: np.ndarray  # [rows, action_dim]
    raw_log_std: np.ndarray  # [rows, action_dim]
    phi: np.ndarray  # [rows, representation_dim]
    psi: np.ndarray  # [rows, representation_dim]

    def action(self, noise: np.ndarray | float = 0.0) -> np.ndarray:
        """[rows, action_dim], deterministic without noise."""
        log_std = -5 + 0.5 * 7 * (np.tanh(self.raw_log_std) + 1)
        return np.tanh(self.mean + np.exp(log_std) * noise)

    def energy(self, name: str) -> np.ndarray:
        """[rows], of the function that has this name in the other project; `distance` for scaling-crl."""
        square = np.sum((self.phi - self.psi) ** 2, axis=1)
        functions = {
            "distance": -np.sqrt(square),
            "norm": -np.sqrt(square + 1e-6),
            "l2": -square,
            "dot": np.sum(self.phi * self.psi, axis=1),
        }
        return functions[name]


def random_model(module: Any, *, seed: int = 0, critic: Any = None, **settings: Any) -> ForeignModel:
    """A policy of `module` with random parameters, also of LayerNorm and biases.

    Args:
        critic: settings of the encoders where they differ from those of the actor.
        settings: of `module`.
    """
    encoder = settings | (critic or {})
    sizes = {
        "actor": (settings, STATE_DIM + GOAL_DIM, (ACTION_DIM, ACTION_DIM)),
        "sa_encoder": (encoder, STATE_DIM + ACTION_DIM, (REPRESENTATION_DIM,)),
        "g_encoder": (encoder, GOAL_DIM, (REPRESENTATION_DIM,)),
    }
    random = np.random.default_rng(seed)
    modules, variables = {}, {}
    for name, (fields, in_dim, outs) in sizes.items():
        modules[name] = module(outs=outs, **fields)
        shapes = jax.eval_shape(modules[name].init, jax.random.key(0), jnp.zeros((1, in_dim)))
        variables[name] = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _random(jax.tree_util.keystr(path), leaf.shape, random), shapes
        )
    return ForeignModel(modules, variables)


def _random(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    values = random.normal(size=shape)
    if "kernel" in name:
        values *= 1.7 / np.sqrt(shape[0])  # a layer without LayerNorm about keeps the spread of its inputs
    elif "scale" in name:
        values = 1 + 0.3 * values
    else:
        values *= 0.3
    return values.astype(np.float32)


def write_facts(
    path: Path, *, network: Mapping[str, Any], probes: Mapping[str, Any] = MappingProxyType({}), **policy: Any
) -> Path:
    """Write a TOML file of facts that fit `random_model`, with `policy` in place of the usual ones."""
    facts = {
        "name": "ant-import",
        "environment": "ant",
        "state_names": STATE_DIM,
        "goal_names": ["x [m]", "y [m]"],
        "action_names": ["hip [N m]", "knee [N m]", "ankle [N m]"],
        "action_low": [-1.0, -2.0, -3.0],
        "action_high": [1.0, 2.0, 3.0],
        "control_period_s": 0.05,
        "success_radius": 0.5,
    }
    tables = {"policy": facts | policy, "network": network, "probes": probes}
    lines: list[str] = []
    for table, values in tables.items():
        lines += [f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in values.items() if value is not None)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else repr(value)
