"""kilolayer-policy import: usage, refusals, and a server that offers what it has published."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kilolayer import PolicyClient
from policy.exchange.import_facts_template import TEMPLATE
from tests.policy.exchange.foreign_models import (
    ACTION_DIM,
    GOAL_DIM,
    NETWORK,
    STATE_DIM,
    SkipNetwork,
    random_model,
    write_facts,
)
from tests.serving.server_process import ready
from training.policy_command.run import main

NETWORK_OF_FIVE = NETWORK["jaxgcrl"] | {"n_hidden": 5}


def test_the_template_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "facts.toml"
    assert main(["import", "--template", str(path)]) == 0
    assert path.read_text() == TEMPLATE
    assert capsys.readouterr().out == f"wrote {path}; fill it, then import with --facts {path}\n"
    assert main(["import", "--template", str(path)]) == 1
    assert capsys.readouterr().err == f"error: {path} exists already, and may be filled; name a new file\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "import needs PARAMS.npz, --facts FACTS.toml, --out POLICIES, --version N, or --template FILE alone"),
        (["a.npz", "--facts", "b", "--out", "c"], "import needs --version N, or --template FILE alone"),
        (["a.npz", "--template", "b"], "--template FILE stands alone; write the facts first, then import"),
        (
            ["a.npz", "--facts", "b", "--out", "c", "--version", "-1"],
            "--version must be a training step, 0 or more, of at most 18 digits, got -1",
        ),
        (
            ["a.npz", "--facts", "b", "--out", "c", "--version", "1234567890123456789"],
            "--version must be a training step, 0 or more, of at most 18 digits, got 1234567890123456789",
        ),
    ],
)
def test_a_wrong_command_line_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_what_cannot_be_imported_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz = random_model(SkipNetwork, hidden=5, width=10).save(tmp_path / "params.npz")
    facts = write_facts(tmp_path / "facts.toml", network=NETWORK["jaxgcrl"] | {"n_hidden": 6})
    command = ["import", str(npz), "--facts", str(facts), "--out", str(tmp_path / "policies"), "--version", "3"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: {npz}: actor has 7 Dense layers, but n_hidden in [network] needs 8: 6 hidden ones and 2 at the end\n"
    )
    facts.unlink()
    assert main(command) == 1
    assert f"{facts} does not exist" in capsys.readouterr().err
    assert not (tmp_path / "policies").exists()


def test_a_pipe_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz = random_model(SkipNetwork, hidden=5, width=10).save(tmp_path / "params.npz")
    facts, pipe = write_facts(tmp_path / "facts.toml", network=NETWORK_OF_FIVE), tmp_path / "pipe"
    os.mkfifo(pipe)
    for files in ((pipe, facts), (npz, pipe)):
        words = ["import", files[0], "--facts", files[1], "--out", tmp_path / "policies", "--version", "3"]
        assert main([str(word) for word in words]) == 1
        assert capsys.readouterr().err == f"error: {pipe}: not a plain file\n"


@pytest.mark.slow
def test_an_imported_policy_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(SkipNetwork, hidden=5, width=10, use_ln=True)
    npz = model.save(tmp_path / "params.npz")
    facts = write_facts(tmp_path / "facts.toml", network=NETWORK_OF_FIVE)
    root = tmp_path / "policies"
    command = ["import", str(npz), "--facts", str(facts), "--out", str(root), "--version", "50000"]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["path"], said["version"], said["spec"]["actor_depth"]) == (str(root / "50000"), 50000, 4)
    assert main(command) == 1
    assert "already published" in capsys.readouterr().err

    random = np.random.default_rng(5)
    state, goal, action = (
        random.uniform(-1, 1, size=(2, size)).astype(np.float32) for size in (STATE_DIM, GOAL_DIM, ACTION_DIM)
    )
    expected = model.outputs(state, goal, action=action)
    with ready("--policies", str(root)) as (_, address, _), PolicyClient(address, timeout_s=60) as client:
        description = client.describe()
        assert (description.name, description.version) == ("ant-import", "50000")
        assert description.manifest_sha256 == said["manifest_sha256"]
        np.testing.assert_allclose(client.act(state, goal).action, expected.action(), atol=2e-5)
        scored = client.score(state, action, goal=goal).energy
        np.testing.assert_allclose(scored, expected.energy("norm"), atol=2e-5 * np.abs(expected.energy("norm")).max())
