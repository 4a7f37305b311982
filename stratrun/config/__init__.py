"""Configs: plain data whose every value knows where it was written."""

from stratrun.config.config import Config

__all__ = ["Config"]
