"""A policy is written all or nothing, and only if readers would take it."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from policy import bundle
from policy.bundle import arrays
from policy.networks import PolicyParams
from policy.normalization import Normalization
from policy.quaternions import Quaternions
from policy.spec import PolicySpec
from tests.odd_names import ODD_NAMES
from tests.policy.bundles import PROBE_GOAL, PROBE_STATE, publish

REPOSITORY = Path(__file__).parents[2]


def test_a_published_version_never_changes(damaged: Path, spec: PolicySpec, params: PolicyParams) -> None:
    before = bundle.read(damaged).manifest_sha256
    with pytest.raises(FileExistsError, match="a published policy never changes"):
        publish(damaged.parent, 200, spec=spec, params=params, provenance={"seed": 8})
    assert bundle.read(damaged).manifest_sha256 == before
    assert [entry.name for entry in damaged.parent.iterdir()] == ["200"]


@pytest.mark.parametrize(
    ("network", "bias", "message"),
    [
        ("actor", [np.nan, 0, 0, 0], r"array actor\.output\.bias contains NaN or infinity, so the policy is not publ"),
        ("goal_encoder", [0, 0, -np.inf, 0, 0], r"array goal_encoder\.output\.bias contains NaN or infinity, so the"),
        ("goal_encoder", [0, 0, 3e38, 0, 0], "gives actions or energies that are NaN or infinity, so it is not publ"),
    ],
)
def test_what_is_not_finite_is_not_published(
    tmp_path: Path, spec: PolicySpec, params: PolicyParams, *, network: str, bias: list[float], message: str
) -> None:
    sound = getattr(params, network)
    output = sound.params["output"] | {"bias": np.array(bias, np.float32)}
    spoiled = params._replace(**{network: dataclasses.replace(sound, params=sound.params | {"output": output})})
    with pytest.raises(FloatingPointError, match=message):
        publish(tmp_path / "root", 1, spec=spec, params=spoiled)
    assert not (tmp_path / "root").exists()


def test_a_policy_that_readers_would_refuse_is_not_published(
    tmp_path: Path, spec: PolicySpec, params: PolicyParams
) -> None:
    swapped = params._replace(goal_encoder=params.state_action_encoder)
    shifted = params._replace(normalization=Normalization(jnp.zeros(3), jnp.ones(3)))
    turned = params._replace(quaternions=Quaternions(goal=(0,)))
    doubled = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    attempts: list[tuple[dict[str, Any], str]] = [
        ({"version": -1}, "version must be a training step, 0 or more, got -1"),
        ({"version": 10**18}, "got 1000000000000000000; it has at most 18 digits"),
        ({"params": swapped}, r"array goal_encoder\.input\.kernel is \[5, 4\] float32 where"),
        ({"params": doubled}, r"is \[.*\] float64 where"),
        ({"params": PolicyParams(params.actor)}, "array goal_encoder.* of the specification is missing"),
        ({"params": shifted}, "normalization is Normalization.* where the specification has None"),
        ({"params": turned}, r"quaternions are Quaternions\(state=\(\), goal=\(0,\)\) where the specification has"),
        ({"probe_state": PROBE_STATE[:, :2]}, r"probe_state must have shape \[rows, 3\], .*, got \[4, 2\]"),
        ({"probe_goal": PROBE_GOAL[:3]}, r"probe_goal must have shape \[rows, 2\], .*, got \[3, 2\]"),
        ({"probe_state": PROBE_STATE[:0], "probe_goal": PROBE_GOAL[:0]}, "one row or more"),
    ]
    for change, complaint in attempts:
        arguments: dict[str, Any] = {"version": 1, "params": params} | change
        with pytest.raises(ValueError, match=complaint):
            publish(tmp_path / "root", arguments.pop("version"), spec=spec, **arguments)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("step", ["arrays", "probes", "sync", "rename"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failure_in_the_middle_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
    damaged: Path,
    spec: PolicySpec,
    params: PolicyParams,
    *,
    step: str,
    error: BaseException,
) -> None:
    owner, name = {
        "arrays": (ocp.PyTreeCheckpointer, "save"),
        "probes": (np, "savez"),
        "sync": (os, "fsync"),
        "rename": (Path, "rename"),
    }[step]
    original = getattr(owner, name)

    def fail(*arguments: Any, **options: Any) -> Any:
        if step == "rename" and not arguments[0].name.startswith(".writing-"):
            return original(*arguments, **options)  # one of Orbax's own
        raise error

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(type(error)):
        publish(damaged.parent, 201, spec=spec, params=params)
    monkeypatch.undo()
    assert [entry.name for entry in damaged.parent.iterdir()] == ["200"]
    assert bundle.read(damaged).version == 200
    assert bundle.read(publish(damaged.parent, 201, spec=spec, params=params)).version == 201


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import jax, numpy as np
from policy import bundle
from policy.networks import init_policy
from policy.normalization import Normalization
from policy.quaternions import Quaternions
from policy.spec import PolicySpec
root, spec = Path(sys.argv[1]), PolicySpec.from_json(sys.argv[2])
params = jax.jit(init_policy, static_argnums=1)(jax.random.key(0), spec)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))  # above the metadata, below the arrays
try:
    probes = {"probe_state": np.ones((1, 3)), "probe_goal": np.ones((1, 2))}
    bundle.write(root, 1, spec=spec, params=params, provenance={}, **probes)
except OSError as error:
    print("refused:", error)
print("left behind:", list(root.iterdir()))
"""


