from stratrun.cli.config.schema.command import add_arguments, run

__all__ = ["add_arguments", "run"]
