"""Read a published policy; refuse it if anything has changed since it was published."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy.bits import in_32_bits
from policy.bundle import arrays, manifest, probes
from policy.bundle.manifest import BundleError
from policy.bundle.probes import Probes
from policy.networks import PolicyParams
from policy.published import is_version
from policy.spec import PolicySpec, SpecError
from policy.verified_folder import MALFORMED


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One verified policy, in memory."""

    path: Path
    version: int
    spec: PolicySpec
    params: PolicyParams  # numpy leaves, float32
    probes: Probes
    provenance: Mapping[str, Any]
    manifest_sha256: str


@in_32_bits
def read(path: Path) -> Bundle:
    """Verify the bundle at `path` and load it.

    Raises:
        BundleError: it is missing, damaged, or does not give its probes' actions and energies; `reason` says which.
        OSError: a file cannot be read.
    """
    if not path.is_dir() or not is_version(path.name):
        raise BundleError(path, "missing", "there is no published version of that name")
    if path.is_symlink():  # its number may be that of another version
        raise BundleError(path, "files", "the folder is a symbolic link")
    return load(path, int(path.name))


def load(path: Path, version: int) -> Bundle:
    """Verify and load the bundle of `version` in the folder `path`, which may have another name.

    Raises:
        BundleError, OSError: as `read`.
    """
    manifest_sha256 = manifest.verify(path)
    spec, provenance = _read_description(path)
    params = arrays.read(path, spec)
    stored = probes.read(path, spec)
    probes.verify(path, params, stored, spec=spec)
    return Bundle(
        path=path,
        version=version,
        spec=spec,
        params=params,
        probes=stored,
        provenance=provenance,
        manifest_sha256=manifest_sha256,
    )


def _read_description(path: Path) -> tuple[PolicySpec, Mapping[str, Any]]:
    try:
        description = json.loads((path / "policy.json").read_text())
        if description["format"] != manifest.FORMAT_VERSION:
            stated = f"{description['format']!r:.80}"
            detail = f"policy.json has format {stated}, but this version reads format {manifest.FORMAT_VERSION}"
            raise BundleError(path, "spec", detail)
        return PolicySpec.from_fields(description["spec"]), description["provenance"]
    except (*MALFORMED, SpecError, FileNotFoundError) as error:
        raise BundleError(path, "spec", f"policy.json: {error}") from error
