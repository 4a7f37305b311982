"""The schema of a whole config, out of what the classes that it may name take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from stratrun.cli.config.schema.annotations import Schema, of_annotation, of_arguments
from stratrun.data.turns import MODES, UNTIL
from stratrun.engine.non_finite import POLICIES
from stratrun.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from stratrun.optim.lengths import LENGTHS
from stratrun.registry import PARAM_SCHEDULERS, Registry
from stratrun.registry.arguments import parameters_of
from stratrun.registry.docs import documented
from stratrun.registry.offers import about, offers_of
from stratrun.runner import Runner
from stratrun.runner.slots import LOADER_KEYS, SLOTS, Slot

DRAFT = "http://json-schema.org/draft-07/schema#"
_DELETE = {"_delete_": {"type": "boolean", "description": "Drop what this mapping would merge with."}}
_PATH = {"type": "string", "pattern": r"\.", "description": "The path of a class, below an --allow."}
# What stands in short for a dict of settings, and settings that take more than their field says.
_SHORT: dict[str, Schema] = {"clip_grad": {"type": "number"}, "non_finite": {"enum": list(POLICIES)}}
_WIDER = ("fast_dev_run", "limit_batches", "time_limit", "signals")


class Definitions:
    """Schemas that others refer to, made when they are first asked for."""

    def __init__(self) -> None:
        self.made: dict[str, Schema] = {}

    def ref(self, name: str, make: Callable[[], Schema]) -> Schema:
        if name not in self.made:
            self.made[name] = {}  # what refers to itself finds it
            self.made[name] = make()
        return {"$ref": f"#/definitions/{name}"}


def of_config() -> Schema:
    """The schema of a config. Whatever is registered by now is in it."""
    definitions = Definitions()
    told = documented(Runner)
    annotated = of_arguments(Runner)
    properties: dict[str, Schema] = {
        "_base_": {
            "description": "A config, or several, that this one changes.",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        }
    }
    for name in parameters_of(Runner) or {}:
        if name != "cfg":
            schema = _value(name, definitions) or annotated[name]
            properties[name] = {**schema, **({"description": told[name]} if name in told else {})}
    runner = {"type": "object", "properties": properties, "additionalProperties": False}
    return {
        "$schema": DRAFT,
        "title": "A config of stratrun",
        "if": {"type": "object", "required": ["runner_type"]},
        "then": {"type": "object"},
        "else": runner,
        "definitions": definitions.made,
    }


def of_class(registry: Registry, name: str) -> Schema:
    """The schema of a dict that names a class, and of what it must have."""
    slot = next((one for one in SLOTS.values() if one.registry is registry), Slot())
    entry = registry.get(name)
    schema = _of_class(entry, slot, (name,), registry)
    parameters = parameters_of(entry) or {}
    needed = [
        key
        for key in schema["properties"]
        if key not in slot.given and key in parameters and parameters[key].default is parameters[key].empty
    ]
    return {"$schema": DRAFT, **schema, "required": ["type", *needed]}


def _value(key: str, definitions: Definitions) -> Schema:
    """What may stand at a key of the config; empty where only its annotation tells."""
    if key.endswith("_dataloader"):
        return {"anyOf": [_loader(key, definitions), _several(key, definitions), {"type": "null"}]}
    if key == "default_hooks":
        hooks = {
            name.partition(".")[2]: {"anyOf": [_named(name, slot, definitions), {"type": "null"}]}
            for name, slot in SLOTS.items()
            if name.startswith("default_hooks.")
        }
        return {"type": "object", "properties": {**hooks, **_DELETE}, "additionalProperties": False}
    slot = SLOTS.get(key)
    if slot is None:
        return {}
    if slot.settings is not None:
        settings = definitions.ref(key, lambda: _settings(slot.settings))
        return {"anyOf": [settings, *([_SHORT[key]] if key in _SHORT else []), {"type": "null"}]}
    one = _named(key, slot, definitions)
    if key == "loss":
        one = {"anyOf": [{"type": "string"}, one]}
    several = [{"type": "array", "items": one}] if slot.many else []
    if slot.named:
        # A dict without a type is one of several by name; a metric has its kind in a list too.
        several.append({"type": "array", "items": one})
    return {"anyOf": [one, *several, {"type": "null"}]}


def _settings(kind: type | None) -> Schema:
    assert kind is not None
    told = documented(kind)
    properties = {
        name: _with_text({} if name in _WIDER else schema, told.get(name, ""))
        for name, schema in of_arguments(kind).items()
    }
    return {"type": "object", "properties": {**properties, **_DELETE}, "additionalProperties": False}


def _named(key: str, slot: Slot, definitions: Definitions) -> Schema:
    """A name, or a dict with `type` and the arguments of that class."""
    registry = slot.registry
    assert registry is not None
    # Schedules and the like have more beside the arguments of the class than others of the registry.
    title = registry.kind if not slot.default else f"{registry.kind} {key}"
    return definitions.ref(title.replace(" ", "."), lambda: _choice(key, slot, registry, definitions))


def _choice(key: str, slot: Slot, registry: Registry, definitions: Definitions) -> Schema:
    names: list[str] = []
    branches: list[Schema] = []
    for offer in offers_of(registry):
        names += offer.names
        if offer.entry is None:
            continue
        entry, title = offer.entry, f"{registry.kind}.{offer.names[0]}"
        made = definitions.ref(title, partial(_of_class, entry, slot, offer.names, registry))
        chosen = {"required": ["type"], "properties": {"type": {"enum": list(offer.names)}}}
        branches.append({"if": chosen, "then": made})
    kind = {"anyOf": [{"enum": sorted(names)}, _PATH], "description": "Which class."}
    if slot.default is not None:
        branches.append({"if": {"not": {"required": ["type"]}}, "then": _default(key, slot)})
    dict_of: Schema = {"type": "object", "properties": {"type": kind, **_DELETE}}
    if branches:
        dict_of["allOf"] = branches
    return {"anyOf": [{"enum": sorted(names)}, dict_of]}


def _default(key: str, slot: Slot) -> Schema:
    """The arguments where no type is given."""
    assert slot.registry is not None and slot.default is not None
    entries = [slot.registry.get(slot.default)]
    beside: dict[str, Schema] = {}
    if key == "train_cfg":
        entries = [EpochBasedTrainLoop, IterBasedTrainLoop]
        beside = {"by_epoch": {"type": "boolean", "description": "Whether it counts epochs or iterations."}}
    for entry in entries:
        beside = {**_of_class(entry, slot, (), slot.registry)["properties"], **beside}
    beside.pop("type", None)
    return {"type": "object", "properties": beside, "additionalProperties": False}


def _of_class(entry: Callable[..., Any], slot: Slot, names: tuple[str, ...], registry: Registry) -> Schema:
    told = documented(entry)
    properties: dict[str, Schema] = {"type": {"enum": list(names)}} if names else {}
    for name, schema in of_arguments(entry).items():
        if name in slot.given:
            continue
        if registry is PARAM_SCHEDULERS and name in LENGTHS and schema:
            schema = {"anyOf": [schema, {"const": "auto"}]}
        properties[name] = _with_text(schema, told.get(name, ""))
    for name, text in slot.beside.items():
        properties.setdefault(name, _with_text({}, text))
    parameters = parameters_of(entry)
    is_open = parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        "title": entry.__name__,
        "description": about(entry),
        "type": "object",
        "properties": {**properties, **_DELETE},
        "additionalProperties": is_open,
    }


def _loader(key: str, definitions: Definitions) -> Schema:
    def make() -> Schema:
        told = documented(DataLoader)
        properties = {
            name: _with_text(schema, told.get(name, ""))
            for name, schema in of_arguments(DataLoader).items()
            if name != "generator"
        }
        numbers = {"global_batch_size": of_annotation(int)}
        for name, text in LOADER_KEYS.items():
            properties[name] = _with_text(numbers.get(name, of_annotation(bool)), text)
        for name in ("dataset", "sampler", "batch_sampler", "collate_fn"):
            slot = SLOTS[f"{key}.{name}"]
            properties[name] = {"anyOf": [_named(f"{key}.{name}", slot, definitions), {"type": "null"}]}
        # A limit that is left out is None for us, and no limit, as torch has it.
        properties["batch_size"] = _with_text({"type": ["integer", "null"]}, told["batch_size"])
        return {"type": "object", "properties": {**properties, **_DELETE}, "additionalProperties": False}

    return definitions.ref("DataLoader", make)


def _several(key: str, definitions: Definitions) -> Schema:
    loaders = {"type": "object", "minProperties": 1, "additionalProperties": _loader(key, definitions)}
    if key != "train_dataloader":
        return loaders
    properties: Mapping[str, Schema] = {
        "type": {"const": "MultiLoader"},
        "loaders": loaders,
        "mode": {"enum": list(MODES)},
        "until": {"enum": list(UNTIL)},
        "weights": {"type": "array", "items": {"type": "number"}},
        "as_dict": {"type": "boolean"},
    }
    return {
        "type": "object",
        "required": ["type"],
        "properties": {**properties, **_DELETE},
        "additionalProperties": False,
    }


def _with_text(schema: Schema, text: str) -> Schema:
    return {**schema, "description": text} if text else dict(schema)
