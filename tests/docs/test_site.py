"""The website: it builds without a warning, holds an API reference, and loads nothing from other hosts."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import kilolayer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_holds_every_public_name_with_its_docstring(site: Path) -> None:
    page = (site / "reference" / "client.html").read_text()
    for name in kilolayer.__all__:
        assert re.search(rf'id="kilolayer\.(errors\.)?{name}"', page), name
    summary = (kilolayer.PolicyClient.list_policies.__doc__ or "").partition(".")[0]
    assert summary in page
    assert 'id="training.envs.MjcfEnv"' in (site / "reference" / "environments.html").read_text()


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'(?:src|<link[^>]*href)="(https?:)?//[^"]*"', page.read_text())
        assert not loaded, page


def test_a_link_to_a_source_becomes_its_path(site: Path) -> None:
    serving = " ".join((site / "serving.html").read_text().split())
    assert "the contract (<code>protos/kilolayer/v1/policy.proto</code>)" in serving


def test_the_citation_names_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2503.14858"
