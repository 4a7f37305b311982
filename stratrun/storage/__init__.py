from stratrun.storage.filesystem import Folder

__all__ = ["Folder"]
