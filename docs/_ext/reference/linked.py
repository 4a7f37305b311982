"""What the text of a page leads to: files beside docs/, which get pages of the site, and pages by pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from sphinx.application import Sphinx

from reference import rst

_LINK = re.compile(r"(?<=\]\()\.\./([\w./-]+)")
# A line of a toctree that is a pattern; Sphinx warns of one that no page matches.
_PATTERN = re.compile(r"^([\w/]+\*)\n", re.M)
# These have pages of their own.
_PAGES = {"CHANGELOG.md": "changelog.md", "benchmarks/README.md": "benchmarks.md"}
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}


def inside(app: Sphinx, name: str, source: list[str]) -> None:
    """Have links out of docs/ lead to pages of the site. In the repository they lead to the files."""
    if "/" not in name:
        text = _LINK.sub(lambda found: _page_of(found[1]), source[0])
        source[0] = _PATTERN.sub(lambda found: found[0] if _pages_like(app, found[1]) else "", text)


def pages(source: Path) -> Iterator[tuple[str, str]]:
    texts = (page.read_text() for page in sorted(source.glob("*.md")))
    for path in sorted({found for text in texts for found in _LINK.findall(text)} - _PAGES.keys()):
        language = _LANGUAGES.get(Path(path).suffix, "text")
        depth = "../" * (path.count("/") + 2)
        yield (
            _name_of(path),
            rst.page(
                ":orphan:\n",
                rst.title(path),
                f".. literalinclude:: {depth}../{path}\n   :language: {language}\n",
            ),
        )


def _pages_like(app: Sphinx, pattern: str) -> bool:
    return any(fnmatch(name, pattern) for name in app.env.found_docs)


def _name_of(path: str) -> str:
    return f"files/{Path(path).with_suffix('')}"


def _page_of(path: str) -> str:
    return _PAGES.get(path) or f"reference/{_name_of(path)}.rst"
