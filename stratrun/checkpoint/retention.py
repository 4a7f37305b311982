"""Which committed checkpoints may go."""

from collections.abc import Collection, Iterable


def superfluous(steps: Iterable[int], keep_last: int | None, protect: Collection[int] = ()) -> list[int]:
    """Steps to remove, oldest first: all but the `keep_last` newest and those of `protect`.

    The newest one always stays; `keep_last=None` keeps all.
    """
    ordered = sorted(steps)
    if keep_last is None:
        return []
    return [step for step in ordered[: -max(1, keep_last)] if step not in protect]
