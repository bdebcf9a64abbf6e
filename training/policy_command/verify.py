"""kilolayer-policy verify: check everything that a reader checks, of one version or of all versions of a folder.

Of an exported policy it checks only the files, because the export has checked the probes before its folder appeared.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy import published, verified_folder
from training.policy_command import folders
from training.policy_command.result import CommandError, Result, UsageError

if TYPE_CHECKING:
    from policy.bundle import Bundle

HELP = "check files, arrays and probes of a policy, or of every version of a folder; or the files of an export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DIR and --version."""
    folders.add_arguments(parser, without_version="every version")


def run(arguments: argparse.Namespace) -> Result:
    """Check the versions one after the other. The exit code is 1 if one of them is damaged.

    Raises:
        UsageError: --version is given for an export.
        MissingVersionError: there is no such version.
        OSError: the export cannot be read.
    """
    if _is_export(arguments.folder):
        return _of_export(arguments)
    checked = [_check(path) for path in _paths(arguments)]
    damaged = sum(not facts["intact"] for facts in checked)
    lines = [line for facts in checked for line in _describe(facts)]
    if len(checked) > 1:
        lines.append(f"{len(checked)} versions checked, {damaged} damaged")
    return Result(lines, {"intact": not damaged, "versions": checked}, exit_code=int(damaged > 0))


def _is_export(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    from policy.exchange import export  # imports JAX, which takes seconds

    return export.is_export(folder)


def _of_export(arguments: argparse.Namespace) -> Result:
    """Check the files of an exported policy."""
    from policy.exchange import export

    path: Path = arguments.folder
    if arguments.version is not None:
        raise UsageError(f"{path} is an exported policy, which is one version; leave out --version")
    about: dict[str, Any] = {"path": str(path)}
    try:
        about |= {"intact": True, "manifest_sha256": export.verify(path), "checks": [_files(path)]}
    except verified_folder.DamageError as error:
        about |= {"intact": False, "error": str(error)}
    lines = _describe(about)
    lines[0] += ", an exported policy"
    return Result(lines, {"intact": about["intact"], "export": about}, exit_code=int(not about["intact"]))


def _paths(arguments: argparse.Namespace) -> list[Path]:
    """Return the folders of the versions to check, oldest first."""
    newest = folders.chosen(arguments)
    if arguments.version is not None or newest.parent != arguments.folder:
        return [newest]
    return [newest.parent / str(version) for version in published.versions(newest.parent)]


def _check(path: Path) -> dict[str, Any]:
    """Return what was checked of a version, or the error if it is damaged."""
    about: dict[str, Any] = {"path": str(path), "version": int(path.name)}
    try:
        policy = folders.read(path)
    except (CommandError, OSError) as error:
        return about | {"intact": False, "error": str(error)}
    return about | {"intact": True, "manifest_sha256": policy.manifest_sha256, "checks": _checks(path, policy)}


def _checks(path: Path, policy: "Bundle") -> list[str]:
    """Return what the reader has checked of `policy`, in its order."""
    from policy.bundle import ENERGY_TOLERANCE, PROBE_TOLERANCE, SAMPLE_TOLERANCE
    from policy.networks import parameter_counts

    rows, parameters = len(policy.probes.state), sum(parameter_counts(policy.spec).values())
    energies = f", energies (within {ENERGY_TOLERANCE:g} of the largest)" if policy.spec.has_critic else ""
    return [
        _files(path),
        "specification: complete, every value allowed",
        f"arrays: {parameters:,} parameters, with the shapes of the specification, all finite",
        f"probes: {rows} rows give the published actions (within {PROBE_TOLERANCE:g}), sampled actions "
        f"(within {SAMPLE_TOLERANCE:g}){energies}",
    ]


def _files(path: Path) -> str:
    count = sum(name != verified_folder.MANIFEST for name, _ in verified_folder.files(path))
    return f"files: {count}, with the sizes and SHA-256 of the manifest, and no others"


def _describe(facts: dict[str, Any]) -> list[str]:
    if not facts["intact"]:
        return [f"{facts['path']}: damaged", f"  {facts['error']}"]
    return [f"{facts['path']}: intact", *(f"  {check}" for check in facts["checks"])]
