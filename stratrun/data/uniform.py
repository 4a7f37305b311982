"""Numbers by chance that are a function of where they stand."""

import torch
from torch import Tensor

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 52  # one less than a double has: the product with a total stays below that


def uniforms(key: int, positions: Tensor) -> Tensor:
    """A double from 0 to below 1 for each position: splitmix64 (Steele et al., 2014) of key and position."""
    word = positions * _signed(_STEP) + key
    word = (word ^ _shifted(word, 30)) * _signed(_FIRST)
    word = (word ^ _shifted(word, 27)) * _signed(_SECOND)
    chances: Tensor = _shifted(word ^ _shifted(word, 31), 64 - _BITS).double() / 2**_BITS
    return chances


def fingerprint(values: Tensor) -> str:
    """A short text that is another one for other doubles, or the same in another order."""
    words = values.double().contiguous().view(torch.int64)
    word = (words ^ (torch.arange(len(words)) * _signed(_STEP))) * _signed(_FIRST)
    # Sums of whole numbers do not depend on how threads share them out.
    return f"{int(((word ^ _shifted(word, 29)) * _signed(_SECOND)).sum()) % 2**64:016x}"


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(word: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)
