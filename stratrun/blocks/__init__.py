"""Parts of a model that are treated alike: found by what the user says, or because they repeat."""

from stratrun.blocks.compilations import Compilations
from stratrun.blocks.select import check_spec, select
from stratrun.blocks.transforms import BlockTransforms

__all__ = ["BlockTransforms", "Compilations", "check_spec", "select"]
