"""A course as text."""

from collections.abc import Sequence

from stratrun.cli.bars import bars
from stratrun.cli.plot_schedule.course import Course

_CHARTS = 4
"""Groups that are drawn; of more, the rest are in the table."""


def as_text(course: Course) -> str:
    """A chart of each shape, and a table of all groups."""
    lines: list[str] = []
    for names in _by_shape(course)[:_CHARTS]:
        more = f" and {len(names) - 1} more of this shape" if len(names) > 1 else ""
        lines += [f"{names[0]}{more}", *_chart(course.values[names[0]], course), ""]
    lines += _table(course)
    return "\n".join([*lines, *(["", *course.remarks] if course.remarks else [])])


def _by_shape(course: Course) -> list[list[str]]:
    """Groups whose values are the same but for a factor, together."""
    shapes: dict[tuple[float, ...], list[str]] = {}
    for name, values in course.values.items():
        top = max(map(abs, values)) or 1.0
        shapes.setdefault(tuple(round(value / top, 6) for value in values), []).append(name)
    return list(shapes.values())


def _chart(values: Sequence[float], course: Course) -> list[str]:
    lines, width = bars(values, min(0.0, *values))
    ends = f"1{course.updates:>{max(width - 1, 1)}}"
    epochs = f" updates, {len(course.epochs)} epochs" if course.epochs else " updates"
    return [*lines, f"{'':>11}{ends}{epochs}"]


def _table(course: Course) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "first", "lowest", "highest", "at update", "last")]
    for name, values in course.values.items():
        top = max(range(len(values)), key=values.__getitem__)
        numbers = [f"{one:.4g}" for one in (values[0], min(values), values[top])]
        rows.append((name, *numbers, str(course.kept[top]), f"{values[-1]:.4g}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{one:<{size}}" for one, size in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
