from stratrun.loops import BaseLoop
from stratrun.runner.runner import Runner

__all__ = ["BaseLoop", "Runner"]
