"""The actor and the critic in plain numpy. Signs of quaternions, normalization and squashing are those of training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kilolayer._local import network
from kilolayer._local.export import MODEL, Export
from kilolayer._local.manifest import invalid
from kilolayer._local.network import Architecture, Floats, Network
from kilolayer._local.quaternions import canonical_signs

_LOG_STD_MIN, _LOG_STD_MAX = np.float32(-5), np.float32(2)
_LEAST_SQUARE = np.float32(1e-12)


class Inputs:
    """Makes states and goals what the networks take: first the signs of quaternions, then the normalization."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._state_quaternions, self._goal_quaternions = spec["state_quaternions"], spec["goal_quaternions"]
        self._normalization: tuple[Floats, Floats] | None = None
        if spec["normalize_observations"]:
            mean, std = (np.array(spec[f"normalization_{part}"], np.float32) for part in ("mean", "std"))
            self._normalization = mean, std

    def state(self, state: Floats) -> Floats:
        """Return `state: [rows, state_dim]` prepared."""
        state = canonical_signs(state, self._state_quaternions)
        if self._normalization is None:
            return state
        mean, std = self._normalization
        return (state - mean) / std

    def goal(self, goal: Floats) -> Floats:
        """Return `goal: [rows, goal_dim]` prepared. Goals are not normalized."""
        return canonical_signs(goal, self._goal_quaternions)


@dataclasses.dataclass(frozen=True)
class NumpyActor:
    """(state, goal) -> the actions."""

    inputs: Inputs
    network: Network

    def __call__(self, state: Floats, goal: Floats, noise: Floats | None) -> Floats:
        """Return actions [rows, chunk_dim] in [-1, 1], sampled with `noise: [rows, chunk_dim]` if there is any."""
        with np.errstate(all="ignore"):  # callers look for NaN and infinity in the result
            joined = np.concatenate([self.inputs.state(state), self.inputs.goal(goal)], axis=1)
            mean, raw = np.split(network.apply(self.network, joined), 2, axis=1)
            if noise is None:
                return np.tanh(mean)
            log_std = _LOG_STD_MIN + (_LOG_STD_MAX - _LOG_STD_MIN) / 2 * (np.tanh(raw) + 1)
            return np.tanh(mean + np.exp(log_std) * noise)


@dataclasses.dataclass(frozen=True)
class NumpyCritic:
    """(state, action, goal) -> the energies."""

    inputs: Inputs
    state_action_encoder: Network
    goal_encoder: Network
    energy: str

    def __call__(self, state: Floats, action: Floats, goal: Floats) -> Floats:
        """Return the energies [rows] of `action: [rows, chunk_dim]`."""
        with np.errstate(all="ignore"):
            joined = np.concatenate([self.inputs.state(state), action], axis=1)
            pairs = network.apply(self.state_action_encoder, joined)
            goals = network.apply(self.goal_encoder, self.inputs.goal(goal))
            return _ENERGIES[self.energy](pairs, goals)


def numpy_actor(export: Export, arrays: dict[str, Floats]) -> NumpyActor:
    """Return the actor with the parameters in `arrays`. Raises InvalidExport if they do not fit the specification."""
    spec, sizes = export.spec, export.description
    in_dim = sizes.state_dim + sizes.goal_dim
    return NumpyActor(
        Inputs(spec), _network(export, arrays, "actor", in_dim=in_dim, part="actor", out=2 * export.chunk_dim)
    )


def numpy_critic(export: Export, arrays: dict[str, Floats]) -> NumpyCritic | None:
    """Return the critic with the parameters in `arrays`, None if they have none. Raises as `numpy_actor`."""
    if "goal_encoder.output.kernel" not in arrays:
        return None
    spec, sizes = export.spec, export.description
    pair_dim, out = sizes.state_dim + export.chunk_dim, spec["representation_dim"]
    pairs = _network(export, arrays, "state_action_encoder", in_dim=pair_dim, part="critic", out=out)
    goals = _network(export, arrays, "goal_encoder", in_dim=sizes.goal_dim, part="critic", out=out)
    if spec["energy"] not in _ENERGIES:
        raise invalid(export.folder, f"this client does not know the energy {spec['energy']!r:.80}")
    return NumpyCritic(Inputs(spec), pairs, goals, spec["energy"])


def _network(export: Export, arrays: dict[str, Floats], name: str, *, in_dim: int, part: str, out: int) -> Network:
    spec = export.spec
    architecture = Architecture(spec["activation"], layer_norm=spec["layer_norm"], residual=spec["residual"])
    width, depth = spec[f"{part}_width"], spec[f"{part}_depth"]
    try:
        return network.build(arrays, name, architecture=architecture, in_dim=in_dim, width=width, depth=depth, out=out)
    except ValueError as error:
        raise invalid(export.folder, f"{MODEL}: {error}") from error


def _squared_distance(pairs: Floats, goals: Floats) -> Floats:
    return np.maximum(np.sum(np.square(pairs - goals), axis=1), _LEAST_SQUARE)


def _dot(pairs: Floats, goals: Floats) -> Floats:
    return np.sum(pairs * goals, axis=1)


def _unit(encodings: Floats) -> Floats:
    """Scale every row to length 1."""
    return encodings / np.sqrt(np.maximum(np.sum(np.square(encodings), axis=1, keepdims=True), _LEAST_SQUARE))


_ENERGIES = {
    "l2": lambda pairs, goals: -np.sqrt(_squared_distance(pairs, goals)),
    "l2_squared": lambda pairs, goals: -_squared_distance(pairs, goals),
    "dot": _dot,
    "cosine": lambda pairs, goals: _dot(_unit(pairs), _unit(goals)),
}
