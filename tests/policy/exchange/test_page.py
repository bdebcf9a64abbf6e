"""docs/exporting.md, from a published version to each exported file: the page's commands and its code."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import bundle
from policy.bundle import Bundle
from tests.docs.blocks import ROOT, Block, blocks
from tests.policy.exchange.exports import bundle_of, run_code
from tests.samples import WITHOUT_CRITIC, policy_spec
from training.policy_command.run import main

BLOCKS = [block for block in blocks(ROOT / "docs" / "exporting.md") if "test_page.py" in block.about]
CODE = [block for block in BLOCKS if block.language == "python"]


@pytest.fixture(scope="module")
def policy() -> Bundle:
    return bundle_of(policy_spec(**WITHOUT_CRITIC))


@pytest.fixture(scope="module")
def exported(policy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command of the page writes, for a policy in the folder that it names."""
    folder = tmp_path_factory.mktemp("page")
    ((program, *words),) = [words for block in BLOCKS if block.language == "sh" for words in block.commands()]
    bundle.write(
        folder / words[1],
        2000,
        spec=policy.spec,
        params=policy.params,
        probe_state=policy.probes.state,
        probe_goal=policy.probes.goal,
        provenance={},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert (program, main(words)) == ("kilolayer-policy", 0)
    return folder / "exported"


def run(block: Block, folder: Path, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return run_code(block.text, folder, script=tmp_path / "code.py", monkeypatch=monkeypatch)


@pytest.mark.parametrize("block", [block for block in CODE if "sampled" in block.text], ids=lambda block: block.where)
def test_graphs_give_the_actions_of_the_policy(
    policy: Bundle, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: Block
) -> None:
    variables = run(block, exported, tmp_path=tmp_path, monkeypatch=monkeypatch)
    np.testing.assert_allclose(variables["action"], policy.probes.action, atol=1e-5)
    np.testing.assert_allclose(variables["sampled"], policy.probes.sampled_action, atol=1e-4)


def test_the_metadata_of_the_graph_and_the_arrays_are_those_of_the_policy(
    policy: Bundle, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata, arrays = [block for block in CODE if "sampled" not in block.text]
    variables = run(metadata, exported, tmp_path=tmp_path, monkeypatch=monkeypatch)
    assert (variables["low"], variables["high"]) == ([-4.0, -4.0], [4.0, 4.0])
    assert variables["control_period_s"] == 0.08
    variables = run(arrays, exported, tmp_path=tmp_path, monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "True True\n"
    assert variables["arrays"]["actor.output.bias"].tolist() == policy.params.actor.params["output"]["bias"].tolist()


def test_both_graphs_are_on_the_page() -> None:
    assert sum("sampled" in block.text for block in CODE) == 2
