"""Measure exported policies: seconds to write a file, its size, seconds until it has acted, and how exactly it acts.

    python benchmarks/export_sizes.py --json export_sizes.json

For each depth, a policy with random parameters is written in each format, and opened by the library of that format in
the same process. Loading ends when the first batch of actions is there, so it contains the compilation. The difference
is that to the policy's own probes, the deterministic and the sampled actions. The last layer of the policy is scaled
until its actions are not at their limits: there, differences would not show.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import _record
import jax
import numpy as np
import onnxruntime
import train_step
import tyro
from flax import traverse_util

from policy import acting
from policy.bundle import Probes, probes
from policy.exchange import jax_artifact, onnx_graph, safetensors_file
from policy.networks import Network, PolicyParams, init_policy, policy_modules
from policy.spec import PolicySpec

Act = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (state, goal, noise) -> action


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure exported policies."""

    json: Path | None = None
    """File for the record."""
    depths: train_step.Depths = (4, 64, 1024)
    """Depths of the actor, measured one after another."""
    width: int = 256
    """Width of the actor."""
    rows: int = 64
    """Number of probes."""
    quick: bool = False
    """A small policy of the first depth: checks that the script works; the figures mean nothing."""


class Format(NamedTuple):
    """How to write an actor in one format, and how to open it with the format's own library."""

    file: str
    write: Callable[[Path, PolicyParams, PolicySpec], None]
    load: Callable[[Path, PolicySpec], Act]


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=options.depths[:1], width=16, rows=4)
    about = _record.machine()
    about["versions"] |= {name: metadata.version(name) for name in ("onnx", "onnxruntime", "safetensors")}
    _record.report(
        "exported policies",
        [row for depth in options.depths for row in measure(options, depth)],
        about=about,
        json_file=options.json,
        notes=f"actor of width {options.width}, 27 state values, 3 goal values, 8 action values; {options.rows} rows",
    )


def measure(options: Options, depth: int) -> list[dict[str, Any]]:
    """Return the rows of the table for one depth: one for each format."""
    spec = sizes_of_ant(depth, options.width)
    state, goal, noise = (
        np.asarray(jax.random.normal(key, (options.rows, dim)))
        for key, dim in zip(
            jax.random.split(jax.random.key(1), 3), (spec.state_dim, spec.goal_dim, spec.chunk_dim), strict=True
        )
    )
    params = within_limits(jax.jit(init_policy, static_argnums=1)(jax.random.key(0), spec), state, goal)
    expected = probes.compute(params, spec, state=state, goal=goal)
    sampled = sample(params, state, goal, noise)
    return [measured_format(name, params, spec, expected=expected, noise=noise, sampled=sampled) for name in FORMATS]


def measured_format(
    name: str, params: PolicyParams, spec: PolicySpec, *, expected: Probes, noise: np.ndarray, sampled: np.ndarray
) -> dict[str, Any]:
    """Return one row of the table."""
    form = FORMATS[name]
    with tempfile.TemporaryDirectory(prefix="kilolayer-") as folder:
        path = Path(folder) / form.file
        _, export_s = _record.timed(lambda: form.write(path, params, spec))
        size = sum(file.stat().st_size for file in Path(folder).iterdir())

        def first_action() -> tuple[Act, np.ndarray]:
            act = form.load(path, spec)
            return act, act(expected.state, expected.goal, np.zeros_like(noise))

        (act, action), load_s = _record.timed(first_action)
        drawn = act(expected.state, expected.goal, noise)
    return {
        "depth": spec.actor_depth,
        "format": name,
        "export s": export_s,
        "MB": size / 1e6,
        "load s": load_s,
        "worst difference": float(np.abs(action - expected.action).max()),
        "worst difference, sampled": float(np.abs(drawn - sampled).max()),
    }


def sizes_of_ant(depth: int, width: int) -> PolicySpec:
    """Return a policy without a critic, with as many inputs and outputs as one of `ant`."""
    return PolicySpec(
        name="export_sizes",
        environment="ant",
        state_names=tuple(f"state {index}" for index in range(27)),
        goal_names=("x [m]", "y [m]", "z [m]"),
        action_names=tuple(f"torque {index}" for index in range(8)),
        action_low=(-1.0,) * 8,
        action_high=(1.0,) * 8,
        control_period_s=0.05,
        success_radius=0.5,
        actor_depth=depth,
        actor_width=width,
        critic="none",
        critic_depth=0,
        critic_width=0,
        representation_dim=0,
    )


def within_limits(params: PolicyParams, state: np.ndarray, goal: np.ndarray) -> PolicyParams:
    """Return the policy with its last layer scaled until the largest mean is 1 before squashing."""
    mean = jax.jit(acting.action_distribution)(params, state, goal).mean
    output = {key: np.asarray(leaf / np.abs(mean).max()) for key, leaf in params.actor.params["output"].items()}
    actor = dataclasses.replace(params.actor, params=params.actor.params | {"output": output})
    return jax.tree.map(np.asarray, params._replace(actor=actor))


def sample(params: PolicyParams, state: np.ndarray, goal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the policy's own sampled actions."""

    @jax.jit
    def sampled(params: PolicyParams, state: jax.Array, goal: jax.Array, noise: jax.Array) -> jax.Array:
        return acting.sample_action(acting.action_distribution(params, state, goal), noise)[0]

    with jax.default_matmul_precision("highest"):
        return np.asarray(sampled(params, state, goal, noise))


def load_onnx(path: Path, _spec: PolicySpec) -> Act:
    """Open an ONNX graph with onnxruntime, as it does without options."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; onnxruntime warns of an input with a default value
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda state, goal, noise: session.run(None, {"state": state, "goal": goal, "noise": noise})[0]


def load_jax(path: Path, _spec: PolicySpec) -> Act:
    """Open a JAX artifact; the first call compiles it."""
    program = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda state, goal, noise: np.asarray(program(state, goal, noise))


def load_safetensors(path: Path, spec: PolicySpec) -> Act:
    """Read the parameters of an actor, and compute with the networks of this project."""
    tree = traverse_util.unflatten_dict(safetensors_file.read(path), sep=".")
    params = PolicyParams(Network(tree["actor"], policy_modules(spec).actor))
    return lambda state, goal, noise: sample(params, state, goal, noise)


FORMATS: Mapping[str, Format] = {
    "ONNX": Format(
        "actor.onnx", lambda path, params, spec: onnx_graph.write_actor(path, params, spec, version=0), load_onnx
    ),
    "jax": Format("actor.jax", jax_artifact.write_actor, load_jax),
    "safetensors": Format(
        "model.safetensors",
        lambda path, params, _: safetensors_file.write(path, safetensors_file.named_arrays(params, critic=False)),
        load_safetensors,
    ),
}
"""What is measured, by the name of the format."""


if __name__ == "__main__":
    main()
