from stratrun.storage.filesystem import Folder
from stratrun.storage.retry import Retry

__all__ = ["Folder", "Retry"]
