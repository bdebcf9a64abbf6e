"""Write a policy as ONNX graphs: the actor, and on request the critic.

    actor   state [rows, state_dim], goal [rows, goal_dim], noise [noise_rows, chunk_dim] -> action [rows, chunk_dim]
    critic  state [rows, state_dim], action [rows, chunk_dim], goal [rows, goal_dim]      -> energy [rows]

Everything is float32. An action is in [-1, 1]; of a chunk, the first action comes first. The signs of quaternions, the
normalization and the squashing are inside: states and goals are fed as the environment gives them.

action = tanh(mean + exp(log_std) * noise) with standard normal noise. The noise may be left out: it is an input with a
default value, zeros [1, chunk_dim], which give the deterministic action. A noise that is fed has as many rows as the
state, or one row for all of them. It may also have many rows if the state and the goal have one row.

The graphs need opset 17 (ONNX 1.12 of 2022, onnxruntime 1.12). `metadata_props` has what a robot needs to know, see
`metadata`. The same policy gives the same bytes.

This module needs the package `onnx` (extra `export`).
"""

import json
from pathlib import Path

import numpy as np

from policy.exchange import onnx_layers
from policy.exchange.onnx_builder import MAX_FILE_BYTES, OPSET, GraphBuilder, Port
from policy.networks import PolicyParams
from policy.spec import PolicySpec

_ROWS = "rows"


def write_actor(
    path: Path, params: PolicyParams, spec: PolicySpec, *, version: int, max_file_bytes: int = MAX_FILE_BYTES
) -> None:
    """Write the actor to `path`.

    Args:
        version: of the policy, for the metadata.
        max_file_bytes: of arrays inside `path`; more go to a second file, `path` + `.data`.

    Raises:
        ValueError: the actor is not a `ResidualNetwork`.
        OSError: a file cannot be written.
    """
    graph = GraphBuilder()
    inputs = graph.add("Concat", [_state(graph, params, spec), _goal(graph, params, spec)], "inputs", axis=1)
    outputs = onnx_layers.network(graph, params.actor, inputs, name="actor")
    noise = graph.array("noise", np.zeros((1, spec.chunk_dim)))
    action = onnx_layers.squashed_sample(graph, outputs, noise, chunk_dim=spec.chunk_dim, name="action")
    meaning = "standard normal; zeros, which are the default, give the deterministic action"
    graph.save(
        path,
        name="actor",
        inputs=[_state_port(spec), _goal_port(spec), Port(noise, "noise_rows", spec.chunk_dim, meaning)],
        outputs=[_action_port(spec, action)],
        metadata=metadata(spec, graph="actor", version=version),
        version=version,
        max_file_bytes=max_file_bytes,
    )


def write_critic(
    path: Path, params: PolicyParams, spec: PolicySpec, *, version: int, max_file_bytes: int = MAX_FILE_BYTES
) -> None:
    """Write the critic to `path`; for the other arguments see `write_actor`.

    Raises:
        ValueError: the policy has no critic, or its encoders are not `ResidualNetwork`s.
        OSError: a file cannot be written.
    """
    if params.state_action_encoder is None or params.goal_encoder is None:
        raise ValueError("this policy has no critic to export")
    graph = GraphBuilder()
    pair = graph.add("Concat", [_state(graph, params, spec), "action"], "state_action", axis=1)
    phi = onnx_layers.network(graph, params.state_action_encoder, pair, name="state_action_encoder")
    psi = onnx_layers.network(graph, params.goal_encoder, _goal(graph, params, spec), name="goal_encoder")
    energy = onnx_layers.energy(graph, phi, psi, energy=spec.energy, name="energy")
    graph.save(
        path,
        name="critic",
        inputs=[_state_port(spec), _action_port(spec, "action"), _goal_port(spec)],
        outputs=[Port(energy, _ROWS, None, "how reachable the goal is after the action; higher is closer")],
        metadata=metadata(spec, graph="critic", version=version),
        version=version,
        max_file_bytes=max_file_bytes,
    )


def metadata(spec: PolicySpec, *, graph: str, version: int) -> dict[str, str]:
    """Return the metadata of a graph: `name`, `environment` and `graph` as they are, everything else as JSON.

    `spec` is the complete specification, which `PolicySpec.from_json` reads. The other entries are for programs that
    need only these: names with units, limits, control period in seconds, rest action, actions in a chunk.
    """
    facts = {
        "version": version,
        "opset": OPSET,
        "state_names": spec.state_names,
        "goal_names": spec.goal_names,
        "action_names": spec.action_names,
        "action_low": spec.action_low,
        "action_high": spec.action_high,
        "rest_action": spec.rest_action,
        "action_chunk": spec.action_chunk,
        "control_period_s": spec.control_period_s,
    }
    texts = {key: json.dumps(fact, ensure_ascii=False) for key, fact in facts.items()}
    return {"name": spec.name, "environment": spec.environment, "graph": graph, **texts, "spec": spec.to_json()}


def _state(graph: GraphBuilder, params: PolicyParams, spec: PolicySpec) -> str:
    return onnx_layers.prepared_state(
        graph,
        "state",
        starts=params.quaternions.state,
        dim=spec.state_dim,
        normalization=params.normalization,
    )


def _goal(graph: GraphBuilder, params: PolicyParams, spec: PolicySpec) -> str:
    return onnx_layers.canonical_signs(graph, "goal", params.quaternions.goal, dim=spec.goal_dim)


def _state_port(spec: PolicySpec) -> Port:
    return Port("state", _ROWS, spec.state_dim, ", ".join(spec.state_names))


def _goal_port(spec: PolicySpec) -> Port:
    return Port("goal", _ROWS, spec.goal_dim, ", ".join(spec.goal_names))


def _action_port(spec: PolicySpec, name: str) -> Port:
    meaning = (
        f"{spec.action_chunk} x ({', '.join(spec.action_names)}), where -1 and 1 stand for action_low, action_high"
    )
    return Port(name, _ROWS, spec.chunk_dim, meaning)
