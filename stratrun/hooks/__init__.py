from stratrun.hooks.base import POINTS, PRIORITIES, Hook

__all__ = ["POINTS", "PRIORITIES", "Hook"]
