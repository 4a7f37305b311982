from stratrun.cli.check.command import add_arguments, run

__all__ = ["add_arguments", "run"]
