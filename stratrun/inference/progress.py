"""How far predicting has come, for who watches a terminal."""

import sys
from collections.abc import Iterator
from typing import Any


def shown(batches: Iterator[list[Any]], total: int | None, wanted: bool | None) -> Iterator[list[Any]]:
    """The same batches of results; how many there were is shown on stderr.

    Args:
        total: How many results there will be, if that is known.
        wanted: None for: if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield from batches
        return
    # Only now, as it takes longer to import than many an input to predict.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("predict", total=total)
        for batch in batches:
            progress.advance(task, len(batch))
            yield batch
