"""kilolayer-policy show: what a published policy takes and gives, how large it is, and where it comes from."""

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from policy import published, verified_folder
from policy.spec import PolicySpec, SpecError
from policy.verified_folder import MALFORMED, DamageError, malformation
from training.policy_command import folders
from training.policy_command.result import CommandError, Result

HELP = "show the inputs, outputs, sizes and origin of a policy"
_ONLY_IN_JSON = frozenset({"config", "earlier"})  # of the provenance; too long for text
_LABEL, _WIDTH = 13, 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DIR and --version."""
    folders.add_arguments(parser)


def run(arguments: argparse.Namespace) -> Result:
    """Compare the files with the manifest, and describe the policy.

    Raises:
        MissingVersionError: there is no such version.
        CommandError: a file is missing or has changed.
    """
    path = folders.chosen(arguments)
    facts = _facts(path)
    return Result(list(_describe(facts)), facts)


def _facts(path: Path) -> dict[str, Any]:
    from policy.networks import parameter_counts  # imports JAX

    spec, provenance, sha256 = _read(path)
    sizes = [file.stat().st_size for name, file in verified_folder.files(path) if name != verified_folder.MANIFEST]
    return {
        "path": str(path),
        "version": int(path.name),
        "versions": published.versions(path.parent),
        "manifest_sha256": sha256,
        "files": len(sizes),
        "bytes": sum(sizes),
        "parameters": parameter_counts(spec),
        "spec": dataclasses.asdict(spec),
        "provenance": provenance,
    }


def _read(path: Path) -> tuple[PolicySpec, dict[str, Any], str]:
    """Return the specification and the provenance of a version whose files have the hashes of its manifest."""
    try:
        sha256 = verified_folder.verify(path, format_version=published.FORMAT_VERSION, belongs=published.belongs)
        description = json.loads((path / published.DESCRIPTION).read_text())
        return PolicySpec.from_fields(description["spec"]), dict(description["provenance"]), sha256
    except (DamageError, SpecError) as error:
        raise CommandError(f"{path} is damaged: {error}") from error
    except MALFORMED as error:
        raise CommandError(f"{path / published.DESCRIPTION} cannot be read: {malformation(error)}") from error


def _describe(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of text, headings first."""
    spec = PolicySpec(**facts["spec"])
    yield f"{spec.name} version {facts['version']}: {facts['path']}"
    for label, text in (
        *_of_folder(facts),
        *_of_networks(spec, facts["parameters"]),
        *_of_interface(spec),
        *_of_actions(spec),
        *_of_provenance(facts["provenance"]),
    ):
        yield from _entry(label, text)


def _entry(label: str, text: str) -> list[str]:
    """Return `text` behind its label, in lines of at most `_WIDTH` characters where spaces allow that."""
    first, rest = f"  {label:<{_LABEL}}", " " * (_LABEL + 2)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]


def _of_folder(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "versions", f"{', '.join(map(str, facts['versions']))} in {Path(facts['path']).parent}"
    yield "files", f"{facts['bytes']:,} bytes in {facts['files']} files, with the SHA-256 of the manifest"
    yield "manifest", f"SHA-256 {facts['manifest_sha256']}"


def _of_networks(spec: PolicySpec, parameters: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    yield "actor", f"depth {spec.actor_depth}, width {spec.actor_width}, {parameters['actor']:,} parameters"
    if spec.has_critic:
        encoders = sum(count for name, count in parameters.items() if name != "actor")
        sizes = f"depth {spec.critic_depth}, width {spec.critic_width}, representation {spec.representation_dim}"
        yield "critic", f"energy {spec.energy}, {sizes}, {encoders:,} parameters in two encoders"
    else:
        yield "critic", "none"
    parts = (spec.activation, "LayerNorm" if spec.layer_norm else "no LayerNorm")
    yield "layers", f"{', '.join(parts)}, {'residual' if spec.residual else 'not residual'}"
    yield "normalized", "states, with their mean and standard deviation" if spec.normalize_observations else "nothing"


def _of_interface(spec: PolicySpec) -> Iterator[tuple[str, str]]:
    yield "environment", spec.environment
    yield "period", f"{spec.control_period_s:g} s"
    yield "success", f"within {spec.success_radius:g} of the goal"
    for kind, names, starts in (
        ("state", spec.state_names, spec.state_quaternions),
        ("goal", spec.goal_names, spec.goal_quaternions),
    ):
        quaternions = f"; quaternions begin at the indices {', '.join(map(str, starts))}" if starts else ""
        yield kind, f"{_count(names)}: {', '.join(names)}{quaternions}"
    yield "seen", "states with a range, see --json" if spec.seen_low else "no range of states is recorded"


def _of_actions(spec: PolicySpec) -> Iterator[tuple[str, str]]:
    """Yield a line for each action: its limits and its rest, in its own unit, and what it drives."""
    chunk = f", {spec.action_chunk} consecutive ones per inference" if spec.action_chunk > 1 else ""
    yield "action", f"{_count(spec.action_names)}{chunk}"
    for index, name in enumerate(spec.action_names):
        low, high = spec.action_low[index], spec.action_high[index]
        rest = low + (spec.rest_action[index] + 1) / 2 * (high - low)
        change = f", changes by at most {spec.max_action_change[index]:g}" if spec.max_action_change else ""
        kind = f"{spec.actuator_kind[index]}, {spec.action_meaning[index]}"
        yield "", f"{name}: {low:g} to {high:g}, {rest:g} at rest; {kind}{change}"


def _of_provenance(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in provenance.items():
        if name == "metrics" and isinstance(value, dict):
            yield name, ", ".join(f"{metric} {_number(figure)}" for metric, figure in value.items())
        elif name == "versions" and isinstance(value, dict):
            yield name, ", ".join(f"{package} {version}" for package, version in value.items())
        elif name not in _ONLY_IN_JSON and value not in (None, "", {}, []):
            yield name, value if isinstance(value, str) else json.dumps(value)


def _count(names: tuple[str, ...]) -> str:
    return f"{len(names)} {'value' if len(names) == 1 else 'values'}"


def _number(figure: Any) -> str:
    return f"{figure:.6g}" if isinstance(figure, float) else str(figure)
