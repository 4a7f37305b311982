"""What the user wrote as `non_finite`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stratrun.errors import ConfigError, nearest

POLICIES = ("raise", "skip", "rollback", "ignore")
_PLACES = ("checkpoint", "memory")


@dataclass(frozen=True, slots=True)
class NonFinite:
    """What becomes of an update whose loss or gradients are infinite or no number."""

    policy: str = "raise"
    """`raise` ends the run before the update, `skip` drops the update, `rollback` goes back to weights of
    before, and `ignore` does not look."""
    to: str = "checkpoint"
    """What a rollback goes back to: the newest committed `checkpoint`, or a copy in `memory`."""
    every: int = 100
    """Updates between copies in memory."""
    limit: int = 3
    """Rollbacks in all; what would be one more is an error."""

    @classmethod
    def parse(cls, spec: Any) -> "NonFinite":
        """From the name of a policy, or a dict with `policy` and its settings.

        Raises:
            ConfigError: an unknown policy or setting, or one that the policy does not have.
        """
        if isinstance(spec, cls):
            return spec
        if isinstance(spec, str):
            spec = {"policy": spec}
        if not isinstance(spec, Mapping) or "policy" not in spec:
            raise ConfigError(
                f"non_finite={spec!r} is not understood; give one of {', '.join(map(repr, POLICIES))}, or "
                "dict(policy='rollback', to='memory', every=100, limit=3)"
            )
        policy = spec["policy"]
        if policy not in POLICIES:
            raise ConfigError(f"non_finite: policy={policy!r} is unknown; {nearest(str(policy), POLICIES)}")
        _check_settings(spec, policy)
        return cls(**spec)


def _check_settings(spec: Mapping[str, Any], policy: str) -> None:
    known, to = ("policy", "to", "every", "limit"), spec.get("to", "checkpoint")
    for key, value in spec.items():
        if key not in known:
            raise ConfigError(f"non_finite has no setting {key!r}; {nearest(str(key), known)}")
        if key != "policy" and policy != "rollback":
            raise ConfigError(
                f"non_finite: {key} is a setting of 'rollback', and policy={policy!r}; leave it out"
            )
        whole = isinstance(value, int) and not isinstance(value, bool)
        if key in ("every", "limit") and not (whole and value >= 1):
            raise ConfigError(f"non_finite: {key}={value!r} must be a whole number, at least 1")
    if to not in _PLACES:
        raise ConfigError(f"non_finite: to={to!r} is unknown; {nearest(str(to), _PLACES)}")
    if "every" in spec and to != "memory":
        raise ConfigError("non_finite: every is about copies in memory; add to='memory', or leave it out")
