"""kilolayer-policy show: what a published policy takes and gives, how large it is, and where it comes from."""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from policy import published, verified_folder
from policy.spec import PolicySpec, SpecError
from policy.verified_folder import MALFORMED, DamageError, malformation
from training.policy_command import folders
from training.policy_command.result import CommandError, Result

HELP = "show the inputs, outputs, sizes and origin of a policy"
_ORIGIN = ("date", "command", "commit", "dirty", "device")


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
    sizes = {name: file.stat().st_size for name, file in verified_folder.files(path)}
    return {
        "path": str(path),
        "version": int(path.name),
        "versions": published.versions(path.parent),
        "manifest_sha256": sha256,
        "bytes": sum(sizes.values()),
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
    spec = PolicySpec(**facts["spec"])
    yield f"{spec.name} version {facts['version']} in {facts['path']}"
