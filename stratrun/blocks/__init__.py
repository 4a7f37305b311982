"""Parts of a model that are treated alike: found by what the user says, or because they repeat."""

from stratrun.blocks.select import check_spec, select

__all__ = ["check_spec", "select"]
