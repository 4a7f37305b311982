"""What is said of the arguments of a class, out of its docstrings."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any

_HEADING = re.compile(r"^(Args|Arguments|Parameters|Keyword args|Keyword Args|Kwargs):\s*$")
_ENTRY = re.compile(
    r"^[*`]*(?P<names>\w+(?:, \w+)*)`*\s*(?:\([^)]*(?:\([^)]*\)[^)]*)*\))?\s*:\s*(?P<text>.*)$"
)


def documented(entry: Callable[..., Any]) -> dict[str, str]:
    """What the docstrings say of each argument, in one line: in Google's style, or below a dataclass's field.

    Those of a base class count where a class has none of its own.
    """
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(entry)) if inspect.isclass(entry) else [entry]:
        if one is object:
            continue
        if inspect.isclass(one) and is_dataclass(one):
            found.update(_of_fields(one))
        own = vars(one).get("__doc__") if inspect.isclass(one) else one.__doc__
        made = vars(one).get("__init__") if inspect.isclass(one) else None
        for text in (own, getattr(made, "__doc__", None)):
            found.update(_of_text(text or ""))
    return found


def _of_text(text: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    within, indent, names = False, 0, list[str]()
    for line in inspect.cleandoc(text).splitlines():
        if _HEADING.match(line):
            within, indent, names = True, 0, []
            continue
        if not within or not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            within = False
            continue
        indent = indent or depth
        entry = _ENTRY.match(line.strip()) if depth == indent else None
        if entry:
            names = entry["names"].split(", ")
            found.update({name: [entry["text"]] for name in names})
        elif depth > indent:
            for name in names:
                found[name].append(line.strip())
    return {name: " ".join(filter(None, lines)) for name, lines in found.items()}


def _of_fields(kind: type) -> dict[str, str]:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, SyntaxError, TypeError):
        return {}
    found: dict[str, str] = {}
    body = getattr(tree, "body", [])
    for one, after in pairwise(body):
        if not isinstance(one, ast.AnnAssign) or not isinstance(one.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[one.target.id] = " ".join(str(after.value.value).split())
    return found
