from stratrun.cli.plot_schedule.command import add_arguments, run

__all__ = ["add_arguments", "run"]
