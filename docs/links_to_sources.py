"""mkdocs hook: links from a page to files outside docs/, such as sources and records.

On a code host these links open the file. The built site does not hold the file, so there the link becomes the file's
path. A link to a file that does not exist stops the build.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)\s#]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page's Markdown with every link to a file outside docs/ replaced by its text and the file's path.

    Raises:
        PluginError: there is no such file in the repository.
    """
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def replace(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link["target"]))
        if path.startswith("docs/"):
            return link[0]
        if not (_ROOT / path).exists():
            raise PluginError(f"docs/{page.file.src_uri} links to {path}, which does not exist")
        is_name = link["text"].strip("`") in {path, posixpath.basename(path)}
        return f"`{path}`" if is_name else f"{link['text']} (`{path}`)"

    return _LINK.sub(replace, markdown)
