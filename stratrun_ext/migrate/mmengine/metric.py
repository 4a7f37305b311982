"""A metric in MMEngine's form."""

from typing import Any

from stratrun.errors import ConfigError, MetricError
from stratrun.evaluation import BaseMetric as _BaseMetric


class BaseMetric(_BaseMetric):
    """Collects results batch by batch, and computes values of all of them.

    `compute_metrics` gets the results of all processes in the order of the samples, none twice and none
    from padding.

    Args:
        collect_device: Of no meaning here, as `collect_dir`: results travel by the CPU.
        prefix: Stands before each name, with ``/``.
    """

    dataset_meta: dict[str, Any] | None = None
    """For whoever sets it; data sets are not asked for it here."""

    def __init__(
        self, collect_device: str = "cpu", prefix: str | None = None, collect_dir: str | None = None
    ) -> None:
        if collect_device not in ("cpu", "gpu"):
            raise ConfigError(
                f"{type(self).__name__}: collect_device={collect_device!r} must be 'cpu' or 'gpu'; "
                "neither makes a difference here"
            )
        super().__init__(prefix)

    def evaluate(self, size: int) -> dict[str, Any]:
        """The values over what this process has collected, by hand; a run has no need of it.

        Args:
            size: Samples of the data set. More results than that are left out, as they come from padding.
        """
        if not self.results:
            raise MetricError(f"{type(self).__name__}.process() appended nothing to self.results")
        values = self.compute_metrics(self.results[:size])
        self.results: list[Any] = []
        return {f"{self.prefix}/{name}" if self.prefix else name: value for name, value in values.items()}
