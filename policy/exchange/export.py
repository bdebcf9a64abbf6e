"""Export a published policy for other programs, as a folder that is written completely or not at all.

    <out>/config.json          specification, version, provenance
          probes.safetensors   (state, goal, noise) rows, and the actions and energies that the policy must give
          README.md            model card
          model.safetensors    parameters                          (format safetensors)
          actor.onnx           the actor as a graph                (format onnx; with the critic, critic.onnx)
          actor.jax            the actor as a jax.export artifact  (format jax; with the critic, critic.jax)
          manifest.json        size and SHA-256 of every file above

Before the folder gets its name, the library of each format reads its files back and computes the probes. The same
policy gives the same bytes.
"""

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from policy import verified_folder
from policy.bits import in_32_bits
from policy.bundle import Bundle
from policy.exchange import card, new_folder, safetensors_file
from policy.exchange.formats import FORMATS, MODEL, ExportError, probe_rows, require_equal
from policy.networks import ResidualNetwork
from policy.verified_folder import DamageError

EXPORT_FORMAT_VERSION = 1
CONFIG, CARD, PROBES = "config.json", "README.md", "probes.safetensors"
_FORMAT = "kilolayer-export"
_MAX_HEAD_BYTES = 1000  # of config.json, whose first field is the format
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


@in_32_bits
def export(
    bundle: Bundle, out: Path, *, formats: Collection[str] = (), critic: bool = False, license_id: str = ""
) -> Path:
    """Export `bundle` into the new folder `out`, and return the folder.

    Args:
        bundle: a verified policy, see `policy.bundle.read`.
        out: must not exist, nor be in a published or exported folder.
        formats: of FORMATS; empty: all of them.
        critic: whether to export the critic, too.
        license_id: for the card, an identifier of the Hugging Face hub such as apache-2.0; empty: none.

    Raises:
        ExportError: `out` exists or is not allowed, a format is not known, the extra `export` is not installed, the
            policy has no critic, the license is no identifier, or a written file does not give the results of the
            policy. Nothing is left behind.
        OSError: the folder cannot be written, or was made by another process meanwhile.
    """
    chosen = _chosen(formats)
    if critic and not bundle.spec.has_critic:
        raise ExportError(f"policy {bundle.spec.name} has no critic; export it without the critic")
    if license_id and not _LICENSE.fullmatch(license_id):
        raise ExportError(f"the license must be an identifier such as apache-2.0 or other, got {license_id!r:.80}")
    if out.exists() or out.is_symlink():
        raise ExportError(f"{out} exists already; choose a new folder, or remove it first")
    if problem := new_folder.problem(out):
        raise ExportError(problem)

    def fill(scratch: Path) -> None:
        for name in chosen:
            try:
                FORMATS[name].write(scratch, bundle, critic)
            except ValueError as error:
                raise ExportError(str(error)) from error
        _write_config(scratch / CONFIG, bundle, critic=critic)
        safetensors_file.write(scratch / PROBES, probe_rows(bundle))
        _write_card(scratch / CARD, bundle, license_id=license_id)

    def check(scratch: Path) -> None:
        for name in chosen:
            FORMATS[name].check(scratch, bundle, critic)
        require_equal(scratch / PROBES, probe_rows(bundle))
        try:
            verify(scratch)
        except DamageError as error:
            raise verified_folder.unreadable(error.detail) from error

    verified_folder.create(
        out, fill=fill, check=check, format_version=EXPORT_FORMAT_VERSION, what="the export", replace=False
    )
    return out


def verify(folder: Path) -> str:
    """Compare the files of an exported policy with its manifest; return the manifest's own SHA-256.

    Raises:
        DamageError: a file is missing, foreign or changed.
        OSError: a file cannot be read.
    """
    return verified_folder.verify(folder, format_version=EXPORT_FORMAT_VERSION, belongs=belongs)


def is_export(folder: Path) -> bool:
    """Return whether `folder` calls itself an exported policy; it may be damaged.

    Raises:
        OSError: it cannot be read.
    """
    config = folder / CONFIG
    if not config.is_file():
        return False
    with config.open("rb") as file:
        return _FORMAT.encode() in file.read(_MAX_HEAD_BYTES)


def belongs(name: str) -> bool:
    """Return whether an exported policy has a file of this relative name."""
    return name in {CONFIG, CARD, PROBES, MODEL} or name.startswith(("actor.", "critic."))


def _chosen(formats: Collection[str]) -> list[str]:
    """Return the names of the formats to export, in the order of FORMATS.

    Raises:
        ExportError: one is not known, or needs a library that is not installed.
    """
    if unknown := sorted(set(formats) - FORMATS.keys()):
        raise ExportError(f"the format must be {', '.join(FORMATS)}, got {unknown[0]!r:.80}")
    chosen = [name for name in FORMATS if name in (formats or FORMATS)]
    for module in ("safetensors", *(module for name in chosen for module in FORMATS[name].modules)):
        if importlib.util.find_spec(module) is None:
            raise ExportError(f"export needs {module} of the extra `export`: pip install -e '.[export]'")
    return chosen


def _write_config(path: Path, bundle: Bundle, *, critic: bool) -> None:
    config = {
        "format": _FORMAT,
        "format_version": EXPORT_FORMAT_VERSION,
        "version": bundle.version,
        "spec": dataclasses.asdict(bundle.spec),
        "manifest_sha256": bundle.manifest_sha256,
        "provenance": _finite(dict(bundle.provenance)),
        "has_critic_exported": critic,
    }
    path.write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return a JSON value with null in the place of NaN and infinity, which other languages cannot parse."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_card(path: Path, bundle: Bundle, *, license_id: str) -> None:
    """Write the card of the files that are in its folder by now."""
    actor = bundle.params.actor
    policy = card.ExportedPolicy(
        spec=bundle.spec,
        version=bundle.version,
        provenance=bundle.provenance,
        manifest_sha256=bundle.manifest_sha256,
        license_id=license_id,
        is_residual=isinstance(actor.module, ResidualNetwork),
        parameter_count=sum(leaf.size for leaf in jax.tree.leaves(actor)),
        file_sizes={file.name: file.stat().st_size for file in sorted(path.parent.iterdir())},
    )
    path.write_text(card.text(policy), encoding="utf-8")
