"""A transformer small enough to be compared number by number, and plans that split it over ranks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

WORDS, WIDTH, LENGTH = 10, 8, 6

WHOLE_PLAN: dict[str, Any] = {
    "words": "row",
    "blocks.*.attention.[qkv]": "column",
    "blocks.*.attention.out": "row",
    "blocks.*.up": "column",
    "blocks.*.thin": "column",
    "blocks.*.down": "row",
    "head": {"style": "column", "output": "whole"},
}
"""Activations are whole between blocks."""

SEQUENCE_PLAN: dict[str, Any] = {
    "words": {"style": "row", "output": "sequence"},
    "blocks.*.norm[12]": "sequence",
    "blocks.*.attention": "gather",
    "blocks.*.attention.[qkv]": "column",
    "blocks.*.attention.out": {"style": "row", "output": "sequence"},
    "blocks.*.up": {"style": "column", "input": "sequence"},
    "blocks.*.thin": "column",
    "blocks.*.down": {"style": "row", "output": "sequence"},
    "blocks.*.drop": "sequence",
    "head": {"style": "column", "input": "sequence", "output": "whole"},
}
"""Between blocks each rank has its part of the sequence."""

GATHERED_PLAN: dict[str, Any] = {
    "words": {"style": "column", "output": "whole"},
    "blocks.*.attention.[qkv]": {"style": "column", "output": "whole"},
    "blocks.*.attention.out": {"style": "row", "input": "whole"},
}
"""Attention need not ask how many heads there are: only the parameters are split."""


class Attention(nn.Module):
    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.each = WIDTH // heads

    def forward(self, x: Tensor) -> Tensor:
        # However many heads this rank has.
        q, k, v = (
            part(x).unflatten(-1, (-1, self.each)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.thin, self.drop = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.drop(self.down(self.thin(F.gelu(self.up(self.norm2(x))))))


class Writer(nn.Module):
    """Says of each word of a text which follows; the last of them count for nothing where texts are short."""

    def __init__(self, dropout: float = 0.0, tied: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=not tied)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, texts: Tensor) -> Tensor:
        x = self.words(texts)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        inputs, following = batch
        return {"loss": F.cross_entropy(self(inputs).flatten(0, 1), following.flatten())}

    val_step = test_step = train_step


class Weighted(Writer):
    """Words of another number than zero count."""

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        inputs, following = batch
        loss = F.cross_entropy(self(inputs).flatten(0, 1), following.flatten(), ignore_index=0)
        return {"loss": loss, "weight": (following != 0).sum()}

    val_step = test_step = train_step


def writer(dropout: float = 0.0, tied: bool = False) -> Writer:
    """The same one at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Writer(dropout, tied)


def texts(samples: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(WORDS, (samples, LENGTH + 1), generator=generator)
    return TensorDataset(words[:, :-1], words[:, 1:])
