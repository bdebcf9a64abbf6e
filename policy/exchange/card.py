"""README.md of an exported policy: a model card, with front matter that the tools of the Hugging Face hub read.

A card has a license only if one was given, and metrics only if the provenance of the policy has them. Labels and
provenance may contain any character, so `policy.exchange.markdown` escapes them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from policy.exchange import card_code
from policy.exchange.markdown import number, plain, table, yaml
from policy.spec import PolicySpec

_LIBRARY = "kilolayer"
_TASK = "reinforcement-learning"  # a task of the hub
_TAGS = (_TASK, "robotics", "goal-conditioned", "control")
_LARGEST = 1e300  # of a metric; JSON has integers that no float can hold
_LABEL = re.compile(r"(?P<name>.*\S)\s*\[(?P<unit>[^\[\]]*)\]")
_METRICS = {
    "eval/stay": "share of the time since the first arrival that is spent at the goal",
    "eval/touched": "share of the episodes that reach the goal",
    "eval/time_at_goal": "control steps at the goal",
    "eval/final_distance": "distance to the goal at the end",
}
_ORIGINS = {
    "date": "date",
    "commit": "commit",
    "device": "device",
    "matmul_precision": "precision of matrix products",
}
_IMPORTED = {"layout": "imported from", "parameters_sha256": "SHA-256 of the imported parameters"}
_ENERGY = "A higher energy means that the goal is easier to reach after the action."
_NOISE = (
    "Without the input `noise`, actions are deterministic. Standard normal noise, of the shape of the actions, gives "
    "sampled ones."
)
_FILES = {
    "model.safetensors": "parameters, float32",
    "actor.onnx": "actor, for ONNX Runtime",
    "actor.onnx.data": "parameters of actor.onnx",
    "actor.jax": "actor, for jax.export, on CPU and CUDA",
    "critic.onnx": "critic, for ONNX Runtime",
    "critic.onnx.data": "parameters of critic.onnx",
    "critic.jax": "critic, for jax.export, on CPU and CUDA",
    "config.json": "sizes, names, units, limits and provenance",
    "probes.safetensors": "inputs, and the actions and energies that the policy must give for them",
}


class ExportedPolicy(NamedTuple):
    """What a card is about."""

    spec: PolicySpec
    version: int
    provenance: Mapping[str, Any]  # JSON values of any structure
    manifest_sha256: str  # of the published version
    license_id: str  # of the hub; empty if it is not known
    is_residual: bool  # whether its actor is a ResidualNetwork, which the numpy code computes
    parameter_count: int  # of the actor
    file_sizes: Mapping[str, int]  # bytes, by the names of the exported files


def text(policy: ExportedPolicy) -> str:
    """Return the content of README.md."""
    return f"---\n{yaml(front_matter(policy))}---\n\n" + "\n".join(_sections(policy))


def front_matter(policy: ExportedPolicy) -> dict[str, Any]:
    """Return the metadata of the card, in the fields of the hub."""
    libraries = {name.rpartition(".")[2] for name in policy.file_sizes} & {"onnx", "safetensors", "jax"}
    fields: dict[str, Any] = {"library_name": _LIBRARY, "pipeline_tag": _TASK}
    fields["tags"] = [*_TAGS, _LIBRARY, policy.spec.environment, *sorted(libraries)]
    metrics = [
        {"type": name.removeprefix("eval/"), "value": value, "name": _METRICS[name]}
        for name, value in _numbers(policy.provenance).items()
        if name in _METRICS
    ]
    if policy.license_id:
        fields["license"] = policy.license_id
    if metrics:
        environment = _evaluated_on(policy)
        result = {
            "task": {"type": _TASK, "name": "goal reaching"},
            "dataset": {"type": environment, "name": environment},
            "metrics": metrics,
        }
        fields["model-index"] = [{"name": policy.spec.name, "results": [result]}]
    return fields


def _sections(policy: ExportedPolicy) -> Iterator[str]:
    spec = policy.spec
    yield f"# {plain(spec.name)}, version {policy.version}\n"
    yield (
        f"A policy for the environment {plain(spec.environment)}: it takes a state and a goal, and gives the action "
        "that leads to the goal. Kilolayer exported it.\n"
    )
    yield _sizes(policy)
    yield from _inputs(spec)
    yield from _outputs(spec)
    yield "## Files\n"
    yield table(("file", "bytes", "content"), _file_rows(policy))
    yield from _code(policy)
    yield from _origin(policy)


def _sizes(policy: ExportedPolicy) -> str:
    spec = policy.spec
    parts = [spec.activation, *(["LayerNorm"] if spec.layer_norm else ()), *(["residual"] if spec.residual else ())]
    rows: list[tuple[str, str | int | float]] = [
        ("control period", f"{number(spec.control_period_s)} s"),
        ("success radius, in the unit of the goal", spec.success_radius),
        ("consecutive actions of one inference", spec.action_chunk),
        ("depth of the actor, in layers", spec.actor_depth),
        ("width of the actor", spec.actor_width),
        ("parameters of the actor", policy.parameter_count),
        ("layers", ", ".join(parts)),
        ("states are normalized in the policy", "yes" if spec.normalize_observations else "no"),
    ]
    if spec.has_critic:
        rows += [("depth of the critic", spec.critic_depth), ("width of the critic", spec.critic_width)]
        rows += [("energy of the critic", spec.energy)]
    return table(("property", "value"), rows)


def _inputs(spec: PolicySpec) -> Iterator[str]:
    yield f"## Inputs\n\n`state`: float32 [rows, {spec.state_dim}]\n"
    seen = [spec.seen_low, spec.seen_high, spec.seen_mean, spec.seen_std]
    header = ("lowest in training", "highest in training", "mean", "standard deviation") if spec.seen_low else ()
    rows = zip(*_names_and_units(spec.state_names), *(seen if spec.seen_low else ()), strict=True)
    yield table(("index", "name", "unit", *header), rows)
    yield f"`goal`: float32 [rows, {spec.goal_dim}]\n"
    yield table(("index", "name", "unit"), zip(*_names_and_units(spec.goal_names), strict=True))
    for name, starts in (("state", spec.state_quaternions), ("goal", spec.goal_quaternions)):
        if starts:
            yield (
                f"Quaternions (w, x, y, z) in `{name}` begin at index {', '.join(map(str, starts))}. The policy takes "
                "q and -q for the same rotation.\n"
            )


def _outputs(spec: PolicySpec) -> Iterator[str]:
    yield f"## Output\n\n`action`: float32 [rows, {spec.chunk_dim}], in [-1, 1]\n"
    if spec.action_chunk > 1:
        yield (
            f"A row has {spec.action_chunk} actions of {spec.action_dim} values, for consecutive control periods, the "
            "first one first.\n"
        )
    header = ["index", "name", "unit", "at -1", "at 1", "at rest", "drives", "meaning"]
    columns: list[Sequence[str | int | float]] = [*_names_and_units(spec.action_names), spec.action_low]
    columns += [spec.action_high, spec.rest_action, spec.actuator_kind, spec.action_meaning]
    if spec.max_action_change:
        header.append("largest change per period")
        columns.append(spec.max_action_change)
    yield table(header, zip(*columns, strict=True))
    on_scale = "the action at rest is" + (", like the largest change," if spec.max_action_change else "")
    yield (
        f"The columns at -1 and at 1 are in the unit of the action; {on_scale} on the scale from -1 to 1. An increment "
        "changes a target; other actions are absolute.\n"
    )
    yield _block(card_code.LIMITS)


def _names_and_units(labels: Sequence[str]) -> tuple[Sequence[int], Sequence[str], Sequence[str]]:
    """Return the columns index, name and unit of labels such as `x [m]`."""
    matches = [_LABEL.fullmatch(label) for label in labels]
    names = [match["name"] if match else label for match, label in zip(matches, labels, strict=True)]
    return range(len(labels)), names, [match["unit"] if match else "" for match in matches]


def _file_rows(policy: ExportedPolicy) -> list[tuple[str, int, str]]:
    return [(name, policy.file_sizes[name], about) for name, about in _FILES.items() if name in policy.file_sizes]


def _code(policy: ExportedPolicy) -> Iterator[str]:
    """Yield how to use each file."""
    yield (
        "Every piece of code runs in this folder and computes the results of the probes. The graphs include everything "
        "from the state as the robot gives it to the action in [-1, 1].\n"
    )
    pieces = {
        "actor.onnx": (_NOISE, card_code.ONNX),
        "critic.onnx": (_ENERGY, card_code.ONNX_CRITIC),
        "actor.jax": ("The number of rows is free.", card_code.JAX),
        "critic.jax": (_ENERGY, card_code.JAX_CRITIC),
    }
    if policy.is_residual:
        pieces["model.safetensors"] = ("The actor in numpy:", card_code.numpy_code(policy.spec))
    for name, (about, code) in pieces.items():
        if name in policy.file_sizes:
            yield f"### {name}\n\n{about}\n"
            yield _block(code)


def _origin(policy: ExportedPolicy) -> Iterator[str]:
    """Yield where the policy comes from, as far as it is known."""
    provenance = policy.provenance
    yield "## Provenance\n"
    rows = [("environment", policy.spec.environment), ("version", str(policy.version))]
    rows += [(label, str(provenance[key])) for key, label in _ORIGINS.items() if isinstance(provenance.get(key), str)]
    imported = provenance.get("imported")
    if isinstance(imported, Mapping):
        rows += [(label, str(imported[key])) for key, label in _IMPORTED.items() if key in imported]
    if provenance.get("dirty") is True:
        rows.append(("changes since the commit", "yes"))
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        rows += [(f"version of {name}", str(version)) for name, version in versions.items()]
    rows.append(("SHA-256 of the manifest of the published version", policy.manifest_sha256))
    yield table(("fact", "value"), rows)
    if metrics := _numbers(provenance):
        yield f"Metrics of the training run at this version, evaluated on {plain(_evaluated_on(policy))}:\n"
        rows_of_metrics = [(name, value, _METRICS.get(name, "")) for name, value in metrics.items()]
        yield table(("metric", "value", "meaning"), rows_of_metrics)


def _evaluated_on(policy: ExportedPolicy) -> str:
    """Return the environment of the evaluation."""
    config = policy.provenance.get("config")
    other = config.get("eval_env") if isinstance(config, Mapping) else None
    return other if isinstance(other, str) and other else policy.spec.environment


def _numbers(provenance: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the metrics that are finite numbers."""
    metrics = provenance.get("metrics")
    if not isinstance(metrics, Mapping):
        return {}
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    }


def _block(code: str) -> str:
    return f"```python\n{code}```\n"
