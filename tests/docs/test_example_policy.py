"""The policy that ships with the repository: small, as training published it, and good enough for the demonstration."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest

from policy import bundle, published
from policy.acting import act
from scripts.demo import MIN_STAY_RATE
from tests.docs.blocks import ROOT, Block, blocks
from tests.serving.server_process import ready

NAME = "docs/examples/point_u_maze"
FOLDER = ROOT / NAME
CARD = FOLDER / "README.md"
MOST_BYTES = 1_000_000
PAGES = (ROOT / "README.md", CARD)  # that show how to serve it and how to drive it
AN_ABSOLUTE_PATH = re.compile(rb"(?:^|[\"'\s=])/[\w.-]+/[\w.-]+")


@pytest.fixture(scope="module")
def example() -> bundle.Bundle:
    """The only version, read as a server reads it: every file has the hash of the manifest, and the probes hold."""
    (version,) = published.versions(FOLDER)
    return bundle.read(FOLDER / str(version))


def files() -> dict[str, Path]:
    """The files of the version and the card."""
    return {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.is_file()}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout


def shown(page: Path) -> Block:
    """The block of a page that serves the policy and drives it."""
    (block,) = (block for block in blocks(page) if f"--policies {NAME}" in block.text)
    return block


def test_it_is_a_policy_of_committed_code_with_a_critic(example: bundle.Bundle) -> None:
    spec, provenance = example.spec, example.provenance
    assert (spec.name, spec.environment, spec.critic) == ("point_u_maze", "point_u_maze", "energy")
    assert re.fullmatch("[0-9a-f]{40}", provenance["commit"])
    assert (provenance["dirty"], provenance["diff"], provenance["earlier"]) == (False, None, [])
    assert provenance["versions"].keys() >= {"python", "jax", "kilolayer-stack"}
    assert provenance["metrics"]["eval/stay"] >= MIN_STAY_RATE


def test_it_is_small() -> None:
    sizes = {name: path.stat().st_size for name, path in files().items()}
    assert sum(sizes.values()) < MOST_BYTES, sizes


def test_no_file_has_a_path_of_the_machine_that_trained_it() -> None:
    assert AN_ABSOLUTE_PATH.search(b'"out": "/home/someone/runs"')  # it would be noticed
    assert AN_ABSOLUTE_PATH.search(b"successful to /tmp/runs/policies")
    assert [name for name, path in files().items() if AN_ABSOLUTE_PATH.search(path.read_bytes())] == []


def test_git_changes_no_byte_of_it_where_it_converts_line_ends(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "core.autocrlf", "true")
    git(tmp_path, "config", "core.safecrlf", "false")
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    shutil.copytree(FOLDER, tmp_path / NAME)
    (tmp_path / "converted.txt").write_bytes(b"a line\n")
    git(tmp_path, "add", "--force", ".")
    git(tmp_path, "commit", "--quiet", "--message=all")
    shutil.rmtree(tmp_path / NAME)
    (tmp_path / "converted.txt").unlink()
    git(tmp_path, "checkout", "--quiet", "--", ".")
    assert (tmp_path / "converted.txt").read_bytes() == b"a line\r\n"
    changed = {name for name, path in files().items() if (tmp_path / NAME / name).read_bytes() != path.read_bytes()}
    assert changed == {"README.md", "driven.json"}


@pytest.mark.parametrize(
    ("position", "goal", "axis", "sign"),
    [
        ((1, 1), (1, 3), 1, +1),
        ((2, 3), (3, 3), 0, +1),
        ((2, 3), (1, 3), 0, -1),
        ((3, 3), (3, 1), 1, -1),
        ((1, 1), (3, 1), 1, +1),  # a wall is between them: the way leads along y, around its end
    ],
)
def test_a_ball_at_rest_is_pushed_along_the_way_to_its_goal(
    example: bundle.Bundle, position: tuple[float, float], goal: tuple[float, float], axis: int, sign: int
) -> None:
    action = act(example.params, jnp.array([[*position, 0.0, 0.0]]), jnp.array([goal], dtype=jnp.float32))
    assert sign * float(action[0, axis]) > 0.5, np.asarray(action)


def test_the_card_is_one_that_the_hub_reads_and_gives_the_command_that_made_it(example: bundle.Bundle) -> None:
    card = huggingface_hub.ModelCard.load(CARD)
    assert card.data.to_dict().items() >= {"license": "apache-2.0", "library_name": "kilolayer"}.items()
    commands = [words for block in blocks(CARD) for words in block.commands()]
    assert ["python", *example.provenance["command"].split()] in commands
    assert f"version {example.version}" in card.text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_pages_show_the_commands_that_are_tested(page: Path) -> None:
    assert shown(page).commands() == [
        ["python", "serving/run.py", "--policies", NAME],
        ["python", "clients/sim/run.py", "--env", "point_u_maze"],
    ]


@pytest.mark.slow
def test_the_served_policy_reaches_the_gate_of_the_demonstration(example: bundle.Bundle, tmp_path: Path) -> None:
    _, drive = shown(CARD).commands()
    with ready("--policies", str(FOLDER), "--max-queue-age-s", "60") as (_, address, _):  # the machine may be busy
        gate = ["--min-stay-rate", str(MIN_STAY_RATE), "--out", str(tmp_path)]
        command = [sys.executable, *drive[1:], "--address", address, "--timeout-s", "60", *gate]
        driven = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert driven.returncode == 0, driven.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["episodes"], summary["missed"], summary["diverged"]) == (128, 0, 0)
    assert summary["versions"] == {str(example.version): summary["requests"]}
