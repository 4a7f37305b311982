"""What users say of several loaders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from stratrun.data.source import Setting
from stratrun.data.turns import MODES, TOGETHER, UNTIL
from stratrun.errors import ConfigError, nearest
from stratrun.registry.arguments import at
from stratrun.registry.spec import edited

TYPE = "MultiLoader"
_KEYS = ("type", "loaders", "mode", "weights", "until", "as_dict")
_FORM = f"dict(type={TYPE!r}, loaders=dict(one=..., other=...), mode='round_robin')"


@dataclass(frozen=True)
class SeveralLoaders:
    """Loaders by name, and how they give batches."""

    loaders: Mapping[str, Any]
    mode: str = "round_robin"
    weights: Sequence[float] | None = None
    """By which a loader is chosen, in their order."""
    until: str = "all"
    """When an epoch ends where loaders take turns. See `OneAfterAnother`."""
    as_dict: bool = False
    """Whether a batch comes as a dict, with the name of its loader."""

    @classmethod
    def of(cls, spec: Mapping[str, Any], setting: Setting) -> "SeveralLoaders":
        """
        Raises:
            ConfigError: a value will not do. Nothing is built.
        """
        name, places = setting.name, getattr(spec, "places", {})
        _refuse_other_things(spec, setting, places)
        loaders = _loaders(spec.get("loaders"), name, places)
        mode = _one_of("mode", spec.get("mode", "round_robin"), MODES, name, places)
        until = _one_of("until", spec.get("until", "all"), UNTIL, name, places)
        if until != "all" and mode not in ("round_robin", "weighted"):
            raise ConfigError(
                f"{name}: until={until!r} says how long loaders take turns, and with mode={mode!r} they do "
                f"not; leave until out{at(places, 'until')}"
            )
        as_dict = spec.get("as_dict", mode in TOGETHER)
        if not isinstance(as_dict, bool) or (mode in TOGETHER and not as_dict):
            why = f"mode={mode!r} has a batch of each" if isinstance(as_dict, bool) else "it is True or False"
            raise ConfigError(f"{name}: as_dict={as_dict!r} will not do: {why}{at(places, 'as_dict')}")
        return cls(loaders, mode, _weights(spec.get("weights"), mode, loaders, name, places), until, as_dict)

    @property
    def together(self) -> bool:
        return self.mode in TOGETHER

    def spec_of(self, name: str) -> Any:
        """What was given for one loader; without its last, short batch, where batches come together."""
        given = self.loaders[name]
        if not self.together or not isinstance(given, Mapping):
            return given
        said = any(key in given for key in ("drop_last", "batch_sampler"))
        return given if said else edited(given, put={"drop_last": True})


def is_several(spec: Any) -> bool:
    return isinstance(spec, Mapping) and "dataset" not in spec and ("loaders" in spec or "type" in spec)


def _refuse_other_things(spec: Mapping[str, Any], setting: Setting, places: Mapping[str, str]) -> None:
    name, kind = setting.name, spec.get("type")
    if kind != TYPE:
        said = f"type={kind!r} is no kind of loader" if "type" in spec else "'loaders' has no 'type'"
        raise ConfigError(
            f"{name}: {said}; several loaders are {_FORM}, and one is a dict with 'dataset'"
            f"{at(places, 'type')}"
        )
    for key in spec:
        if key not in _KEYS:
            hint = nearest(str(key), _KEYS)
            raise ConfigError(f"{name}: {TYPE} takes no argument {key!r}; {hint}{at(places, key)}")
    if not setting.train:
        raise ConfigError(
            f"{name}: a {TYPE} is for training; to evaluate on several data sets, give their loaders by "
            f"name: dict(one=dict(dataset=...), other=dict(dataset=...)){at(places, 'type')}"
        )


def _loaders(given: Any, name: str, places: Mapping[str, str]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not given or not all(isinstance(key, str) for key in given):
        shown = "nothing" if given is None else repr(given)
        raise ConfigError(
            f"{name}: loaders must be a dict of names and loaders, and is {shown}; write {_FORM}"
            f"{at(places, 'loaders')}"
        )
    for key, one in given.items():
        if is_several(one):
            raise ConfigError(f"{name}.loaders.{key} has several loaders itself; give them all in one {TYPE}")
        if hasattr(one, "batches_done"):
            raise ConfigError(f"{name}.loaders.{key} is built already; give what it was built of")
    return given


def _one_of(key: str, given: Any, known: Any, name: str, places: Mapping[str, str]) -> str:
    if not isinstance(given, str) or given not in known:
        hint = nearest(str(given), known)
        raise ConfigError(f"{name}: {key}={given!r} is unknown; {hint}{at(places, key)}")
    return given


def _weights(
    given: Any, mode: str, loaders: Mapping[str, Any], name: str, places: Mapping[str, str]
) -> Sequence[float] | None:
    if mode != "weighted":
        if given is not None:
            raise ConfigError(
                f"{name}: weights are for mode='weighted', and it is {mode!r}{at(places, 'weights')}"
            )
        return None
    if not isinstance(given, Mapping):
        shown = "there are none" if given is None else f"they are {given!r}"
        raise ConfigError(
            f"{name}: mode='weighted' needs weights, a dict with a number for each loader, and {shown}"
            f"{at(places, 'mode')}"
        )
    strange = next((key for key in given if key not in loaders), None)
    if strange is not None:
        hint = nearest(str(strange), loaders)
        raise ConfigError(f"{name}: weights has no loader {strange!r}; {hint}{at(places, 'weights')}")
    return [_weight(key, given.get(key), name, places) for key in loaders]


def _weight(key: str, given: Any, name: str, places: Mapping[str, str]) -> float:
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not given > 0 or not isfinite(given):
        raise ConfigError(
            f"{name}: the weight of {key!r} is {given!r}; give each loader a number above 0"
            f"{at(places, 'weights')}"
        )
    return float(given)
