"""Pieces of reStructuredText."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import indent

_MARKUP = re.compile(r"([\\*`|_])")


def title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n"


def plain(text: str) -> str:
    """Text in which nothing is markup."""
    return _MARKUP.sub(r"\\\1", re.sub(r"\s+", " ", text))


def code(text: str) -> str:
    """Code within a line; nothing where there is none."""
    text = " ".join(text.split()).replace("`", "'")
    return f"``{text}``" if text else ""


def prose(text: str) -> str:
    """A sentence of ours, in which backticks are code and nothing else is markup."""
    parts = re.split(r"(``.*?``|`[^`]*`)", " ".join(text.split()))
    return "".join(code(part.strip("`")) if part.startswith("`") else plain(part) for part in parts)


def block(text: str, language: str = "text", kind: str = "") -> str:
    body = indent(text.rstrip("\n"), "   ")
    named = f"   :class: {kind}\n" if kind else ""
    return f".. code-block:: {language}\n{named}\n{body}\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], widths: str = "auto", kind: str = "") -> str:
    """A table whose cells are reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}"]
    lines += [f"   :class: {kind}"] if kind else []
    lines.append("")
    for row in (heads, *rows):
        for number, cell in enumerate(row):
            first, *rest = cell.splitlines() or [""]
            lines.append(f"   {'*' if number == 0 else ' '} - {first}".rstrip())
            lines += [f"       {line}".rstrip() for line in rest]
    return "\n".join(lines) + "\n"


def dropdown(heading: str, body: str) -> str:
    return f".. dropdown:: {heading}\n\n{indent(body, '   ')}\n"


def page(*pieces: str) -> str:
    return "\n".join(piece.rstrip("\n") + "\n" for piece in pieces if piece)
