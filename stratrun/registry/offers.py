"""What a registry offers, and from whom: for readers, so nothing that fails to be imported stops it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stratrun.errors import StratrunError
from stratrun.registry.arguments import parameters_of
from stratrun.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Offer:
    """An entry of a registry, as a reader looks for it."""

    names: tuple[str, ...]
    """Each name that it goes by, the shortest first."""
    provider: str
    """The package that it comes from, or the module of the user."""
    about: str
    """The first line of its docstring, or why it cannot be had."""
    entry: Callable[..., Any] | None = None
    """None where it cannot be imported."""


def offers_of(registry: Registry) -> list[Offer]:
    """Everything that a registry knows, each once, imported where that is possible."""
    names: dict[int, list[str]] = {}
    found: dict[int, tuple[str, Callable[..., Any]]] = {}
    absent: list[Offer] = []
    for name, provider in registry.providers().items():
        try:
            entry = registry.get(name)
        except StratrunError as error:
            absent.append(Offer((name,), provider, str(error)))
            continue
        names.setdefault(id(entry), []).append(name)
        found.setdefault(id(entry), (provider, entry))
    offers = [
        Offer(tuple(sorted(names[key], key=lambda name: (len(name), name))), provider, about(entry), entry)
        for key, (provider, entry) in found.items()
    ]
    return sorted([*offers, *absent], key=lambda offer: offer.names[0].casefold())


def about(entry: Callable[..., Any]) -> str:
    """The first line of what its own docstring says; empty without one."""
    # A class without a docstring would show that of its base.
    text = entry.__dict__.get("__doc__") if inspect.isclass(entry) else entry.__doc__
    lines = inspect.cleandoc(text or "").splitlines()
    return lines[0].strip() if lines else ""


def described(entry: Callable[..., Any]) -> list[tuple[str, str, str]]:
    """The arguments of a call: name, annotation, default as Python writes it; empty where there is none."""
    rows = []
    for key, one in (parameters_of(entry) or {}).items():
        noted = one.annotation
        shown = noted if isinstance(noted, str) else inspect.formatannotation(noted)
        shown = "" if noted is one.empty else shown.replace("stratrun.", "")
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            key = ("*" if one.kind is one.VAR_POSITIONAL else "**") + key
        rows.append((key, shown, "" if one.default is one.empty else repr(one.default)))
    return rows
