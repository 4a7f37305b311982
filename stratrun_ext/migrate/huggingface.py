"""Rows of `datasets` as batches for models of `transformers`, which need nothing else to be trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stratrun.errors import DataError, nearest
from stratrun.registry import COLLATES

_PADS = {"attention_mask": 0, "token_type_ids": 0, "labels": -100, "special_tokens_mask": 1}


@COLLATES.register_module()
class RowCollate:
    """Puts rows together that are mappings of names to numbers, lists of them, or tensors.

    What `torch` itself makes of lists is a list for each position. Here they become one tensor, filled up to
    the longest row where they differ in length: tokens by `pad_token_id`, labels by -100, which losses pass
    over. An `attention_mask` is added where tokens were filled up and rows have none.

    Args:
        pad_token_id: Mostly ``model.config.pad_token_id``; needed only where rows differ in length.
        pads: What else to fill up by, by name.
        columns: Which to take; all by default.
    """

    def __init__(
        self,
        pad_token_id: int | None = None,
        pads: Mapping[str, int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.pads: dict[str, int] = {
            **_PADS,
            **({} if pad_token_id is None else {"input_ids": pad_token_id}),
            **(pads or {}),
        }
        self.columns: tuple[str, ...] | None = None if columns is None else tuple(columns)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        names = tuple(rows[0]) if self.columns is None else self.columns
        batch: dict[str, Tensor] = {}
        for name in names:
            if name not in rows[0]:
                raise DataError(f"columns: rows have no {name!r}; {nearest(name, rows[0])}")
            batch[name] = self._stacked(name, [row[name] for row in rows])
        lengths = [len(row["input_ids"]) for row in rows] if "input_ids" in names else []
        if "attention_mask" not in names and len(set(lengths)) > 1:
            places = torch.arange(max(lengths))
            batch["attention_mask"] = (places < torch.tensor(lengths)[:, None]).long()
        return batch

    def _stacked(self, name: str, values: list[Any]) -> Tensor:
        tensors = [self._tensor(name, value) for value in values]
        if len({tensor.shape for tensor in tensors}) == 1:
            return torch.stack(tensors)
        if any(tensor.dim() != 1 for tensor in tensors):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:3])
            raise DataError(f"column {name!r} has rows of shapes {shapes}; bring them to one in the data set")
        if name not in self.pads:
            how = "pad_token_id=model.config.pad_token_id" if name == "input_ids" else f"pads={{{name!r}: 0}}"
            raise DataError(
                f"column {name!r} has rows of {min(map(len, tensors))} to {max(map(len, tensors))} numbers, "
                f"and nothing says what to fill them up by; give RowCollate({how})"
            )
        filled = torch.full((len(tensors), max(map(len, tensors))), self.pads[name], dtype=tensors[0].dtype)
        for row, tensor in zip(filled, tensors, strict=True):
            row[: len(tensor)] = tensor
        return filled

    def _tensor(self, name: str, value: Any) -> Tensor:
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            what = f"text ({value[:20]!r})" if isinstance(value, str) else type(value).__name__
            raise DataError(
                f"column {name!r} is {what}, which a model cannot take; turn it into numbers by "
                "dataset.map(tokenizer), and name the others in columns=[...]"
            ) from error
