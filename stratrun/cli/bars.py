"""A curve in a terminal."""

from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 72, 10


def bars(values: Sequence[float], low: float) -> tuple[list[str], int]:
    """Values one beside the other, above `low`, on a line; and how wide that is."""
    high = max(values)
    span = high - low or 1.0
    width = min(_WIDTH, len(values))
    columns = [round((_between(values, at, width) - low) / span * _HEIGHT * 8) for at in range(width)]
    labels = {0: f"{high:.3g}", _HEIGHT // 2: f"{(high + low) / 2:.3g}", _HEIGHT - 1: f"{low:.3g}"}
    lines = []
    for row in range(_HEIGHT):
        below = (_HEIGHT - 1 - row) * 8
        cells = "".join(_EIGHTHS[min(max(column - below, 0), 8)] for column in columns)
        lines.append(f"{labels.get(row, ''):>9} ┤{cells}")
    return [*lines, f"{'':>9} └{'─' * width}"], width


def _between(values: Sequence[float], at: int, width: int) -> float:
    """The mean of the values that share a column."""
    first = at * len(values) // width
    part = values[first : max((at + 1) * len(values) // width, first + 1)]
    return sum(part) / len(part)
