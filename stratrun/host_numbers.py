"""Numbers in host memory, read without an operation: neither dispatch nor a wait."""

from collections.abc import Callable
from ctypes import c_double, c_float, c_uint16, c_uint32, c_uint64
from typing import Any

import torch
from torch import Tensor

# By dtype: a whole number of its size, and the bits of the exponent, all set in what is not finite.
_EXPONENTS: dict[torch.dtype, tuple[Callable[[int], Any], int]] = {
    torch.float32: (c_uint32.from_address, 0x7F80_0000),
    torch.float64: (c_uint64.from_address, 0x7FF0_0000_0000_0000),
    torch.bfloat16: (c_uint16.from_address, 0x7F80),
    torch.float16: (c_uint16.from_address, 0x7C00),
}
_VALUES: dict[torch.dtype, Callable[[int], Any]] = {
    torch.float32: c_float.from_address,
    torch.float64: c_double.from_address,
}


def finite_in_host(number: Tensor) -> bool | None:
    """Whether a single number is finite; None where that cannot be told without an operation."""
    # Not of subclasses, whose memory may be elsewhere, or nowhere.
    if type(number) is not Tensor or not number.is_cpu:
        return None
    kind = _EXPONENTS.get(number.dtype)
    address = number.data_ptr()
    if kind is None or not address:
        return None
    read, exponent = kind
    return read(address).value & exponent != exponent  # type: ignore[no-any-return]


def value_in_host(number: Tensor) -> float | None:
    """A single number exactly; None where it cannot be had without an operation."""
    if type(number) is not Tensor or not number.is_cpu or number.is_neg():
        return None
    read = _VALUES.get(number.dtype)
    address = number.data_ptr()
    return None if read is None or not address else read(address).value


def number_at(tensor: Tensor) -> c_float | None:
    """The only element of a float32 tensor in host memory, to be read and written; None of one elsewhere.

    It is good for as long as the tensor is.
    """
    return c_float.from_address(tensor.data_ptr()) if tensor.is_cpu else None
