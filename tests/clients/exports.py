"""Small policies with random parameters: published, served and exported."""

import contextlib
import json
from collections.abc import Callable, Collection, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import kilolayer
from policy import bundle, verified_folder
from policy.exchange.export import EXPORT_FORMAT_VERSION, export
from policy.networks import PolicyParams
from policy.spec import PolicySpec
from serving.config import ServeConfig
from tests.parameters import fresh_params
from tests.samples import policy_spec
from tests.serving.in_process import served

CLIENT_FORMATS = ("onnx", "safetensors")  # what a local policy can use


def random_params(spec: PolicySpec, *, spread: float = 0.2) -> PolicyParams:
    """Parameters without special values: fresh ones have biases of 0 and scales of 1."""
    random, fresh = np.random.default_rng(1), fresh_params(0, spec)

    def shake(leaf: jax.Array) -> np.ndarray:
        return np.asarray(leaf) + random.normal(size=leaf.shape, scale=spread).astype(np.float32)

    networks = fresh._replace(normalization=None)
    return jax.tree.map(shake, networks)._replace(normalization=fresh.normalization)


def publish(root: Path, version: int = 1000, *, spread: float = 0.2, **changes: Any) -> Path:
    """Publish a version of the policy of `policy_spec`, with `changes` of its specification, below `root`."""
    spec = policy_spec(**changes)
    random = np.random.default_rng(version)
    return bundle.write(
        root,
        version,
        spec=spec,
        params=random_params(spec, spread=spread),
        probe_state=random.normal(size=(5, spec.state_dim)),
        probe_goal=random.normal(size=(5, spec.goal_dim)),
        provenance={},
    )


def exported(published: Path, out: Path, *, formats: Collection[str] = CLIENT_FORMATS, critic: bool = True) -> Path:
    """Export the published version `published` to `out`."""
    return export(bundle.read(published), out, formats=formats, critic=critic)


def sign(folder: Path) -> None:
    """Write the manifest of `folder` anew, as someone does who changes an export on purpose."""
    (folder / "manifest.json").unlink()
    verified_folder.write_manifest(folder, EXPORT_FORMAT_VERSION)


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json of an export on purpose."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)


@contextlib.contextmanager
def serving(root: Path, *, max_batch_rows: int = 1) -> Generator[kilolayer.PolicyClient]:
    """A client of a server of the policies in `root`, both in this process. Calls may wait: the machine may be busy."""
    config = ServeConfig(
        policies=(root,), listen="127.0.0.1:0", metrics=False, max_batch_rows=max_batch_rows, max_queue_age_s=60.0
    )
    with served(config) as running, kilolayer.PolicyClient(running.address, timeout_s=60) as client:
        yield client
