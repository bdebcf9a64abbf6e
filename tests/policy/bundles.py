"""Publish a small policy, damage it, and read why it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import bundle, verified_folder
from policy.bundle import BundleError
from policy.networks import PolicyParams
from policy.spec import PolicySpec

PROBE_STATE = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


PROBE_GOAL = np.linspace(1, -1, 8, dtype=np.float32).reshape(4, 2)


def publish(root: Path, version: int, *, spec: PolicySpec, params: PolicyParams, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"probe_state": PROBE_STATE, "probe_goal": PROBE_GOAL, "provenance": {"seed": 7}}
    return bundle.write(root, version, spec=spec, params=params, **(arguments | changes))


def refusal(path: Path) -> BundleError:
    with pytest.raises(BundleError) as error:
        bundle.read(path)
    assert error.value.path == path
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000
    require_one_sentence(error.value)
    return error.value


def require_one_sentence(error: BundleError) -> None:
    """Problem and advice are parts of a sentence, so a caller may put other advice in the place of ours."""
    assert str(error) == f"{error.problem}; {error.advice}"
    for part in (error.problem, error.advice):
        assert not part.endswith(".")
        assert "\n" not in part
    assert error.advice == {
        "missing": "choose the folder of a published version, whose name is a number",
    }.get(error.reason, "copy it again from where it was published, or use another version")


def recompute_manifest(path: Path) -> None:
    """What someone would do who changes a bundle on purpose; like earlier builds, without a hash of the manifest."""
    files = {
        name: verified_folder.fingerprint(file) for name, file in verified_folder.files(path) if name != "manifest.json"
    }
    (path / "manifest.json").write_text(json.dumps({"format": bundle.FORMAT_VERSION, "files": files}) + "\n")


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))
