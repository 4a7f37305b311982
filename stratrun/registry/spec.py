"""Changes to what a user wrote, without losing where it was written."""

from collections.abc import Iterable, Mapping
from typing import Any


def edited(
    spec: Mapping[str, Any], *, drop: Iterable[str] = (), put: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A copy of a dict or config without the keys `drop` and with those of `put`.

    A config stays one, so that messages can still say where its values came from.
    """
    chosen: dict[str, Any] = type(spec)(spec) if isinstance(spec, dict) else dict(spec)
    for key in drop:
        chosen.pop(key, None)
    chosen.update(put or {})
    return chosen
