from typing import TYPE_CHECKING

from stratrun.registry.later import later

if TYPE_CHECKING:
    from stratrun.hooks.activations import ActivationsHook
    from stratrun.hooks.base import POINTS, PRIORITIES, Hook
    from stratrun.hooks.checkpoint import CheckpointHook
    from stratrun.hooks.early_stopping import EarlyStoppingHook
    from stratrun.hooks.ema import EMAHook
    from stratrun.hooks.empty_cache import EmptyCacheHook
    from stratrun.hooks.freeze import FreezeHook
    from stratrun.hooks.functions import LambdaHook
    from stratrun.hooks.hook_times import HookTimesHook
    from stratrun.hooks.logging import LoggerHook
    from stratrun.hooks.memory import MemoryHook
    from stratrun.hooks.micro_batch import MicroBatchHook
    from stratrun.hooks.parameters import ParametersHook
    from stratrun.hooks.prediction_writer import PredictionWriterHook
    from stratrun.hooks.profiler import ProfilerHook
    from stratrun.hooks.report import ReportHook
    from stratrun.hooks.samples import SampleHook
    from stratrun.hooks.scheduler import ParamSchedulerHook
    from stratrun.hooks.spike import SpikeHook
    from stratrun.hooks.stragglers import StragglerHook
    from stratrun.hooks.summary import SummaryHook
    from stratrun.hooks.swa import SWAHook
    from stratrun.hooks.sync_buffers import SyncBuffersHook
    from stratrun.hooks.system import SystemHook
    from stratrun.hooks.throughput import ThroughputHook
    from stratrun.hooks.timer import IterTimerHook

__all__ = [
    "POINTS",
    "PRIORITIES",
    "ActivationsHook",
    "CheckpointHook",
    "EMAHook",
    "EarlyStoppingHook",
    "EmptyCacheHook",
    "FreezeHook",
    "Hook",
    "HookTimesHook",
    "IterTimerHook",
    "LambdaHook",
    "LoggerHook",
    "MemoryHook",
    "MicroBatchHook",
    "ParamSchedulerHook",
    "ParametersHook",
    "PredictionWriterHook",
    "ProfilerHook",
    "ReportHook",
    "SWAHook",
    "SampleHook",
    "SpikeHook",
    "StragglerHook",
    "SummaryHook",
    "SyncBuffersHook",
    "SystemHook",
    "ThroughputHook",
]

__getattr__, __dir__ = later(
    __name__,
    {
        "POINTS": "base",
        "PRIORITIES": "base",
        "ActivationsHook": "activations",
        "CheckpointHook": "checkpoint",
        "EMAHook": "ema",
        "EarlyStoppingHook": "early_stopping",
        "EmptyCacheHook": "empty_cache",
        "FreezeHook": "freeze",
        "Hook": "base",
        "HookTimesHook": "hook_times",
        "IterTimerHook": "timer",
        "LambdaHook": "functions",
        "LoggerHook": "logging",
        "MemoryHook": "memory",
        "MicroBatchHook": "micro_batch",
        "ParamSchedulerHook": "scheduler",
        "ParametersHook": "parameters",
        "PredictionWriterHook": "prediction_writer",
        "ProfilerHook": "profiler",
        "ReportHook": "report",
        "SWAHook": "swa",
        "SampleHook": "samples",
        "SpikeHook": "spike",
        "StragglerHook": "stragglers",
        "SummaryHook": "summary",
        "SyncBuffersHook": "sync_buffers",
        "SystemHook": "system",
        "ThroughputHook": "throughput",
    },
)
