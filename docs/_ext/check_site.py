"""`python docs/_ext/check_site.py build/site`: the site is whole.

Every page can be come to from the first one, each link inside the site leads to a page and a place of it, and
there is a page for every file of docs/, and a place for every public name, command, option, kind and error.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS.parent))

import stratrun  # noqa: E402
from stratrun import errors  # noqa: E402
from stratrun.cli.commands import COMMANDS  # noqa: E402
from stratrun.cli.dispatch import parser_of  # noqa: E402
from stratrun.cli.list import KINDS  # noqa: E402

# Made by Sphinx, and come to by the search alone.
BESIDE = {"genindex.html", "py-modindex.html", "search.html"}


class Page(HTMLParser):
    """Links and places of a page, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.words: list[str] = []
        self.feed(path.read_text())
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if place := given.get("id"):
            self.places.add(place)
        if tag == "a" and (link := given.get("href")):
            self.links.add(link)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def broken(site: Path, pages: dict[str, Page]) -> list[str]:
    """Links that lead nowhere, and pages that no link leads to."""
    found, reached, todo = [], set(BESIDE), ["index.html"]
    while todo:
        name = todo.pop()
        if name in reached or name not in pages:
            continue
        reached.add(name)
        for link in sorted(pages[name].links):
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            inside = str(target.resolve().relative_to(site)) if target.exists() else ""
            if not inside or (parts.fragment and parts.fragment not in pages[inside].places):
                found.append(f"{name}: {link} leads nowhere")
            elif inside in pages:
                todo.append(inside)
    return found + [f"no link leads to {name}" for name in sorted(pages.keys() - reached)]


def missing(pages: dict[str, Page]) -> list[str]:
    """What ought to have a page, or a place in one, and has none."""
    wanted = {f"{page.relative_to(DOCS).with_suffix('')}.html" for page in DOCS.glob("*.md")}
    wanted |= {f"reference/parts/{kind}.html" for kind in KINDS}
    found = [f"there is no {name}" for name in sorted(wanted - pages.keys())]
    places = {place for page in pages.values() for place in page.places}
    found += [f"stratrun.{name} is not documented" for name in stratrun.__all__ if not _known(name, places)]
    for name, command in COMMANDS.items():
        page = pages.get(f"reference/cli/{name.partition(' ')[0]}.html")
        for action in parser_of(name, import_module(command.module))._actions:
            lacking = [one for one in action.option_strings if one not in ("-h", "--help")]
            lacking = [one for one in lacking if page is None or one not in page.text]
            found += [f"stratrun {name} {one} is not documented" for one in lacking]
    return found


def _known(name: str, places: set[str]) -> bool:
    return f"stratrun.{'errors.' if hasattr(errors, name) else ''}{name}" in places


def main(site: Path) -> int:
    names = (path.relative_to(site) for path in site.rglob("*.html") if "_static" not in path.parts)
    pages = {str(name): Page(site / name) for name in names}
    found = broken(site, pages) + missing(pages)
    sys.stdout.write("".join(f"{line}\n" for line in (*found, f"{len(pages)} pages, {len(found)} mistakes")))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
