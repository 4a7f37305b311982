"""In the place of MMEngine's classes of the same names, and what reads its configs and checkpoints."""

from typing import TYPE_CHECKING

from stratrun.registry.later import later

if TYPE_CHECKING:
    from stratrun_ext.migrate.mmengine.collate import pseudo_collate
    from stratrun_ext.migrate.mmengine.hook import Hook
    from stratrun_ext.migrate.mmengine.metric import BaseMetric
    from stratrun_ext.migrate.mmengine.model import BaseModel
    from stratrun_ext.migrate.mmengine.preprocessor import BaseDataPreprocessor, ImgDataPreprocessor

__all__ = [
    "BaseDataPreprocessor",
    "BaseMetric",
    "BaseModel",
    "Hook",
    "ImgDataPreprocessor",
    "pseudo_collate",
]

# Later, as the command that reads configs has no need of torch.
__getattr__, __dir__ = later(
    __name__,
    {
        "BaseDataPreprocessor": "preprocessor",
        "BaseMetric": "metric",
        "BaseModel": "model",
        "Hook": "hook",
        "ImgDataPreprocessor": "preprocessor",
        "pseudo_collate": "collate",
    },
)
