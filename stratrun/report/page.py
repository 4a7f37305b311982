"""The page: one HTML file, with everything in it that a browser needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from stratrun.errors import ConfigError, MissingDependencyError
from stratrun.report.charts import charts
from stratrun.report.history import History, flat, read_history
from stratrun.storage import Folder

FILE = "report.html"


def write_report(work_dirs: Sequence[str], out: str | None = None, **storage_options: Any) -> str:
    """Write the report of one run, or of several side by side. Returns its URL.

    Args:
        out: The file; by default ``report.html`` in the first work dir.

    Raises:
        ConfigError: there is no run to report of.
        MissingDependencyError: plotly is not installed.
    """
    if not work_dirs:
        raise ConfigError("a report is of at least one run; give its work dir")
    if out is not None and "://" not in out and Path(out).is_dir():
        raise ConfigError(f"out={out!r} is a folder; name a file, such as {str(Path(out, FILE))!r}")
    _library()
    runs = _told_apart([read_history(str(one), **storage_options) for one in work_dirs])
    place, _, file = out.rpartition("/") if out is not None else (str(work_dirs[0]), "", FILE)
    folder = Folder(place or ".", **storage_options)
    folder.write_bytes(file or FILE, page(runs).encode())
    return f"{folder.url.rstrip('/')}/{file or FILE}"


def page(runs: Sequence[History]) -> str:
    """The report as HTML: it loads nothing, neither from a network nor from a disk."""
    title = ", ".join(run.name for run in runs)
    data = json.dumps(charts(runs), allow_nan=False, separators=(",", ":"))
    parts = {
        "title": escape(title),
        "style": _asset("page.css"),
        "tables": "\n".join(_sections(runs)),
        # Within a script, its end is read as HTML, and so is a comment with another script in it.
        "data": data.replace("<", "\\u003c"),
        "library": _library().replace("</script", "<\\/script"),
        "script": _asset("page.js"),
    }
    # In one pass, as what a user wrote may look like a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("page.html"))


def _sections(runs: Sequence[History]) -> Iterable[str]:
    yield _section(
        "Runs", _table(("run", "epochs", "iterations", "hours", "starts", "last results"), map(_run, runs))
    )
    configs = [flat(run.config) for run in runs]
    names = list(dict.fromkeys(name for config in configs for name in config))
    if names:
        rows = [(name, *(config.get(name, "") for config in configs)) for name in names]
        differing = [row for row in rows if len(set(row[1:])) > 1]
        head = ("setting", *(run.name for run in runs))
        if differing:
            yield _section("Settings that differ", _table(head, differing))
        yield _section("All settings", _table(head, rows), is_open=len(runs) == 1 and len(rows) <= 40)
    for run in runs:
        of = f" of {run.name}" if len(runs) > 1 else ""
        if run.checkpoints:
            head = ("checkpoint", "epoch", "size", "results")
            yield _section(f"Checkpoints{of}", _table(head, map(_checkpoint, run.checkpoints)), is_open=False)
        for what, text in run.texts.items():
            yield _section(f"{what.capitalize()}{of}", f"<pre>{escape(text)}</pre>", is_open=False)


def _run(run: History) -> tuple[str, ...]:
    done = [(s.iters[-1], s.epochs[-1]) for s in run.series.values() if s.iters]
    iters, epochs = max(done, default=(0, 0))
    last = {
        f"{kind} {name}": series.values[-1]
        for (kind, name), series in run.series.items()
        if kind in ("val", "test") and series.values[-1] is not None
    }
    return (run.name, str(epochs), f"{iters:,}", f"{run.hours:.2f}", str(len(run.starts)), _numbers(last))


def _checkpoint(entry: dict[str, Any]) -> tuple[str, ...]:
    if "damaged" in entry:
        return entry["name"], "", "", f"damaged: {entry['damaged']}"
    return entry["name"], str(entry["epoch"]), f"{entry['size'] / 2**20:.1f} MiB", _numbers(entry["metrics"])


def _numbers(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def _section(title: str, body: str, *, is_open: bool = True) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{body}</details>"


def _told_apart(runs: list[History]) -> list[History]:
    """Runs of the same folder name are called by their whole URLs."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = run.url
    return runs


def _asset(name: str) -> str:
    return files("stratrun.report").joinpath(name).read_text(encoding="utf-8")


def _library() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependencyError(
            "a report draws its charts with plotly, which is not installed; "
            "install it with: pip install 'stratrun[report]'"
        ) from error
    text: str = get_plotlyjs()
    return text
