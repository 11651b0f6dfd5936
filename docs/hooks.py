"""What mkdocs does to a page of ours: a file of the docs that is named as code becomes a link to it."""

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
_NAMED = re.compile(r"(?<![\[`])`docs/([\w/.-]+\.md)`(?![\]`])")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page with links where it says `docs/NAME.md`."""
    return linked(markdown, page.file.src_uri)


def linked(markdown: str, source: str) -> str:
    """Return the page with links, of those names that are pages.

    Args:
        markdown: of the page.
        source: its path below docs, with forward slashes.
    """

    def link(found: re.Match[str]) -> str:
        name = found[1]
        if not (DOCS / name).is_file():
            return found[0]
        return f"[{found[0]}]({os.path.relpath(name, Path(source).parent)})"

    return _NAMED.sub(link, markdown)
