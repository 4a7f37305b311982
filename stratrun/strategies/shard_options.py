"""What the user wrote about the sharding of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from stratrun.blocks import check_spec
from stratrun.errors import ConfigError, nearest

_ACCUMULATE = ("sharded", "unsharded")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """See `FSDPStrategy` for what each means."""

    blocks: Any = None
    reshard_after_forward: bool | int = True
    accumulate: str = "sharded"
    offload: bool = False
    ignore: Sequence[str] = ()
    reduce_dtype: str = "float32"
    broadcast_buffers: bool = True

    @classmethod
    def parse(cls, spec: Mapping[str, Any], what: str) -> "ShardOptions":
        """From a mapping of options.

        Raises:
            ConfigError: an option that there is not, or a value that it cannot have.
        """
        known = [field.name for field in fields(cls)]
        for key in spec:
            if key not in known:
                raise ConfigError(f"{what} takes no argument {key!r}; {nearest(str(key), known)}")
        made = cls(**spec)
        made.check(what)
        return made

    def check(self, what: str) -> None:
        """Refuse what no model could be sharded by."""
        check_spec(self.blocks, f"{what}: blocks")
        for name in ("offload", "broadcast_buffers"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{what}: {name}={getattr(self, name)!r} must be True or False")
        reshard = self.reshard_after_forward
        if not isinstance(reshard, int) or (not isinstance(reshard, bool) and reshard < 2):
            raise ConfigError(
                f"{what}: reshard_after_forward={reshard!r} must be True, False, or the number of ranks, "
                "from 2 on, that a block is to be spread over between its forward and its backward pass"
            )
        if self.accumulate not in _ACCUMULATE:
            hint = nearest(str(self.accumulate), _ACCUMULATE)
            raise ConfigError(f"{what}: accumulate={self.accumulate!r} is unknown; {hint}")
        if self.reduce_dtype not in _DTYPES:
            hint = nearest(str(self.reduce_dtype), _DTYPES)
            raise ConfigError(f"{what}: reduce_dtype={self.reduce_dtype!r} is unknown; {hint}")
        if isinstance(self.ignore, str) or not all(isinstance(name, str) for name in self.ignore):
            raise ConfigError(
                f"{what}: ignore={self.ignore!r} must be a list of names of parameters or of modules, "
                "such as ['head', 'blocks.*.gate']"
            )

    def reduced_in(self, dtype: torch.dtype) -> torch.dtype:
        """What gradients of parameters of a dtype are averaged in."""
        wanted: torch.dtype = getattr(torch, self.reduce_dtype)
        return dtype if dtype is torch.float64 else wanted
