"""What a config may name, a page for each kind, from the registries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from sphinx.ext.autodoc.mock import mock

from reference import api, keys, rst
from stratrun import registry
from stratrun.cli.list import KINDS
from stratrun.registry import Registry
from stratrun.registry.fallbacks import public_classes

# Packages that some parts need: large, and nothing that a page about the parts has to know.
_WITHOUT = ["mlflow", "wandb"]


def pages() -> Iterator[tuple[str, str]]:
    rows = []
    for kind in KINDS:
        own = _own(getattr(registry, kind.upper()))
        names = ", ".join(rst.code(names[0]) for names, _ in own)
        rows.append([f":doc:`{kind} <parts/{kind}>`", names or _others(kind)])
        yield f"parts/{kind}", _page(kind, own)
    yield (
        "parts",
        rst.page(
            rst.title("Config keys and registered parts"),
            "The keys of a config are the arguments of :py:class:`stratrun.Runner`, and ``runner_type``, the "
            "name of another runner. Where a part is built, a config has a name or a mapping: ``type``, the "
            "name, and beside it the arguments of the class. These are the names.",
            rst.table(["kind", "names"], rows, "20 80"),
            rst.title("Keys of a config", "-"),
            rst.table(["key", "default", ""], keys.rows(), "25 15 60", "stack"),
            ".. toctree::\n   :hidden:\n\n" + "".join(f"   parts/{kind}\n" for kind in KINDS),
        ),
    )


def _own(parts: Registry) -> list[tuple[list[str], Callable[..., Any]]]:
    """Entries that this project brings, with each name that they go by."""
    with mock(_WITHOUT):
        found = dict(parts.entries())
        for plugin in entry_points(group=f"stratrun.{parts.kind}"):
            if plugin.value.startswith("stratrun_ext."):
                module, _, name = plugin.value.partition(":")
                found[plugin.name] = getattr(import_module(module), name)
    names: dict[int, list[str]] = {}
    for name, entry in found.items():
        if entry.__module__.startswith("stratrun"):
            names.setdefault(id(entry), []).append(name)
    entries = {id(entry): entry for entry in found.values()}
    listed = [(sorted(names[key], key=_rank(entries[key])), entries[key]) for key in names]
    return sorted(listed, key=lambda one: one[0][0].casefold())


def _about(entry: Callable[..., Any]) -> str:
    """The first paragraph of what its own docstring says. A class without one would show that of its base."""
    text = entry.__dict__.get("__doc__") if inspect.isclass(entry) else entry.__doc__
    return inspect.cleandoc(text or "").partition("\n\n")[0]


def _rank(entry: Callable[..., Any]) -> Callable[[str], tuple[bool, int, str]]:
    """What a part calls itself comes first, then short names."""
    own = getattr(entry, "name", None)
    return lambda name: (name != own, len(name), name)


def _page(kind: str, own: list[tuple[list[str], Callable[..., Any]]]) -> str:
    name = kind.upper()
    pieces = [
        rst.title(kind.replace("_", " ").capitalize()),
        f"Registry :py:obj:`stratrun.{name}`; ``@{name}.register_module()`` above a class adds one of yours. "
        f"On a terminal: ``stratrun list {kind}``.",
    ]
    if own:
        rows = [[", ".join(map(rst.code, names)), rst.prose(_about(entry))] for names, entry in own]
        pieces += [rst.table(["type", ""], rows, "35 65", "stack")]
    for names, entry in own:
        pieces += [rst.title(names[0], "-"), _documented(names, entry)]
    return rst.page(*pieces, _foreign(kind))


def _documented(names: list[str], entry: Callable[..., Any]) -> str:
    also = f"Also as {', '.join(map(rst.code, names[1:]))}.\n\n" if names[1:] else ""
    package = ".".join(entry.__module__.split(".")[:2])
    public = entry.__name__ in getattr(import_module(package), "__all__", ())
    path = f"{package if public else entry.__module__}.{entry.__qualname__}"
    twice = "   :no-index:\n" if any(entry is value for value in api.exported().values()) else ""
    kind = "autoclass" if inspect.isclass(entry) else "autofunction"
    return f"{also}.. {kind}:: {path}\n{twice}"


def _others(kind: str) -> str:
    modules = getattr(registry, kind.upper())._fallbacks
    return f"those of {', '.join(map(rst.code, modules))}" if modules else "yours"


def _foreign(kind: str) -> str:
    """The classes of other packages that go by their names; those of torch one by one."""
    modules = getattr(registry, kind.upper())._fallbacks
    pieces = []
    if modules:
        names = ", ".join(map(rst.code, modules))
        pieces = [rst.title("Of other packages", "-"), f"Public classes of {names} go by their own names."]
    for module in modules:
        if module.startswith("torch."):
            listed = sorted(public_classes(module))
            pieces += [rst.title(module, "^"), ", ".join(map(rst.code, listed))]
    return rst.page(*pieces)
