"""Models built without memory, of which any one tensor can be made, as a plain build makes it."""

from stratrun.deferred.build import Initial, build, give_memory

__all__ = ["Initial", "build", "give_memory"]
