from stratrun.optim.scheduler import Schedule

__all__ = ["Schedule"]
