"""From raw inputs to batches, and from what a model returns to results."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import count, islice
from typing import Any

from torch.utils.data import default_collate

from stratrun.data.options import DEFAULT_BATCH_SIZE
from stratrun.errors import ConfigError, nearest
from stratrun.registry import COLLATES, TRANSFORMS, Registry
from stratrun.registry.arguments import at

Step = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class RawSteps:
    """What `inference_cfg` says, built.

    Args:
        preprocess: Of a raw input makes a sample, as a data set would give it.
        collate: Of a list of samples makes a batch.
        postprocess: Of the outputs for one input makes the result.
    """

    preprocess: Step | None = None
    collate: Step | None = None
    postprocess: Step | None = None
    batch_size: int = DEFAULT_BATCH_SIZE

    @classmethod
    def build(cls, spec: Mapping[str, Any] | None, where: str = "inference_cfg") -> "RawSteps":
        """
        Raises:
            ConfigError: see `check_raw_steps`.
        """
        check_raw_steps(spec, where)
        given = {key: value for key, value in (spec or {}).items() if value is not None}
        for key, registry in _REGISTRIES.items():
            if key in given:
                given[key] = registry.build(given[key], where=_named(where, key))
        return cls(**given)

    def batches(self, inputs: Iterable[Any]) -> Iterator[tuple[Any, int]]:
        """Batches of the inputs with their sizes, read as they are asked for."""
        each, collate = iter(inputs), self.collate or default_collate
        numbers = count()
        while samples := [self._sample(one, next(numbers)) for one in islice(each, self.batch_size)]:
            yield collate(samples), len(samples)

    def _sample(self, raw: Any, number: int) -> Any:
        if self.preprocess is None:
            return raw
        try:
            return self.preprocess(raw)
        except Exception as error:
            error.add_note(f"in preprocess, of input {number}: {str(raw)[:100]}")
            raise


_REGISTRIES: dict[str, Registry] = {"preprocess": TRANSFORMS, "collate": COLLATES, "postprocess": TRANSFORMS}


def check_raw_steps(spec: Any, where: str = "inference_cfg") -> None:
    """Refuse what could not be built, building nothing.

    Raises:
        ConfigError: a key or a value will not do.
    """
    if spec is None:
        return
    known = [field.name for field in fields(RawSteps)]
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where}={spec!r} must be a dict; its settings are {', '.join(known)}")
    places = getattr(spec, "places", {})
    for key, value in spec.items():
        if key not in known:
            raise ConfigError(f"{where} has no setting {key!r}; {nearest(str(key), known)}{at(places, key)}")
        if key == "batch_size":
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                name = _named(where, key)
                raise ConfigError(f"{name}={value!r} must be a whole number above 0{at(places, key)}")
        elif isinstance(value, str | type | Mapping):
            _REGISTRIES[key].check(value, where=_named(where, key))
        elif value is not None and not callable(value):
            raise ConfigError(
                f"{_named(where, key)}={value!r} cannot be called; give a function, a name or a dict with "
                f"'type'{at(places, key)}"
            )


def _named(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
