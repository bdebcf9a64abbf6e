"""A policy on disk: one folder per published version, written completely or not at all, and verified when it is read.

    <root>/<version>/policy.json     specification, format version, provenance
                     params/         Orbax arrays: the actor, and the encoders of a policy with a critic
                     probes.npz      (state, goal) rows, and the actions and energies that the policy must give
                     manifest.json   size and SHA-256 of every file above

`write` publishes a version: a reader sees the complete folder or none. `read` checks everything before it returns a
policy: the manifest, the hashes, the specification, the shapes, that every value is finite, and the probes.
"""

from policy.bundle.manifest import FORMAT_VERSION, BundleError
from policy.bundle.probes import ENERGY_TOLERANCE, PROBE_SEED, PROBE_TOLERANCE, SAMPLE_TOLERANCE, Probes
from policy.bundle.reader import Bundle, read
from policy.bundle.writer import remove, sweep, write
from policy.published import versions

__all__ = [
    "ENERGY_TOLERANCE",
    "FORMAT_VERSION",
    "PROBE_SEED",
    "PROBE_TOLERANCE",
    "SAMPLE_TOLERANCE",
    "Bundle",
    "BundleError",
    "Probes",
    "read",
    "remove",
    "sweep",
    "versions",
    "write",
]
