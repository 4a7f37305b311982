from stratrun.control.control import Control
from stratrun.control.settings import ControlSettings, parse_control

__all__ = ["Control", "ControlSettings", "parse_control"]
