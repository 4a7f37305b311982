"""MMEngine's form of a metric: a list of results, one or more a batch."""

from abc import ABC, abstractmethod
from typing import Any, Self


class BaseMetric(ABC):
    """Collects what `process` appends to `self.results` and computes from all of it at the end.

    `compute_metrics` gets the results of all ranks in the order of the samples, on the CPU, as if one
    process had seen every sample; it runs on the main rank alone. For what can be summed
    up batch by batch `Metric` is leaner.
    """

    default_prefix: str | None = None
    """Stands in where `prefix` is not given."""
    prefix: str | None = None
    results: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Here and not in __init__, so that a subclass may forget to call ours.
        metric = super().__new__(cls)
        metric.results = []
        metric.prefix = cls.default_prefix
        return metric

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = prefix or self.default_prefix

    @abstractmethod
    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Append what matters of a batch to `self.results`: best one entry for each sample.

        Args:
            data_samples: What the model gave for the batch.
        """

    @abstractmethod
    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        """The values by name, from the results of all samples."""
