"""A policy on disk: written all or nothing, and refused by name when anything about it is not as published."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from policy import bundle
from policy.acting import act
from policy.bundle import BundleError, arrays, manifest
from policy.networks import PolicyParams, init_policy
from policy.spec import PolicySpec

REPOSITORY = Path(__file__).parents[2]
PROBE_STATE = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
PROBE_GOAL = np.linspace(1, -1, 8, dtype=np.float32).reshape(4, 2)


def publish(root: Path, version: int, *, spec: PolicySpec, params: PolicyParams, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"probe_state": PROBE_STATE, "probe_goal": PROBE_GOAL, "provenance": {"seed": 7}}
    return bundle.write(root, version, spec=spec, params=params, **(arguments | changes))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, spec: PolicySpec, params: PolicyParams) -> Path:
    """A root with one version, 200; the tests leave it as it is."""
    root = tmp_path_factory.mktemp("published")
    publish(root, 200, spec=spec, params=params)
    return root


@pytest.fixture
def damaged(published: Path, tmp_path: Path) -> Path:
    """A copy of the published version, for a test to damage."""
    return shutil.copytree(published / "200", tmp_path / "root" / "200")


def refusal(path: Path) -> BundleError:
    with pytest.raises(BundleError) as error:
        bundle.read(path)
    assert error.value.path == path
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000
    return error.value


def recompute_manifest(path: Path) -> None:
    """What someone would do who changes a bundle on purpose."""
    files = {name: manifest.fingerprint(file) for name, file in manifest.files(path) if name != "manifest.json"}
    (path / "manifest.json").write_text(json.dumps({"format": 2, "files": files}))


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def test_a_published_policy_is_read_back_bit_for_bit(published: Path, spec: PolicySpec, params: PolicyParams) -> None:
    read = bundle.read(published / "200")
    assert (read.path, read.version, read.spec, read.provenance) == (published / "200", 200, spec, {"seed": 7})
    assert type(read.params) is PolicyParams
    assert jax.tree.structure(read.params) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(read.params), jax.tree.leaves(params), strict=True):
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == np.float32
        assert ours.tobytes() == np.asarray(theirs).tobytes()
    np.testing.assert_array_equal(read.probes.state, PROBE_STATE)
    np.testing.assert_array_equal(read.probes.goal, PROBE_GOAL)
    np.testing.assert_allclose(read.probes.action, jax.jit(act)(params, PROBE_STATE, PROBE_GOAL), atol=1e-6)


def test_the_digest_names_the_contents(published: Path, damaged: Path, params: PolicyParams, spec: PolicySpec) -> None:
    assert bundle.read(damaged).manifest_sha256 == bundle.read(published / "200").manifest_sha256
    other = publish(damaged.parent, 201, spec=spec, params=params, provenance={"seed": 8})
    assert bundle.read(other).manifest_sha256 != bundle.read(damaged).manifest_sha256


def test_versions_are_sorted_as_numbers_and_nothing_else_is_listed(tmp_path: Path) -> None:
    for name in ("0", "9", "10", "007", "-1", "latest", "1e3", "٣", ".publishing-11-abcd"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file")
    assert bundle.versions(tmp_path) == [0, 9, 10]
    assert bundle.versions(tmp_path / "absent") == []


def test_a_published_version_never_changes(damaged: Path, spec: PolicySpec, params: PolicyParams) -> None:
    before = bundle.read(damaged).manifest_sha256
    with pytest.raises(FileExistsError, match="a published policy never changes"):
        publish(damaged.parent, 200, spec=spec, params=params, provenance={"seed": 8})
    assert bundle.read(damaged).manifest_sha256 == before
    assert [entry.name for entry in damaged.parent.iterdir()] == ["200"]


def test_every_flipped_bit_is_noticed(published: Path, damaged: Path) -> None:
    files = [file for file in damaged.rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert len(files) > 8
    rng = random.Random(0)
    for file in files:
        original = file.read_bytes()
        for position in {0, len(original) - 1, rng.randrange(len(original))}:
            flipped = bytearray(original)
            flipped[position] ^= 1 << rng.randrange(8)
            file.write_bytes(flipped)
            error = refusal(damaged)
            assert error.reason == "hash"
            assert file.relative_to(damaged).as_posix() in str(error)
        file.write_bytes(original)
    assert bundle.read(damaged).version == 200


def test_every_flipped_byte_of_the_manifest_is_noticed(damaged: Path) -> None:
    manifest = damaged / "manifest.json"
    original = manifest.read_bytes()
    for position in (*range(200), *range(200, len(original), 11)):
        flipped = bytearray(original)
        flipped[position] ^= 1
        manifest.write_bytes(flipped)
        assert refusal(damaged).reason in {"manifest", "files", "hash"}


def test_truncated_grown_and_missing_files_are_noticed(damaged: Path) -> None:
    for file in [file for file in damaged.rglob("*") if file.is_file()]:
        original = file.read_bytes()
        own = file.name == "manifest.json" and file.parent == damaged
        file.write_bytes(original[: len(original) // 2])
        assert refusal(damaged).reason == ("manifest" if own else "hash")
        if not own:
            file.write_bytes(original + b"\0")
            assert refusal(damaged).reason == "hash"
        file.unlink()
        assert refusal(damaged).reason == ("manifest" if own else "files")
        file.write_bytes(original)
    assert bundle.read(damaged).version == 200


@pytest.mark.parametrize("name", ["params.pkl", "params/d/more", ".hidden", "policy.json.bak"])
def test_a_foreign_file_is_noticed(damaged: Path, name: str) -> None:
    (damaged / name).write_bytes(b"\x80\x04N.")  # None, pickled
    error = refusal(damaged)
    assert error.reason == "files"
    assert f"{name} does not belong" in str(error)


def test_a_foreign_file_is_noticed_even_if_the_manifest_names_it(damaged: Path) -> None:
    (damaged / "params.pkl").write_bytes(b"\x80\x04N.")
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "files"


@pytest.mark.parametrize("name", ["policy.json", "probes.npz", "manifest.json", "params/_METADATA"])
def test_a_link_is_refused_even_to_the_same_contents(damaged: Path, tmp_path: Path, name: str) -> None:
    (damaged / name).rename(tmp_path / "elsewhere")
    (damaged / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(damaged).reason == ("manifest" if name == "manifest.json" else "files")


def test_a_linked_folder_is_refused(damaged: Path, tmp_path: Path) -> None:
    (damaged / "params").rename(tmp_path / "elsewhere")
    (damaged / "params").symlink_to(tmp_path / "elsewhere")
    assert refusal(damaged).reason == "files"


def test_a_version_that_is_a_link_is_refused_since_its_number_may_be_that_of_another(damaged: Path) -> None:
    linked = damaged.parent / "3000"
    linked.symlink_to(damaged)
    error = refusal(linked)
    assert error.reason == "files"
    assert "the folder is a link" in str(error)


@pytest.mark.parametrize("name", ["policy.json", "manifest.json"])
def test_a_pipe_is_refused_without_waiting_for_a_writer(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    os.mkfifo(damaged / name)
    assert refusal(damaged).reason == ("manifest" if name == "manifest.json" else "files")


@pytest.mark.parametrize("name", ["007", "latest", "-1", "200.bak"])
def test_a_folder_that_names_no_version_is_refused(damaged: Path, name: str) -> None:
    assert refusal(damaged.rename(damaged.parent / name)).reason == "missing"


def test_an_absent_version_is_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "5").reason == "missing"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 2, "files": []}',
        '{"format": 2, "files": {"policy.json": 5}}',
        '{"format": 2, "files": {"policy.json": {"size": 5}}}',
        '{"format": 1, "files": {}}',
        pytest.param("[" * 100_000, id="nested too deep"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(damaged: Path, text: str) -> None:
    (damaged / "manifest.json").write_text(text)
    assert refusal(damaged).reason == "manifest"


@pytest.mark.parametrize("size", ["Infinity", "-1", '"12"', "null", "[]"])
def test_a_manifest_with_an_impossible_size_is_refused(damaged: Path, size: str) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["files"]["policy.json"]["size"] = "SIZE"
    (damaged / "manifest.json").write_text(json.dumps(manifest).replace('"SIZE"', size))
    assert refusal(damaged).reason == "hash"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda stored: stored.update(format=1), "format 1, but this version reads format 2"),
        (lambda stored: stored.pop("spec"), "spec"),
        (lambda stored: stored.pop("provenance"), "provenance"),
        (lambda stored: stored.update(spec=[]), "policy.json"),
        (lambda stored: stored["spec"].pop("name"), "lacks name"),
        (lambda stored: stored["spec"].update(actor_depth=6), "try 4 or 8"),
        (lambda stored: stored["spec"].update(control_period_s=10**400), "fits into a float"),
    ],
)
def test_a_description_that_cannot_be_met_is_refused(
    damaged: Path, change: Callable[[dict[str, Any]], Any], complaint: str
) -> None:
    change_json(damaged / "policy.json", change)
    recompute_manifest(damaged)
    error = refusal(damaged)
    assert error.reason == "spec"
    assert complaint in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"actor_width": 16},
        {"actor_depth": 8},
        {"critic_depth": 4},
        {"representation_dim": 6},
        {"goal_names": ["x [m]"]},
        {"actor_width": 10**12},
        {"actor_depth": 4 * 10**30},
        *(
            {size: number}
            for size in ("actor_width", "representation_dim")
            for number in (2**31, 2**63, 10**30, 10**400)
        ),
    ],
    ids=lambda changes: f"{changes!s:.40}",
)
def test_arrays_that_do_not_fit_the_specification_are_refused(damaged: Path, changes: dict[str, Any]) -> None:
    change_json(damaged / "policy.json", lambda stored: stored["spec"].update(changes))
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "arrays"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda tree: tree | {"actor": tree["goal_encoder"]}, id="another network"),
        pytest.param(lambda tree: tree | {"optimizer": np.zeros(3, np.float32)}, id="one more array"),
        pytest.param(lambda tree: {"actor": tree["actor"]}, id="no critic"),
        pytest.param(lambda tree: jax.tree.map(lambda leaf: leaf.astype(np.float16), tree), id="another type"),
    ],
)
def test_other_arrays_are_refused(damaged: Path, params: PolicyParams, make: Callable[[Any], Any]) -> None:
    tree = jax.tree.map(np.asarray, arrays.to_tree(params))
    shutil.rmtree(damaged / "params")
    ocp.PyTreeCheckpointer().save(damaged / "params", make(tree))
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "arrays"


def test_an_array_declared_larger_than_any_memory_is_refused_before_it_is_read(damaged: Path) -> None:
    base = f"file://{damaged / 'params'}/"
    stored = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": "actor.input.kernel/"}}
    array = tensorstore.open(stored).result()
    array.resize(exclusive_max=[10**6, 10**6], resize_metadata_only=True).result()
    recompute_manifest(damaged)
    error = refusal(damaged)
    assert error.reason == "arrays"
    assert "array actor.input.kernel is ((1000000, 1000000), 'float32')" in str(error)


def test_a_folder_without_arrays_is_refused(damaged: Path) -> None:
    shutil.rmtree(damaged / "params")
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "arrays"


def test_the_arrays_of_another_policy_miss_the_probes(damaged: Path, spec: PolicySpec) -> None:
    stranger = jax.jit(init_policy, static_argnums=1)(jax.random.key(99), spec)
    other = publish(damaged.parent, 1, spec=spec, params=stranger)
    shutil.rmtree(damaged / "params")
    shutil.copytree(other / "params", damaged / "params")
    recompute_manifest(damaged)
    error = refusal(damaged)
    assert error.reason == "probes"
    assert "actions differ from the published ones by" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"action": np.full((4, 2), np.nan, np.float32)}, id="not a number"),
        pytest.param({"state": PROBE_STATE + 1}, id="another state"),
        pytest.param({"goal": PROBE_GOAL[:, :1]}, id="too narrow"),
        pytest.param({"goal": PROBE_GOAL[:2]}, id="too few"),
        pytest.param({"state": PROBE_STATE[0]}, id="one axis"),
        pytest.param({"action": np.array([["a", "b"]] * 4)}, id="text"),
        pytest.param({"action": np.zeros((4, 2))}, id="float64"),
        pytest.param({"action": np.array([[None] * 2] * 4)}, id="pickled objects"),
        pytest.param(
            {
                name: np.zeros((0, width), np.float32)
                for name, width in zip(("state", "goal", "action"), (3, 2, 2), strict=True)
            },
            id="no row",
        ),
    ],
)
def test_probes_that_do_not_fit_are_refused(damaged: Path, change: dict[str, np.ndarray]) -> None:
    with np.load(damaged / "probes.npz") as stored:
        probes = dict(stored)
    np.savez(damaged / "probes.npz", **(probes | change))  # type: ignore[arg-type]
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "probes"


@pytest.mark.parametrize("contents", [b"", b"PK\x03\x04 not a zip archive", b"\x80\x04N."])
def test_probes_that_are_no_archive_are_refused(damaged: Path, contents: bytes) -> None:
    (damaged / "probes.npz").write_bytes(contents)
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "probes"


def test_a_probe_missing_from_the_archive_is_refused(damaged: Path) -> None:
    np.savez(damaged / "probes.npz", state=PROBE_STATE, goal=PROBE_GOAL)
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "probes"


def test_actions_that_are_not_finite_are_not_published(tmp_path: Path, spec: PolicySpec, params: PolicyParams) -> None:
    kernel = np.asarray(params.actor.output.kernel).copy()
    kernel[0, 0] = np.nan
    spoiled = params._replace(
        actor=dataclasses.replace(params.actor, output=params.actor.output._replace(kernel=kernel))
    )
    with pytest.raises(ValueError, match="NaN or infinity, so it is not published"):
        publish(tmp_path / "root", 1, spec=spec, params=spoiled)
    assert not (tmp_path / "root").exists()


def test_a_policy_that_readers_would_refuse_is_not_published(
    tmp_path: Path, spec: PolicySpec, params: PolicyParams
) -> None:
    swapped = params._replace(goal_encoder=params.state_action_encoder)
    doubled = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    attempts: list[tuple[dict[str, Any], str]] = [
        ({"version": -1}, "version must be a training step, 0 or more, got -1"),
        ({"params": swapped}, r"array goal_encoder\.input\.kernel is \(\(5, 4\), 'float32'\) where"),
        ({"params": doubled}, "'float64'"),
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
        if step == "rename" and not arguments[0].name.startswith(".publishing-"):
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
    assert "params cannot be written: " in output
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


PUBLISHER = """
import os, signal, sys
from pathlib import Path
import jax, numpy as np
from policy import bundle
from policy.networks import init_policy
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


def test_loading_again_and_again_keeps_no_threads_and_no_files(published: Path) -> None:
    import psutil

    process = psutil.Process()
    bundle.read(published / "200")
    before = process.num_threads(), process.num_fds()
    for _ in range(10):
        bundle.read(published / "200")
    after = process.num_threads(), process.num_fds()
    assert after[0] <= before[0] + 4  # pools of the libraries may still be filling
    assert after[1] <= before[1]
