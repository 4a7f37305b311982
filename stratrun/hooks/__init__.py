from stratrun.hooks.base import POINTS, PRIORITIES, Hook
from stratrun.hooks.checkpoint import CheckpointHook
from stratrun.hooks.ema import EMAHook
from stratrun.hooks.logging import LoggerHook
from stratrun.hooks.scheduler import ParamSchedulerHook
from stratrun.hooks.timer import IterTimerHook

__all__ = [
    "POINTS",
    "PRIORITIES",
    "CheckpointHook",
    "EMAHook",
    "Hook",
    "IterTimerHook",
    "LoggerHook",
    "ParamSchedulerHook",
]
