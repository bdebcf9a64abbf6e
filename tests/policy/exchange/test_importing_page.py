"""The lines that the page on importing shows make a file that can be imported."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flax.core import freeze

from policy.exchange import foreign_layouts, import_facts
from tests.docs.blocks import ROOT, blocks
from tests.policy.exchange.foreign_models import NETWORK, BlockNetwork, random_model, write_facts


@pytest.mark.parametrize("frozen", [False, True], ids=["dict", "FrozenDict of an older flax"])
def test_the_shown_lines_save_a_checkpoint(tmp_path: Path, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both projects store (log-alpha, actor, encoders), each network with its "params"."""
    model = random_model(BlockNetwork, depth=4, width=12)
    actor, *encoders = (freeze(variables) if frozen else variables for variables in model.variables.values())
    critic = dict(zip(("sa_encoder", "g_encoder"), encoders, strict=True))
    checkpoint: tuple[Any, ...] = ({"log_alpha": np.zeros((), np.float32)}, actor, critic)
    for name in ("jaxgcrl", "jaxgcrl.agents", "jaxgcrl.agents.crl", "jaxgcrl.agents.crl.crl"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["jaxgcrl.agents.crl.crl"], "load_params", lambda _: checkpoint, raising=False)
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks(ROOT / "docs" / "importing.md") if block.language == "python")
    exec(block.text, {})
    known = import_facts.read(write_facts(tmp_path / "facts.toml", network=NETWORK["scaling-crl"]))
    read = foreign_layouts.read(tmp_path / "params.npz", known)
    assert np.array_equal(read.actor.heads[1].bias, model.variables["actor"]["params"]["Dense_6"]["bias"])
    assert read.goal_encoder is not None
    third = model.variables["g_encoder"]["params"]["Dense_2"]["kernel"]
    assert np.array_equal(read.goal_encoder.hidden[2].kernel, third)
