"""Policies with random parameters for exports, in memory, and what is in a model card."""

import re
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from markdown_it import MarkdownIt

from policy.bundle import Bundle, probes
from policy.networks import PolicyParams, init_policy
from policy.spec import PolicySpec


def random_params(spec: PolicySpec) -> PolicyParams:
    """Parameters without special values: fresh ones have biases of 0 and scales of 1."""
    random = np.random.default_rng(1)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return random.normal(size=leaf.shape, scale=0.3).astype(np.float32)

    shapes = jax.eval_shape(lambda: init_policy(jax.random.key(0), spec))
    filled = {name: jax.tree.map(fill, part) for name, part in shapes._asdict().items() if name != "normalization"}
    normalization = shapes.normalization
    if normalization is not None:
        normalization = type(normalization).from_spec(spec)
    return PolicyParams(**filled, normalization=normalization)


def bundle_of(spec: PolicySpec, *, provenance: Any = None) -> Bundle:
    """A policy as `policy.bundle.read` returns it, with 5 probes."""
    random, params = np.random.default_rng(3), random_params(spec)
    state, goal = (random.normal(size=(5, size)).astype(np.float32) for size in (spec.state_dim, spec.goal_dim))
    return Bundle(
        path=Path("policies/2000"),
        version=2000,
        spec=spec,
        params=params,
        probes=probes.compute(params, spec, state=state, goal=goal),
        provenance=provenance or {},
        manifest_sha256="ab" * 32,
    )


def cells(text: str) -> list[list[str]]:
    """The cells of the bodies of all tables, as a reader sees them; anything but plain text in a cell fails."""
    rows: list[list[str]] = []
    in_cell = False
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "tr_open":
            rows.append([])
        if token.type in {"td_open", "td_close"}:
            in_cell = token.type == "td_open"
        elif in_cell:
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}, token.content
            rows[-1].append("".join(child.content for child in children))
    return [row for row in rows if row]


def code_under(text: str, heading: str) -> str:
    """The first piece of Python under a heading of a card."""
    found = re.search(r"^```python\n(.*?)^```$", text.partition(f"# {heading}\n")[2], flags=re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def run_code(code: str, folder: Path, *, script: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run `code` in `folder`; return its variables."""
    script.write_text(code)
    monkeypatch.chdir(folder)
    return runpy.run_path(str(script))
