"""Writes the pages below docs/reference from the code, whenever the site is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import inspect

from reference import api, cli, errors, linked, mistakes, parts


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write_pages)
    app.connect("source-read", linked.inside)
    app.connect("autodoc-process-signature", signature_of_constructor)
    app.connect("missing-reference", by_its_last_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write what has changed, so that other pages are not read again, and remove what is no page any more."""
    folder = Path(app.srcdir) / "reference"
    pages = dict(_pages(Path(app.srcdir)))
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.rglob("*.rst"):
        if str(path.relative_to(folder).with_suffix("")) not in pages:
            path.unlink()


def _pages(source: Path) -> Iterator[tuple[str, str]]:
    """Names and texts of the pages."""
    yield from api.pages()
    yield from cli.pages()
    yield from parts.pages()
    told = mistakes.told(source.parent)
    yield from errors.pages(source.parent / "stratrun", told)
    yield from mistakes.pages(told)
    yield from linked.pages(source)


def signature_of_constructor(
    app: Sphinx, what: str, name: str, entry: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """What a class is called with, where a ``__new__`` that takes anything hides it."""
    if what != "class" or not signature or not signature.startswith("(*args"):
        return None
    own = inspect.signature(entry.__init__, bound_method=True)
    return inspect.stringify_signature(own, show_return_annotation=False, unqualified_typehints=True), returns


def by_its_last_name(
    app: Sphinx, env: BuildEnvironment, node: Any, child: nodes.TextElement
) -> nodes.reference | None:
    """Annotations name a class by the module that it is written in, pages by the one to import it from."""
    last = node.get("reftarget", "").rpartition(".")[2]
    domain = env.domains.python_domain
    if node.get("refdomain") != "py" or not last[:1].isupper():
        return None
    found = [name for name in domain.objects if name.startswith("stratrun") and name.endswith(f".{last}")]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, child)
