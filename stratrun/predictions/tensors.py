"""Predictions as files of tensors, that other programs read as well."""

import io
import json
import zipfile
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from stratrun.errors import DataError, MissingDependencyError
from stratrun.predictions.columns import put_together, row_of, stacked, taken_apart

_ROW = 64
"""Bytes that a prediction takes in memory beside its tensors, roughly."""
_SHAPES = "shapes"
_HEADER_LIMIT = 100 << 20


class Tensors:
    """Predictions of one file as tensors. A subclass says what bytes these become."""

    suffix: ClassVar[str]

    def __init__(self) -> None:
        self._rows: list[dict[str, Tensor]] = []
        self._shapes: list[Any] = []
        self.size: int = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, prediction: Any) -> None:
        shape, columns = taken_apart(prediction)
        # A row is a view of the whole batch, which would be kept with it.
        columns = {n: v.clone(memory_format=torch.contiguous_format) for n, v in columns.items()}
        self._rows.append(columns)
        self._shapes.append(shape)
        self.size += _ROW + sum(value.nbytes for value in columns.values())

    def encode(self, order: list[int]) -> bytes:
        """The bytes of the file, with the predictions in this order of their coming."""
        rows, shapes = [self._rows[i] for i in order], [self._shapes[i] for i in order]
        alike = all(one == shapes[0] for one in shapes)
        if not alike:
            rows = [{f"{name}@{i}": value for name, value in row.items()} for i, row in enumerate(rows)]
            columns = {name: value for row in rows for name, value in row.items()}
        else:
            columns = stacked(rows)
        # Where all are built alike, that is said once.
        return self.to_bytes(columns, json.dumps(shapes[0] if alike else shapes), len(rows))

    @classmethod
    def decode(cls, data: bytes, where: str) -> list[Any]:
        """
        Raises:
            DataError: this is no such file.
        """
        columns, told, rows = cls.from_bytes(data, where)
        try:
            shapes = json.loads(told)
        except ValueError as error:
            raise DataError(f"{where} does not say how its predictions are built: {error}") from error
        if isinstance(shapes, list) and len(shapes) != rows:
            raise DataError(f"{where} tells of {len(shapes)} predictions, and has {rows}")
        found = []
        for row in range(rows):
            shape = shapes[row] if isinstance(shapes, list) else shapes
            found.append(put_together(shape, partial(row_of, columns, row=row, where=where)))
        return found

    @staticmethod
    def to_bytes(columns: Mapping[str, Tensor], shapes: str, rows: int) -> bytes:
        raise NotImplementedError

    @staticmethod
    def from_bytes(data: bytes, where: str) -> tuple[dict[str, Tensor], str, int]:
        raise NotImplementedError


class Safetensors(Tensors):
    """As ``safetensors``: how predictions are built is in the header of the file."""

    suffix = ".safetensors"

    @staticmethod
    def to_bytes(columns: Mapping[str, Tensor], shapes: str, rows: int) -> bytes:
        from safetensors.torch import save

        return bytes(save(dict(columns), {_SHAPES: shapes, "rows": str(rows)}))

    @staticmethod
    def from_bytes(data: bytes, where: str) -> tuple[dict[str, Tensor], str, int]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            columns = dict(load(data))
            size = min(int.from_bytes(data[:8], "little"), _HEADER_LIMIT)
            about = json.loads(data[8 : 8 + size])["__metadata__"]
            return columns, about[_SHAPES], int(about["rows"])
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{where} is no safetensors file of predictions: {error}") from error


class Npz(Tensors):
    """As ``.npz``: how predictions are built is text in the archive beside the arrays. Nothing is pickled."""

    suffix = ".npz"

    @staticmethod
    def to_bytes(columns: Mapping[str, Tensor], shapes: str, rows: int) -> bytes:
        numpy = _numpy()
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_SHAPES), json.dumps({_SHAPES: shapes, "rows": rows}))
            for name, value in columns.items():
                try:
                    array = value.numpy()
                except TypeError as error:
                    kind = str(value.dtype).removeprefix("torch.")
                    raise DataError(
                        f"{name} is {kind}, which .npz has not; write format='safetensors'"
                    ) from error
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                    numpy.lib.format.write_array(file, array, allow_pickle=False)
        return stream.getvalue()

    @staticmethod
    def from_bytes(data: bytes, where: str) -> tuple[dict[str, Tensor], str, int]:
        numpy = _numpy()
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                about = json.loads(archive.read(_SHAPES))
                columns = {}
                for name in archive.namelist():
                    if name.endswith(".npy"):
                        with archive.open(name) as file:
                            array = numpy.lib.format.read_array(file, allow_pickle=False)
                        columns[name.removesuffix(".npy")] = torch.from_numpy(array)
            return columns, str(about[_SHAPES]), int(about["rows"])
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{where} is no .npz file of predictions: {error}") from error


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise MissingDependencyError(
            "predictions as .npz need numpy; pip install numpy, or write format='safetensors'"
        ) from error
    return numpy
