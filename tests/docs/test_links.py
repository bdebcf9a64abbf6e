"""Links lead somewhere, their addresses are well formed, and tables are whole. Nothing is downloaded."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.docs.blocks import PAGES, ROOT

LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
ALL_PAGES = (*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks" / "results").glob("*.md")))


def text_of(page: Path) -> str:
    """The text without code."""
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=[page.relative_to(ROOT).as_posix() for page in ALL_PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in (match["target"] for match in LINK.finditer(text_of(page))):
        if ":" in target:
            address = urlsplit(target)
            assert (address.scheme, bool(address.hostname)) == ("https", True), f"{page}: {target}"
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target} does not exist"
        assert not anchor or anchor in anchors(file), f"{page}: {target} has no such heading"


@pytest.mark.parametrize("page", ALL_PAGES, ids=[page.relative_to(ROOT).as_posix() for page in ALL_PAGES])
def test_each_row_of_a_table_is_on_one_line(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    broken = [line for line in lines if line.startswith("|") != line.endswith("|") or line == "|"]
    assert not broken, "\n".join(broken)


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load(navigation())))
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


def navigation() -> str:
    """The part of mkdocs.yml that lists the pages."""
    return (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
