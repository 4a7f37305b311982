"""What plain data must not say, however it was written."""

import re
from collections.abc import Iterable
from typing import Any

from stratrun.config.placed import BASE, PlacedDict
from stratrun.errors import ConfigError
from stratrun.problems import Refused, part

_TEMPLATE = re.compile(r"\$\{[\w.:/-]+\}|\{\{\s*(?:_base_\.|file(?:Dirname|Basename|Extname))[^}]*\}\}")
# The value of these is looked up in a registry.
_TYPE_KEYS = ("type", "runner_type")


def vet(data: PlacedDict, allow: Iterable[str]) -> None:
    """Refuse in a data config what would import code, or what another framework would fill in.

    Args:
        allow: Prefixes of dotted names that may be imported.
    """
    for key, value in data.items():
        if key in _TYPE_KEYS and isinstance(value, str) and "." in value:
            if _is_allowed(value, allow):
                continue
            data[key] = Refused.NAME
            with part():
                raise ConfigError(_why_not(value, tuple(allow), data.at(key)))
        with part():
            _vet_value(value, tuple(allow), data.at(key))


def refuse_inner_bases(value: Any, *, top: bool = True) -> None:
    """`_base_` inherits a whole file, so that only its top level may have it."""
    if isinstance(value, PlacedDict):
        if BASE in value and not top:
            raise ConfigError(f"{BASE} belongs at the top level of a file{value.at(BASE)}")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            refuse_inner_bases(item, top=False)


def _vet_value(value: Any, allow: tuple[str, ...], at: str) -> None:
    if isinstance(value, PlacedDict):
        vet(value, allow)
    elif isinstance(value, list | tuple):
        for item in value:
            _vet_value(item, allow, at)
    elif isinstance(value, str) and (found := _TEMPLATE.search(value)):
        raise ConfigError(
            f"{found[0]!r} would stay as it is, for configs fill in nothing; use a YAML anchor, "
            f"an override or a .py config{at}"
        )


def _is_allowed(path: str, allow: Iterable[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix.rstrip('.')}.") for prefix in allow if prefix)


def _why_not(path: str, allow: tuple[str, ...], at: str) -> str:
    name = path.rpartition(".")[2]
    trusted = f"only {', '.join(allow)} is allowed" if allow else "nothing is allowed"
    return (
        f"type={path!r} would import code, which a data config may not ({trusted}); register the "
        f"class and write {name!r}, or allow {path.partition('.')[0]!r} if you trust it{at}"
    )
