"""What an annotation allows in a config, in the words of JSON Schema (draft 7)."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

import torch

from stratrun.registry.arguments import parameters_of

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    type(None): {"type": "null"},
    None: {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
}
_LISTS = (list, tuple, set, frozenset, Collection, Iterable, Sequence)
# What no config can have, whatever else an argument takes.
_NEVER = (torch.Tensor, torch.device)


def of_arguments(entry: Callable[..., Any]) -> dict[str, Schema]:
    """A schema for each argument of a call, with its default; one that allows all where nothing is known."""
    found: dict[str, Schema] = {}
    for name, one in (parameters_of(entry) or {}).items():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        found[name] = schema = dict(of_annotation(_resolved(one.annotation, entry)))
        if one.default is not one.empty and _is_plain(one.default):
            schema["default"] = one.default
            if schema.keys() & {"type", "enum", "anyOf"} and one.default is None:
                # Annotations that leave it out are not wrong on purpose.
                schema = found[name] = _or_null(schema)
    return found


def of_annotation(annotation: Any) -> Schema:
    """The schema of a type; an empty one, which allows all, for what configs name by a dict."""
    if annotation in _PLAIN if _is_hashable(annotation) else False:
        return _PLAIN[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        return _any_of([of_annotation(one) for one in inner if one not in _NEVER])
    kind = origin or annotation
    if not isinstance(kind, type):
        return {}
    if issubclass(kind, (os.PathLike, PurePath)):
        return {"type": "string"}
    if kind in _LISTS:
        items = _any_of([of_annotation(one) for one in inner if one is not ...])
        return {"type": "array", **({"items": items} if items else {})}
    if kind in (dict, Mapping):
        values = of_annotation(inner[1]) if len(inner) == 2 else {}
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    return {}


def _any_of(schemas: list[Schema]) -> Schema:
    distinct = [one for number, one in enumerate(schemas) if one not in schemas[:number]]
    if not distinct or {} in distinct:
        return {}
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _or_null(schema: Schema) -> Schema:
    null = {"type": "null"}
    inner = {key: value for key, value in schema.items() if key != "default"}
    options = inner["anyOf"] if set(inner) == {"anyOf"} else [inner]
    return schema if null in options or inner == null else {"anyOf": [*options, null], "default": None}


def _resolved(annotation: Any, entry: Callable[..., Any]) -> Any:
    """The type that an annotation stands for; `Any` where its names are for type checkers alone."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    made = getattr(entry, "__init__", entry) if inspect.isclass(entry) else entry
    names = getattr(inspect.unwrap(made), "__globals__", {})
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": annotation}), names)["it"]
    except Exception:  # whatever the names in an annotation of the user's lead to
        return Any


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return value is None or isinstance(value, bool | int | str)
