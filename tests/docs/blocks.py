"""The code blocks of the documentation, and the pages they are on."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "clients" / "python" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>no-run|file|slow): (?P<about>.+?) -->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$"
    r"(?:\n\nThis prints:\n\n```text\n(?P<output>.*?)^```$)?",
    flags=re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced code block."""

    page: str  # relative to the repository
    line: int  # of the opening fence
    language: str
    text: str
    mark: str  # "no-run", "slow" or "file": the comment above the block; "" without one
    about: str  # what the comment says: why the block is not run or slow, or the file that it shows
    output: str = ""  # what the page says that the block prints; "" if it says nothing

    @property
    def where(self) -> str:
        """The place, for the name of a test."""
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The commands of a shell block as words, without comments and variables set for one command."""
        lines = self.text.replace("\\\n", " ").splitlines()
        split = (shlex.split(line, comments=True) for line in lines)
        return [list(_without_assignments(words)) for words in split if words]


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text, name = page.read_text(), page.relative_to(ROOT).as_posix()
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(name, line, **{part: said or "" for part, said in match.groupdict().items()}))
    return found


def every_block(language: str) -> list[Block]:
    """The code blocks of all pages in one language."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def _without_assignments(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words
