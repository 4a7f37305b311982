from stratrun.cli.main import main

__all__ = ["main"]
