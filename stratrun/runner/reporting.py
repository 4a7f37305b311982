"""The report of a run, written by the run itself."""

from stratrun.loggers import LoggerGroup
from stratrun.runner.saving import SaveSettings


def write_report(
    log_folder: str | None, loggers: LoggerGroup, work_dir: str, saving: SaveSettings
) -> str | None:
    """
    Raises:
        ConfigError: the run writes no log that a report could be made of.
        MissingDependencyError: plotly is not installed.
    """
    if log_folder is None:
        return None
    # Only now: most runs write none.
    from stratrun.report import write_report

    loggers.flush()
    return write_report([work_dir], **saving.storage_options)
