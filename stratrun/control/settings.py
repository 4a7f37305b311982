"""`control_cfg`: what ends a run from outside, and what comes after that."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from stratrun.errors import ConfigError, nearest

_DEFAULT = ("SIGTERM", "SIGINT", "SIGUSR1")
_NEVER = ("SIGKILL", "SIGSTOP")  # which no process can catch
# As SLURM writes it.
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)")


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """What `control_cfg` may set."""

    signals: tuple[str, ...] = _DEFAULT
    """Those that stop a job: tidily, with a checkpoint. Others do what they do without us."""
    time_limit: float | None = None
    """Seconds of training after which it stops, saved. It may be given as ``"hh:mm:ss"``."""
    requeue: bool = False
    """Have SLURM start the job again when a signal or the time limit has stopped it, but for Ctrl-C."""

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(signal.Signals[name].value for name in self.signals)


def parse_control(spec: Any, resume: Any = None) -> ControlSettings:
    """
    Args:
        resume: What the run is to go on from, as a run that starts again must go on.

    Raises:
        ConfigError: a setting is unknown, or its value will not do.
    """
    known = [field.name for field in fields(ControlSettings)]
    if spec is None:
        return ControlSettings()
    if not isinstance(spec, Mapping):
        raise ConfigError(f"control_cfg={spec!r} must be a dict; its settings are {', '.join(known)}")
    for key in spec:
        if key not in known:
            raise ConfigError(f"control_cfg has no setting {key!r}; {nearest(str(key), known)}")
    requeue = spec.get("requeue", False)
    if not isinstance(requeue, bool):
        raise ConfigError(f"control_cfg: requeue={requeue!r} must be True or False")
    if requeue and resume is False:
        raise ConfigError(
            "control_cfg: requeue=True starts this very program again, which with resume=False would not go "
            "on; give resume='auto' too"
        )
    return ControlSettings(
        signals=_signals(spec.get("signals", _DEFAULT)),
        time_limit=_seconds(spec.get("time_limit")),
        requeue=requeue,
    )


def _signals(given: Any) -> tuple[str, ...]:
    names = () if given is None else (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence):
        raise ConfigError(
            f"control_cfg: signals={given!r} must be names of signals, such as ('SIGTERM', 'SIGINT'); "
            "None for none"
        )
    known = [one.name for one in signal.Signals if one.name not in _NEVER]
    found = []
    for name in names:
        if name in _NEVER:
            raise ConfigError(f"control_cfg: signals: no program can catch {name}; leave it out")
        if name not in known:
            raise ConfigError(
                f"control_cfg: signals: {name!r} is no signal here; {nearest(str(name), known)}"
            )
        found.append(str(name))
    return tuple(dict.fromkeys(found))


def _seconds(given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, str) and (match := _CLOCK.fullmatch(given.strip())):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        given = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not isfinite(given) or given <= 0:
        raise ConfigError(
            f"control_cfg: time_limit={given!r} must be seconds above 0, or hours, minutes and seconds "
            "such as '11:50:00'; None for no limit"
        )
    return float(given)
