"""What the pages of docs/ are held together by: toctrees, and the tests that they name.

`.ci/run` builds the site of them, and looks whether that is whole.
"""

import ast
import re
from collections import Counter
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
# Written when the site is built.
GENERATED = "reference/"
FRAMEWORK_LINES = 10
_TOCTREE = re.compile(r"^:::\{toctree\}\n(.*?)^:::$", re.M | re.S)
_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


def listed(page: str) -> list[str]:
    """Pages that the toctrees of a page list. A pattern stands for those that its toctree does not name."""
    found = []
    for body in _TOCTREE.findall((DOCS / f"{page}.md").read_text()):
        lines = [line for line in body.splitlines() if line and not line.startswith(":")]
        for line in lines:
            pages = [page for page in PAGES if fnmatch(page, line) and page not in lines]
            found += pages if "*" in line else [line]
    return [name for name in found if not name.startswith(GENERATED)]


def test_each_page_is_in_one_toctree_and_each_toctree_lists_pages() -> None:
    counts = Counter(name for page in PAGES for name in listed(page))
    assert {name: count for name, count in counts.items() if count > 1} == {}
    assert sorted(counts) == [page for page in PAGES if page != "index"]


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((DOCS.parent / "tests" / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", [page for page in PAGES if _TEST.search((DOCS / f"{page}.md").read_text())])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = _TEST.findall((DOCS / f"{page}.md").read_text())
    assert [f"{path}::{name}" for path, name in named if name not in functions_of(path)] == []


def test_each_promise_is_shown_by_a_test() -> None:
    pages = (DOCS / "promises.md").read_text() + (DOCS / "security.md").read_text()
    rows = [line for line in pages.splitlines() if re.match(r"\| [^|]*\w.* \|", line)]
    assert len(rows) > 35
    assert [row for row in rows if not _TEST.search(row)] == []


def test_the_first_program_of_the_site_is_ten_lines_of_the_framework_or_fewer() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "index.md").read_text(), re.M | re.S)
    [first] = [block for block in blocks if "from stratrun import Runner" in block]
    lines = [line for line in first.splitlines() if line.strip()]
    assert len(lines) <= FRAMEWORK_LINES
    assert lines[-1] == "metrics = runner.train()"
