"""Read a published policy; refuse it if anything has changed since it was published."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from policy.bits import in_32_bits
from policy.bundle import arrays, manifest, probes
from policy.bundle.manifest import BundleError
from policy.bundle.probes import Probes
from policy.networks import PolicyParams
from policy.published import is_version
from policy.spec import PolicySpec, SpecError
from policy.temporary_folder import temporary_folder
from policy.verified_folder import MALFORMED, malformation

_PREFIX = "kilolayer-policy-"  # of the folders that hold a copy
_MAX_NESTING = 100  # far more than a provenance has; recursion through a deeper one would fail


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
def read(path: Path, *, root: Path | None = None) -> Bundle:
    """Verify the bundle at `path` and load it.

    Its files are copied into a temporary folder while they are hashed, and are loaded from there. So what is loaded is
    what was verified, even if another process changes the files or a symbolic link meanwhile.

    Args:
        path: a published version, or a symbolic link to one. The name says which version it is.
        root: the folder under which symbolic links must end, with `path` in it; None: `path`.

    Raises:
        BundleError: it is missing, damaged, or does not give its probes' actions and energies; `reason` says which.
        OSError: a file cannot be read, or the temporary folder cannot be written.
    """
    if not path.is_dir() or not is_version(path.name):
        raise BundleError(path, "missing", "there is no published version of that name")
    with temporary_folder(_PREFIX) as copied:
        manifest_sha256 = manifest.copy(path, copied, root=root or path)
        try:
            bundle = _load(copied, int(path.name), manifest_sha256=manifest_sha256)
        except BundleError as error:
            detail = error.detail.replace(str(copied), str(path))
            raise BundleError(path, error.reason, detail) from error
    return dataclasses.replace(bundle, path=path)


def load(path: Path, version: int) -> Bundle:
    """Verify and load the bundle of `version` in the folder `path`, which may have another name.

    The files are read where they are, so no other process may change them.

    Raises:
        BundleError, OSError: as `read`.
    """
    return _load(path, version, manifest_sha256=manifest.verify(path))


def _load(path: Path, version: int, *, manifest_sha256: str) -> Bundle:
    """Load a bundle whose files are those of its manifest."""
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
        return PolicySpec.from_fields(description["spec"]), _provenance(description["provenance"])
    except FileNotFoundError as error:
        raise BundleError(path, "spec", "policy.json is missing") from error
    except SpecError as error:
        raise BundleError(path, "spec", f"policy.json: {error}") from error
    except MALFORMED as error:
        raise BundleError(path, "spec", f"policy.json cannot be parsed: {malformation(error)}") from error


def _provenance(stated: Any) -> dict[str, Any]:
    """Return the provenance. Raises ValueError if it is not an object, or is nested too deeply."""
    if not isinstance(stated, dict):
        raise ValueError(f"provenance must be an object, got {stated!r:.80}")
    level: list[Any] = [stated]
    for _ in range(_MAX_NESTING):
        level = [inner for value in level for inner in _inside(value) if isinstance(inner, dict | list)]
        if not level:
            return cast("dict[str, Any]", stated)
    raise ValueError(f"provenance is nested more than {_MAX_NESTING} levels deep")


def _inside(value: Any) -> Iterable[Any]:
    """Return the values in an object or a list."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()
