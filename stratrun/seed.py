"""Random numbers: seeding, and the state of every generator that a run draws from."""

import ctypes
import hashlib
import random
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, the same on every machine and run."""
    text = "\0".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (when it is loaded) and torch on every device."""
    random.seed(seed)
    torch.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


def seed_host(seed: int) -> None:
    """Seed the generators of the host only: what a data set draws from.

    Goes round `torch.manual_seed`, which takes a hundred times as long because it
    visits every device.
    """
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


class HostRng:
    """Generators of the host apart from the run's own, which stay as they are inside ``with``.

    Args:
        seed: Start of a stream that each ``with`` goes on with. None for a block that seeds for itself.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._inside: tuple[Any, Tensor] | None = None
        self._numpy: Any = None

    def __enter__(self) -> None:
        self._outside = _python_and_torch()
        self._numpy_outside = self._swap_numpy(sys.modules.get("numpy.random"))
        if self._inside is not None:
            _set_python_and_torch(self._inside)
        elif self._seed is not None:
            seed_host(self._seed)

    def __exit__(self, *exception: object) -> None:
        if self._seed is not None:
            self._inside = _python_and_torch()
        _set_python_and_torch(self._outside)
        if self._numpy_outside is not None:
            _numpy_own.restore(sys.modules["numpy.random"], *self._numpy_outside)

    def _swap_numpy(self, numpy_random: Any) -> tuple[Any, float | None] | None:
        """Put a generator in place of NumPy's own, which is returned; None where NumPy is not in use."""
        if numpy_random is None:
            return None
        if self._numpy is None:
            self._numpy = numpy_random.MT19937(self._seed or 0)
        return _numpy_own.replace(numpy_random, self._numpy)


class _NumpyOwn:
    """Takes NumPy's global generator out and puts it back, which costs less than copying its state.

    NumPy keeps every second number of `randn` in store, and drops it when generators are exchanged.
    Looking for it takes forty times as long as the exchange. The store cannot fill without a draw,
    so where the words of the generator are those with which it was last seen empty, it is.
    """

    _WORDS = 2500

    def __init__(self) -> None:
        self._empty: tuple[int, bytes] | None = None

    def replace(self, numpy_random: Any, other: Any) -> tuple[Any, float | None]:
        """Put `other` in place. Returns the generator that was there, and the number in store."""
        own = numpy_random.get_bit_generator()
        stored = None
        words = self._words_of(own)
        if words is None or words != self._empty:
            state = numpy_random.get_state(legacy=False)
            stored = state["gauss"] if state.get("has_gauss") else None
        numpy_random.set_bit_generator(other)
        return own, stored

    def restore(self, numpy_random: Any, own: Any, stored: float | None) -> None:
        numpy_random.set_bit_generator(own)
        if stored is None:
            self._empty = self._words_of(own)
        else:
            state = numpy_random.get_state(legacy=False)
            numpy_random.set_state({**state, "has_gauss": 1, "gauss": stored})

    def forget(self) -> None:
        """A state is put back, which may have the words of another that had nothing in store."""
        self._empty = None

    def _words_of(self, own: Any) -> tuple[int, bytes] | None:
        """All that a Mersenne twister is made of; None for other kinds, whose size is not known."""
        if type(own).__name__ != "MT19937":
            return None
        address = own.ctypes.state_address
        return address, ctypes.string_at(address, self._WORDS)


_numpy_own = _NumpyOwn()


class _PythonOwn:
    """Copies the state of Python's generator as the memory that it is.

    `getstate` and `setstate` make objects of its 625 words, which takes thirty times as long. Where the
    words do not lie as they do in CPython, they are used all the same.
    """

    _WORDS = 625

    def __init__(self) -> None:
        self._memory: Any = None
        self._owner: Any = getattr(random.seed, "__self__", None)
        if (
            type(self._owner) is random.Random
            and type(self._owner).__basicsize__ >= object.__basicsize__ + 2500
        ):
            memory = (ctypes.c_uint32 * self._WORDS).from_address(id(self._owner) + object.__basicsize__)
            _, words, _ = random.getstate()
            # The number of the next word comes first there, and last here.
            if (*memory[1:], memory[0]) == words:
                self._memory = (ctypes.c_char * (4 * self._WORDS)).from_buffer(memory)

    def get(self) -> tuple[Any, ...]:
        if self._memory is None:
            return random.getstate()
        return self._memory.raw, self._owner.gauss_next

    def set(self, state: tuple[Any, ...]) -> None:
        if self._memory is None:
            random.setstate(state)
        else:
            self._memory.raw, self._owner.gauss_next = state


@cache
def _python_own() -> _PythonOwn:
    return _PythonOwn()


def _python_and_torch() -> tuple[Any, Tensor]:
    return _python_own().get(), torch.default_generator.get_state()


def _set_python_and_torch(state: tuple[Any, Tensor]) -> None:
    _python_own().set(state[0])
    torch.default_generator.set_state(state[1])


def host_rng_state() -> dict[str, Any]:
    """State of the host's generators: plain lists and tensors, safe to store."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        kind, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
        state["numpy"] = [kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, cached]
    return state


def set_host_rng_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"])
    # Loaded on demand only: a run that had NumPy in use resumes with it in use.
    if "numpy" in state:
        import numpy

        kind, keys, position, has_gauss, cached = state["numpy"]
        _numpy_own.forget()
        numpy.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, cached))


def set_deterministic(enabled: bool, *, warn_only: bool = False) -> None:
    """Have torch choose deterministic algorithms, and refuse operations that have none, or warn of them."""
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.backends.cudnn.deterministic = enabled
    if enabled:
        torch.backends.cudnn.benchmark = False
