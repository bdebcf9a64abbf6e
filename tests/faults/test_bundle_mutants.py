"""Every damaged policy is refused by name, with its reason, and the sound version next to it is served."""

import re
import shutil
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kilolayer import PolicyClient
from policy import bundle
from policy.bundle import BundleError
from serving.errors import StartupError
from serving.policies.store import load_all
from tests.faults.bundle_mutator import (
    array_mutants,
    array_names,
    file_mutants,
    harmless_links,
    match_hashes,
    one_of_each_kind,
)
from tests.faults.supervised import Supervised, serve_command
from tests.serving.sources import policy_source

REASONS = {"manifest", "files", "hash", "spec", "arrays", "probes"}


def test_the_mutator_names_every_file_and_every_array(policies: Path) -> None:
    version = policies / "1000"
    names = [mutant.name for mutant in file_mutants(version)]
    assert len(set(names)) == len(names)
    for file in (path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()):
        for damage in ("flip a bit of byte 0 of {}", "truncate {} to 0 bytes", "delete {}", "hard link {} to other"):
            assert any(name.startswith(damage.format(file)) for name in names)
    assert "swap policy.json and probes.npz" in names
    arrays = array_names(version)
    assert len(arrays) == 3 * 10  # of the actor and two encoders: kernels, biases and layer norms
    assert {"actor.input.kernel", "goal_encoder.output.bias"} <= set(arrays)
    assert len(list(array_mutants(version))) == 5 * len(arrays) + 2 * 5  # five arrays of probes


def test_matching_hashes_alone_are_no_damage(policies: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(policies / "1000", tmp_path / "1000"))
    match_hashes(copy)
    assert bundle.read(copy).version == 1000


def test_truncated_arrays_with_matching_hashes_are_named_and_libraries_log_no_error(
    policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a publisher that hashes files which another process has replaced meanwhile."""
    unraisable: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: unraisable.append(str(error.exc_value)))
    copy = Path(shutil.copytree(policies / "1000", tmp_path / "1000"))
    for file in (copy / "params" / "ocdbt.process_0" / "d").iterdir():
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    match_hashes(copy)
    for _ in range(3):  # each read gives the threads of the one before it time to fail
        with pytest.raises(BundleError) as caught:
            bundle.read(copy)
        assert caught.value.reason == "arrays"
        expected = r"array [a-z_]+\.blocks\.kernel cannot be read: its data is missing or damaged \(OUT_OF_RANGE\)"
        assert re.fullmatch(expected, caught.value.detail)
    assert unraisable == []


def test_links_to_the_same_content_inside_are_no_damage(policies: Path, tmp_path: Path) -> None:
    version = policies / "1000"
    expected = bundle.read(version).manifest_sha256
    links = list(harmless_links(version))
    assert len(links) == sum(1 for _ in version.rglob("*"))
    single = [[link] for link in links if link.name.split()[1] in ("manifest.json", "params", "params/d")]
    assert len(single) == 3
    for number, together in enumerate([*single, reversed(links)]):  # what is in a folder before the folder itself
        folder = tmp_path / str(number) / "policies"
        shutil.copytree(version, folder / "1000")
        for link in together:
            link.apply(folder / "1000")
        loaded = load_all([policy_source(folder)], [[1000]], on_rejected=pytest.fail)
        assert loaded["point_u_maze"].manifest_sha256 == expected
    linked = [path.is_symlink() for path in (tmp_path / "3" / "policies" / "1000").iterdir()]
    assert linked == [True] * 4


def test_one_mutant_of_each_kind_is_refused_by_name(policies: Path, tmp_path: Path) -> None:
    mutants = one_of_each_kind(policies / "1000")
    assert len(mutants) >= 12
    for number, mutant in enumerate(mutants):
        folder = tmp_path / str(number) / "policies"
        shutil.copytree(policies / "1000", folder / "1000")
        mutant.apply(folder / "1000")
        reasons: list[str] = []
        with pytest.raises(StartupError) as caught:
            load_all([policy_source(folder)], [[1000]], on_rejected=reasons.append)
        assert len(reasons) == 1, mutant
        assert reasons[0] in REASONS, mutant
        assert str(caught.value).startswith(f"version 1000 of point_u_maze cannot be served: {folder / '1000'}"), mutant


@pytest.mark.slow
def test_a_server_refuses_every_mutant_once_by_name_and_serves_the_sound_version(
    policies: Path, tmp_path: Path
) -> None:
    version, folder = policies / "1000", tmp_path / "policies"
    shutil.copytree(version, folder / "1000")
    mutants = dict(enumerate((*file_mutants(version), *array_mutants(version)), start=1001))
    for number, mutant in mutants.items():
        mutant.apply(Path(shutil.copytree(version, folder / str(number))))
    # Alone, the sound version gives the same action.
    expected = bundle.read(version).probes
    # Following would check the newer versions once more, a second later.
    with Supervised(serve_command(folder, max_batch_rows=8, follow=False), log=tmp_path / "log") as server:
        address, metrics = server.wait_for(r"ready: grpc=(\S+) metrics=(\S+) admin=\S+ policies=point_u_maze@1000")
        with PolicyClient(address, timeout_s=60) as client:
            answer = client.act(expected.state, expected.goal)
        with urllib.request.urlopen(metrics, timeout=120) as page:
            text = page.read().decode()
    np.testing.assert_allclose(answer.action, expected.action, atol=1e-5)
    assert answer.version == "1000"
    skipped = re.findall(r"WARNING skipping version (\d+): \S+ is not a usable policy \((\w+)\)", server.logged())
    named = Counter(int(number) for number, _ in skipped)
    assert not [mutant for number, mutant in mutants.items() if named[number] != 1]
    assert set(named) == set(mutants)
    counted = re.findall(r'^kilolayer_bundles_rejected_total{reason="(\w+)"} (\S+)$', text, re.MULTILINE)
    assert {reason: float(count) for reason, count in counted} == Counter(reason for _, reason in skipped)
    assert set(Counter(reason for _, reason in skipped)) == {"manifest", "files", "hash", "arrays", "probes"}
