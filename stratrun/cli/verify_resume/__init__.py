from stratrun.cli.verify_resume.command import add_arguments, run

__all__ = ["add_arguments", "run"]
