"""What docs/clients.md shows of a local policy, run with an exported policy."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients.exports import exported, publish
from tests.docs.blocks import ROOT, blocks


def test_the_shown_function_prints_the_version_and_the_action_in_newtons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(publish(tmp_path / "policies"), tmp_path / "exported")
    (block,) = (block for block in blocks(ROOT / "docs/clients.md") if "LocalPolicy(" in block.text)
    names: dict[str, Any] = {}
    exec(block.text.replace("timeout_s=0.5", "timeout_s=60"), names)  # the machine may be busy
    names["act_once"](folder)
    version, *force, compute_us = capsys.readouterr().out.replace("[", " ").replace("]", " ").split()
    assert version == "1000"
    assert len(force) == 2
    assert all(-4 <= float(newtons) <= 4 for newtons in force)
    assert int(compute_us) >= 0
