from stratrun.hooks.base import POINTS, PRIORITIES, Hook
from stratrun.hooks.checkpoint import CheckpointHook
from stratrun.hooks.ema import EMAHook
from stratrun.hooks.hook_times import HookTimesHook
from stratrun.hooks.logging import LoggerHook
from stratrun.hooks.memory import MemoryHook
from stratrun.hooks.profiler import ProfilerHook
from stratrun.hooks.scheduler import ParamSchedulerHook
from stratrun.hooks.stragglers import StragglerHook
from stratrun.hooks.throughput import ThroughputHook
from stratrun.hooks.timer import IterTimerHook

__all__ = [
    "POINTS",
    "PRIORITIES",
    "CheckpointHook",
    "EMAHook",
    "Hook",
    "HookTimesHook",
    "IterTimerHook",
    "LoggerHook",
    "MemoryHook",
    "ParamSchedulerHook",
    "ProfilerHook",
    "StragglerHook",
    "ThroughputHook",
]
