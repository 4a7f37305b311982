from stratrun.cli.find_lr.command import add_arguments, run

__all__ = ["add_arguments", "run"]
