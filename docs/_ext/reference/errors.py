"""The exceptions: what each is, what raises it, and mistakes that end in it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference import rst
from stratrun import errors

_RAISES = re.compile(r"^( *)(\w+): (.*(?:\n\1 +.*)*)", re.M)


def pages(package: Path, told: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    tree = inspect.cleandoc(errors.__doc__ or "").partition("\n\n")[2]
    shown, _, after = tree.partition("\n\nStopped")
    raised = _raised(package)
    pieces = [
        rst.title("Errors"),
        "Whatever the framework raises on purpose is a "
        ":py:class:`stratrun.StratrunError <stratrun.errors.StratrunError>`. "
        "A message says what was given, why it will not do, and what to do; "
        ":doc:`mistakes <mistakes>` shows what is printed.",
        rst.block(shown, kind="tree"),
        rst.plain(f"Stopped{after}"),
    ]
    for error in _classes():
        pieces += [rst.title(error.__name__, "-"), *_about(error, raised, told)]
    yield "errors", rst.page(*pieces)


def _classes() -> list[type[BaseException]]:
    own = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [value for value in own if value.__module__ == errors.__name__]


def _about(
    error: type[BaseException], raised: dict[str, list[tuple[str, str]]], told: list[dict[str, str]]
) -> list[str]:
    name = error.__name__
    pieces = [f".. autoexception:: stratrun.errors.{name}\n   :show-inheritance:\n"]
    if rows := raised.get(name, []):
        cells = [[rst.code(where), rst.prose(why)] for where, why in rows]
        pieces.append(rst.dropdown("Raised by", rst.table(["", "when"], cells, "40 60", "stack")))
    count = sum(one["error"] == name for one in told)
    if count:
        example = min((one for one in told if one["error"] == name), key=lambda one: len(one["message"]))
        pieces += [f"{example['mistake']}:", rst.block(example["message"])]
        pieces += [f"One of {count} in the :doc:`list of mistakes <mistakes>`."] if count > 1 else []
    return pieces


def _raised(package: Path) -> dict[str, list[tuple[str, str]]]:
    """By the name of an error, what says in its docstring that it raises it, and when."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for where, text in _docstrings(ast.parse(path.read_text()), module):
            _, _, section = text.partition("Raises:\n")
            for _, name, reason in _RAISES.findall(section.partition("\n\n")[0]):
                found.setdefault(name, []).append((where, reason))
    return found


def _docstrings(tree: Any, where: str) -> Iterator[tuple[str, str]]:
    """Docstrings of what has a public name."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        name = f"{where}.{node.name}".removeprefix("stratrun.")
        yield name, ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef):
            yield from _docstrings(node, name)