def test_arrays_that_cannot_be_written_are_an_os_error(tmp_path: Path, spec: PolicySpec) -> None:
    """A limit on the size of a file stands in for a full disk: the writing library sees the system call fail."""
    wide = dataclasses.replace(spec, actor_width=64)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), wide.to_json()]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout
    assert "refused: " in output
    assert f"the policy {tmp_path}/1 cannot be written: params cannot be written: " in output
    assert "left behind: []" in output


def test_every_file_is_on_disk_before_the_version_has_its_name(
    tmp_path: Path, spec: PolicySpec, params: PolicyParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, fsync = tmp_path / "policies", os.fsync
    synced: list[tuple[Path, bool]] = []  # what, and whether the version had its name by then
    descriptors: list[int] = []

    def record(descriptor: int) -> None:
        descriptors.append(descriptor)
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), (root / "3").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    version = publish(root, 3, spec=spec, params=params)
    assert synced[-1] == (root, True)
    early = [path for path, is_named in synced if not is_named]
    (scratch,) = {root / path.relative_to(root).parts[0] for path in early}
    entries = {path.relative_to(version) for path in [version, *version.rglob("*")]}
    assert {path.relative_to(scratch) for path in early} == entries
    assert len(set(descriptors)) < len(descriptors), "each is closed, so that the next has the same number"


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_policy_in_a_folder_with_an_odd_name_is_readable(
    tmp_path: Path, spec: PolicySpec, params: PolicyParams, name: str
) -> None:
    """Orbax takes its own path for a pattern; other names may confuse it in other ways."""
    root = tmp_path / name / "policies"
    assert bundle.read(publish(root, 7, spec=spec, params=params)).version == 7
    moved = (tmp_path / "plain" / name).with_name("policies")
    moved.parent.mkdir()
    root.rename(moved)
    assert bundle.read(moved / "7").version == 7, "it does not depend on the folder it was published in"


def test_no_file_says_in_which_folder_the_policy_was_published_and_orbax_reads_its_arrays(
    tmp_path: Path, spec: PolicySpec, params: PolicyParams
) -> None:
    root = tmp_path / "home of someone"
    version = publish(root, 7, spec=spec, params=params)
    files = [path for path in version.rglob("*") if path.is_file()]
    contents = {path.relative_to(version).as_posix(): path.read_bytes() for path in files}
    assert "params/manifest.ocdbt" in contents
    assert [name for name, content in contents.items() if b"home of someone" in content] == []
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), arrays.to_tree(params))
    restored = ocp.PyTreeCheckpointer().restore(version / "params", restore_args=as_numpy)
    np.testing.assert_array_equal(restored["actor"]["blocks"]["kernel"], params.actor.params["blocks"]["kernel"])


def test_a_policy_that_cannot_be_read_back_is_not_published(
    damaged: Path, spec: PolicySpec, params: PolicyParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = arrays.save

    def lose_a_file(folder: Path, params: PolicyParams) -> None:
        save(folder, params)
        (folder / "params" / "manifest.ocdbt").unlink()

    monkeypatch.setattr(arrays, "save", lose_a_file)
    message = "the policy .*/201 cannot be written: it does not read back as it was written: .*it has no arrays"
    with pytest.raises(OSError, match=message):
        publish(damaged.parent, 201, spec=spec, params=params)
    assert bundle.versions(damaged.parent) == [200]


def test_a_removed_version_is_gone_and_the_others_stay(damaged: Path, spec: PolicySpec, params: PolicyParams) -> None:
    publish(damaged.parent, 201, spec=spec, params=params)
    bundle.remove(damaged.parent, 200)
    assert [entry.name for entry in damaged.parent.iterdir()] == ["201"]
    assert bundle.read(damaged.parent / "201").version == 201
    with pytest.raises(FileNotFoundError):
        bundle.remove(damaged.parent, 200)


PUBLISHER = """
import os, signal, sys
from pathlib import Path
import jax, numpy as np
from policy import bundle
from policy.networks import init_policy
from policy.normalization import Normalization
from policy.quaternions import Quaternions
from policy.spec import PolicySpec
root, spec, event, fragment = Path(sys.argv[1]), PolicySpec.from_json(sys.argv[2]), sys.argv[3], sys.argv[4]
params = jax.jit(init_policy, static_argnums=1)(jax.random.key(0), spec)
state, goal = np.ones((4, spec.state_dim)), np.ones((4, spec.goal_dim))

def kill_itself(name, arguments):
    if name == event and any(fragment in str(argument) for argument in arguments):
        os.kill(os.getpid(), signal.SIGKILL)

for version in (0, 1):
    bundle.write(root, version, spec=spec, params=params, probe_state=state, probe_goal=goal, provenance={})
    print(version, flush=True)
    sys.addaudithook(kill_itself)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "fragment"),
    [
        ("os.mkdir", "params"),  # the folder is there, its arrays are not
        ("open", "probes.npz"),
        ("open", "manifest.json"),  # every file is there, but not the list of their hashes
        ("os.rename", "policies/1"),  # the version is whole, and not yet in its place
    ],
)
def test_a_killed_publisher_leaves_whole_versions_only(
    event: str, fragment: str, tmp_path: Path, spec: PolicySpec, params: PolicyParams
) -> None:
    root = tmp_path / "policies"
    command = [sys.executable, "-c", PUBLISHER, str(root), spec.to_json(), event, fragment]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "0\n")
    assert len(list(root.iterdir())) == 2, "something of version 1 was written"
    assert bundle.versions(root) == [0]
    assert bundle.read(root / "0").version == 0
    publish(root, 1, spec=spec, params=params)
    assert sorted(entry.name for entry in root.iterdir()) == ["0", "1"]
