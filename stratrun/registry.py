"""Names to classes, found when first asked for."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from stratrun.errors import ConfigError, MissingDependencyError, UnknownNameError, nearest

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Classes (or functions) of one kind, by name.

    A name is looked for among registered classes, then in the built-in package `builtins`,
    then among the public classes of the modules in `fallbacks`, then among the entry points of
    the group ``stratrun.<kind>``. None of them is imported before a name is asked for. A name
    with a dot is the path of an object to import.
    """

    def __init__(self, kind: str, builtins: str | None = None, fallbacks: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._builtins = builtins
        self._fallbacks = fallbacks
        self._entries: dict[str, Callable[..., Any]] = {}

    def register_module(
        self, name: str | Iterable[str] | None = None, *, force: bool = False
    ) -> Callable[[T], T]:
        """Decorator that adds a class or function under `name`, its own name by default.

        Raises:
            ConfigError: another object has that name already and `force` is false.
        """

        def add(entry: T) -> T:
            names = [entry.__name__] if name is None else [name] if isinstance(name, str) else name
            for key in names:
                known = self._entries.get(key)
                # A module that is executed twice (a notebook cell, `python -m`) redefines itself.
                if known is not None and not force and not _same_definition(known, entry):
                    raise ConfigError(
                        f"{self.kind} entry {key!r} is already {_path(known)}; "
                        "choose another name, or pass force=True to replace it"
                    )
                self._entries[key] = entry
            return entry

        return add

    def get(self, name: str) -> Callable[..., Any]:
        """The entry called `name`.

        Raises:
            UnknownNameError: there is none; the message names the nearest.
            MissingDependencyError: a plugin's package is not installed.
        """
        if found := self._find(name):
            return found
        raise UnknownNameError(f"no {self.kind} entry named {name!r}; {nearest(name, self.names())}")

    def names(self) -> list[str]:
        """Every name that `get` knows, dotted paths apart."""
        self._load_builtins()
        plugins = entry_points(group=f"stratrun.{self.kind}").names
        return sorted({*self._entries, *plugins, *self._fallback_names()})

    def entries(self) -> dict[str, Callable[..., Any]]:
        """Built-in and registered entries by name, in the order of registration."""
        self._load_builtins()
        return dict(self._entries)

    def build(
        self, spec: Any, *, where: str = "", offer: Mapping[str, Any] | None = None, **given: Any
    ) -> Any:
        """Turn a name, a class or a dict with `type` into an object; pass other objects through.

        Args:
            where: How the user calls this value (``optimizer``), for messages.
            offer: Arguments passed only if the class takes them and the dict does not set them.
            given: Arguments passed always.
        """
        if not isinstance(spec, str | type | Mapping):
            return spec
        entry, options = self.check(spec, where=where, given=given)
        if offer:
            accepted = _parameters(entry)
            options = {**{k: v for k, v in offer.items() if k in accepted}, **options}
        if inspect.isclass(entry):
            return entry(**given, **options)
        return partial(entry, **given, **options)

    def check(
        self, spec: Any, *, where: str = "", given: Iterable[str] = (), offer: Iterable[str] = ()
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Resolve a spec and refuse arguments that its class does not take, building nothing.

        Returns:
            The class (or function) and the options of the spec, `type` apart.
        """
        if isinstance(spec, type):
            return spec, {}
        where = where or self.kind
        places: Mapping[str, str] = getattr(spec, "places", {})
        options: dict[str, Any] = {"type": spec} if isinstance(spec, str) else dict(spec)
        kind = options.pop("type", None)
        if kind is None:
            raise ConfigError(f"{where}={_short(spec)} names no class: add a 'type' key{_at(places)}")
        try:
            entry = self.get(kind) if isinstance(kind, str) else kind
        except UnknownNameError as error:
            raise UnknownNameError(f"{where}={kind!r}: {error}{_at(places, 'type')}") from error
        if not callable(entry):
            raise ConfigError(f"{where}: 'type' must be a name or a class, got {kind!r}{_at(places, 'type')}")
        self._check_arguments(entry, options, where, places, {*given, *offer})
        return entry, options

    def _check_arguments(
        self,
        entry: Callable[..., Any],
        options: dict[str, Any],
        where: str,
        places: Mapping[str, str],
        supplied: set[str],
    ) -> None:
        parameters = _parameters(entry)
        if not parameters and inspect.isclass(entry) and entry.__init__ is object.__init__ and options:
            parameters = {}
        elif any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or _unreadable(entry):
            return
        name = getattr(entry, "__name__", str(entry))
        for key in options:
            if key not in parameters or key in supplied:
                own = [p for p in parameters if p not in supplied]
                raise ConfigError(
                    f"{where}: {name} takes no argument {key!r}; {nearest(key, own)}{_at(places, key)}"
                )
        lacking = [
            key
            for key, p in parameters.items()
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and key not in options
            and key not in supplied
        ]
        if lacking:
            raise ConfigError(
                f"{where}: {name} needs {', '.join(map(repr, lacking))}; "
                f"add {'it' if len(lacking) == 1 else 'them'} beside type={name!r}{_at(places, 'type')}"
            )

    def _find(self, name: str) -> Callable[..., Any] | None:
        if name in self._entries:
            return self._entries[name]
        self._load_builtins()
        if name in self._entries:
            return self._entries[name]
        if "." in name:
            return self._import(name)
        for module in self._fallbacks:
            found = _public_class(module, name)
            if found is not None:
                return found
        plugins = entry_points(group=f"stratrun.{self.kind}")
        if name in plugins.names:
            return self._load_plugin(name, plugins[name])
        return None

    def _load_builtins(self) -> None:
        if self._builtins is not None:
            import_module(self._builtins)

    def _load_plugin(self, name: str, plugin: Any) -> Callable[..., Any]:
        try:
            return self._entries.setdefault(name, plugin.load())
        except ImportError as error:
            own = plugin.dist is not None and plugin.dist.name == "stratrun"
            hint = f"; pip install 'stratrun[{name}]'" if own else ""
            raise MissingDependencyError(
                f"{self.kind} entry {name!r} needs the package {error.name!r}{hint}"
            ) from error

    def _import(self, path: str) -> Callable[..., Any]:
        module, _, attribute = path.rpartition(".")
        try:
            found: Callable[..., Any] = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownNameError(f"{self.kind} entry {path!r} cannot be imported: {error}") from error
        return found

    def _fallback_names(self) -> list[str]:
        names = []
        for module in self._fallbacks:
            namespace = vars(_import_optional(module))
            names += [name for name in namespace if _public_class(module, name) is not None]
        return names


def _import_optional(module: str) -> Any:
    """The module, or an empty stand-in when its package is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        return object


def _public_class(module: str, name: str) -> Callable[..., Any] | None:
    found = None if name.startswith("_") else getattr(_import_optional(module), name, None)
    return found if inspect.isclass(found) else None


def _parameters(entry: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    if inspect.isclass(entry) and entry.__init__ is object.__init__ and entry.__new__ is object.__new__:
        return {}
    try:
        return dict(inspect.signature(entry).parameters)
    except (TypeError, ValueError):
        return {}


def _unreadable(entry: Callable[..., Any]) -> bool:
    """Whether the arguments cannot be told, as for some classes written in C."""
    try:
        inspect.signature(entry)
    except (TypeError, ValueError):
        return True
    return False


def _same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    return one is other or (
        getattr(one, "__qualname__", None) == getattr(other, "__qualname__", "")
        and "__main__" in (one.__module__, other.__module__)
    )


def _path(entry: Callable[..., Any]) -> str:
    return f"{entry.__module__}.{getattr(entry, '__qualname__', entry)}"


def _at(places: Mapping[str, str], key: str | None = None) -> str:
    """Where a key was written, as `` (file:line)``; nothing when that is not known."""
    place = places.get(key) if key else next(iter(places.values()), None)
    return f" ({place})" if place else ""


def _short(spec: Any) -> str:
    text = repr(dict(spec)) if isinstance(spec, Mapping) else repr(spec)
    return text if len(text) <= 80 else f"{text[:77]}..."


RUNNERS = Registry("runners", "stratrun.runner")
LOOPS = Registry("loops", "stratrun.loops")
HOOKS = Registry("hooks", "stratrun.hooks")
MODELS = Registry("models", fallbacks=("torch.nn",))
DATASETS = Registry("datasets", fallbacks=("torch.utils.data",))
SAMPLERS = Registry("samplers", fallbacks=("torch.utils.data",))
COLLATES = Registry("collates")
METRICS = Registry("metrics", "stratrun.evaluation", fallbacks=("torchmetrics",))
OPTIMIZERS = Registry("optimizers", fallbacks=("torch.optim",))
PARAM_SCHEDULERS = Registry("param_schedulers", fallbacks=("torch.optim.lr_scheduler",))
STRATEGIES = Registry("strategies", "stratrun.strategies")
ACCELERATORS = Registry("accelerators", "stratrun.accelerators")
PRECISIONS = Registry("precisions", "stratrun.precision")
LOGGERS = Registry("loggers", "stratrun.loggers")
LAUNCHERS = Registry("launchers")
STORAGES = Registry("storages")
