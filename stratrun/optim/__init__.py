from stratrun.optim.extent import Extent
from stratrun.optim.schedule import Schedule

__all__ = ["Extent", "Schedule"]
