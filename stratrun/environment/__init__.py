"""What a run runs on: versions, hardware, variables, and what of it is known to make trouble."""

from stratrun.environment.report import EnvironmentReport, environment_report

__all__ = ["EnvironmentReport", "environment_report"]
