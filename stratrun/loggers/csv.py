import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stratrun.loggers.base import Logger
from stratrun.loggers.record import Record
from stratrun.loggers.text_file import TextFile
from stratrun.registry import LOGGERS


@LOGGERS.register_module("csv")
class CsvLogger(Logger):
    """A table with a row for each record and a column for each name, empty where a record has none.

    A new name means a new column, for which the file is written anew; names are few and come early.
    """

    def __init__(self, filename: str = "metrics.csv") -> None:
        self.filename = filename
        self._columns: list[str] = []
        self._file: TextFile

    def open(self, folder: Path) -> None:
        self._file = TextFile(folder / self.filename)

    def log(self, record: Record) -> None:
        row = record.flat()
        new = [name for name in row if name not in self._columns]
        if new:
            self._add_columns(new)
        self._file.write(_rows(self._columns, [row]))

    def close(self) -> None:
        self._file.close()

    def _add_columns(self, names: list[str]) -> None:
        self._file.close()
        path, old = self._file.path, []
        if self._columns:
            with open(path, encoding="utf-8", newline="") as stream:
                old = list(csv.DictReader(stream))
        self._columns += names
        header = dict(zip(self._columns, self._columns, strict=True))
        # Renamed into place, so that whoever reads along never sees half a file.
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(_rows(self._columns, [header, *old]), encoding="utf-8", newline="")
        os.replace(fresh, path)


def _rows(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()
