from stratrun.cli.plan.command import add_arguments, run

__all__ = ["add_arguments", "run"]
