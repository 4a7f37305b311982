"""Numbers, times and tables as a reader likes them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: int | None) -> str:
    """Bytes, in powers of 1000, as file managers have them."""
    if count is None:
        return "-"
    power = min(len(_UNITS) - 1, int(math.log10(count) // 3)) if count else 0
    value = count / 1000**power
    return (
        f"{count} B"
        if power == 0
        else f"{value:.3g} {_UNITS[power]}"
        if value < 999.5
        else f"{value:.0f} {_UNITS[power]}"
    )


def date(seconds: float | None) -> str:
    """In the time zone of whoever looks."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def numbers(metrics: Mapping[str, Any], most: int = 4) -> str:
    """``name=value``, a space between two; beyond `most` only how many more there are."""
    shown = [f"{name}={number(value)}" for name, value in list(metrics.items())[:most]]
    more = len(metrics) - most
    return " ".join([*shown, f"+{more} more"] if more > 0 else shown)


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> list[str]:
    """Lines with columns one below the other; a column that is empty throughout is left out.

    Args:
        right: A letter for each column, ``>`` for one whose cells end at the same place.
    """
    body = [list(row) for row in rows]
    kept = [i for i in range(len(head)) if any(row[i] not in ("", "-") for row in body)]
    widths = {i: max(len(line[i]) for line in [head, *body]) for i in kept}
    lines = []
    for line in [head, *body]:
        cells = (f"{line[i]:{'>' if right[i : i + 1] == '>' else '<'}{widths[i]}}" for i in kept)
        lines.append("  ".join(cells).rstrip())
    return lines
