"""What the user wrote as `clip_grad`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stratrun.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Clipping:
    """Limits on gradients: of the global norm, of each value, or of both (values first)."""

    max_norm: float | None = None
    norm_type: float = 2.0
    value: float | None = None

    @classmethod
    def parse(cls, spec: Any) -> "Clipping | None":
        """From a number (the largest norm), a dict, or None.

        Raises:
            ConfigError: an unknown key, or a limit that is not positive.
        """
        if spec is None or isinstance(spec, cls):
            return spec
        if isinstance(spec, int | float) and not isinstance(spec, bool):
            spec = {"max_norm": spec}
        if not isinstance(spec, Mapping):
            raise ConfigError(
                f"clip_grad={spec!r} is not understood; give a number (the largest norm), "
                "dict(max_norm=1.0), or dict(value=0.5)"
            )
        known = ("max_norm", "norm_type", "value")
        for key, limit in spec.items():
            if key not in known:
                raise ConfigError(f"clip_grad has no setting {key!r}; {nearest(str(key), known)}")
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if limit is not None and not (number and limit > 0):
                raise ConfigError(f"clip_grad: {key}={limit!r} must be a number above 0")
        if spec.get("max_norm") is None and spec.get("value") is None:
            raise ConfigError("clip_grad sets no limit; give max_norm=..., value=..., or both")
        return cls(**spec)
