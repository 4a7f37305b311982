"""A registry: classes of one kind, by name."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from stratrun.deprecation import Deprecation
from stratrun.errors import ConfigError, MissingDependencyError, UnknownNameError, nearest
from stratrun.problems import KnownProblem, Refused
from stratrun.registry.arguments import Arguments, at, name_of, parameters_of
from stratrun.registry.fallbacks import module_of, public_classes
from stratrun.registry.later import load_public
from stratrun.registry.plugins import load_plugin, owner_of, plugin_names

T = TypeVar("T", bound=Callable[..., Any])

# What other frameworks call the key that names the class.
_FOREIGN_TYPE_KEYS = ("_target_", "class_path", "Type", "name", "kind")


class Registry:
    """Classes (or functions) of one kind, by name.

    A name is looked for among registered classes, then in the built-in package `builtins`,
    then among the public classes of the modules in `fallbacks`, then among the entry points of
    the group ``stratrun.<kind>``. None of them is imported before a name is asked for, and of
    the entry points only the one that is named.

    Args:
        extra: The extra of stratrun that installs the fallbacks, for messages.
        keep_functions: A registered function is itself what is wanted (a collate function), so
            `build` binds its options instead of calling it.
    """

    def __init__(
        self,
        kind: str,
        builtins: str | None = None,
        fallbacks: tuple[str, ...] = (),
        *,
        extra: str | None = None,
        keep_functions: bool = False,
    ) -> None:
        self.kind = kind
        self._builtins = builtins
        self._fallbacks = fallbacks
        self._extra = extra
        self._keep_functions = keep_functions
        self._entries: dict[str, Callable[..., Any]] = {}
        self._plugins: dict[str, Callable[..., Any]] = {}
        self._forced: set[str] = set()
        self._renamed: dict[str, tuple[str, Deprecation]] = {}

    def register_module(
        self, name: str | Iterable[str] | None = None, *, force: bool = False
    ) -> Callable[[T], T]:
        """Decorator that adds a class or function under `name`, its own name by default.

        Raises:
            ConfigError: another object has that name already and `force` is false.
        """
        if callable(name):
            raise ConfigError(
                f"write @{self.kind.upper()}.register_module() with parentheses above {name.__name__!r}"
            )

        def add(entry: T) -> T:
            names = [entry.__name__] if name is None else [name] if isinstance(name, str) else name
            for key in names:
                self._add(key, entry, force)
            return entry

        return add

    def renamed(self, old: str, new: str, *, since: str, removed_in: str) -> None:
        """Have an entry found by its old name too, with a warning, from one version to another."""
        said = Deprecation(f"{old!r} among {self.kind}", since, removed_in, repr(new))
        self._renamed[old] = (new, said)

    def get(self, name: str) -> Callable[..., Any]:
        """The entry called `name`.

        Raises:
            UnknownNameError: there is none; the message names the nearest.
            MissingDependencyError: a plugin's package is not installed.
        """
        if found := self._find(name):
            return found
        if "." in name:
            raise UnknownNameError(
                f"no {self.kind} entry named {name!r}; the path of a class goes into a dict: "
                f"dict(type={name!r})"
            )
        raise UnknownNameError(f"no {self.kind} entry named {name!r}; {self._guess(name)}")

    def names(self) -> list[str]:
        """Every name that `get` knows."""
        return sorted(self.providers())

    def providers(self) -> dict[str, str]:
        """By every name that `get` knows the package that it comes from, or the module of the user."""
        found = {name: owner_of(self.kind, name) for name in plugin_names(self.kind)}
        for module in reversed(self._fallbacks):
            found.update(dict.fromkeys(public_classes(module), module))
        own = self.entries().items()
        return {**found, **{name: entry.__module__.partition(".")[0] for name, entry in own}}

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
        entry, options = self.check(spec, where=where, given=given, offer=offer or ())
        if offer:
            accepted = parameters_of(entry) or {}
            options = {**{k: v for k, v in offer.items() if k in accepted}, **options}
        if self._keeps(entry):
            return partial(entry, **given, **options)
        try:
            return entry(**given, **options)
        except Exception as error:
            error.add_note(
                f"while building {where or self.kind}: {name_of(entry)}{at(_places(spec), 'type')}"
            )
            raise

    def check(
        self, spec: Any, *, where: str = "", given: Iterable[str] = (), offer: Iterable[str] = ()
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Resolve a spec and refuse arguments that its class does not take, building nothing.

        Returns:
            The class (or function) and the options of the spec, `type` apart.
        """
        where = where or self.kind
        options: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"type": spec}
        places = _places(spec)
        kind = options.pop("type", None)
        if kind is None:
            raise ConfigError(f"{where} names no class; {_type_hint(options)}{at(places)}")
        if kind is Refused.NAME:
            raise KnownProblem
        if not isinstance(kind, str) and not callable(kind):
            raise ConfigError(f"{where}: 'type' must be a name or a class, got {kind!r}{at(places, 'type')}")
        try:
            entry = self._resolve(kind, dotted=isinstance(spec, Mapping)) if isinstance(kind, str) else kind
        except (UnknownNameError, MissingDependencyError) as error:
            raise type(error)(f"{where}={kind!r}: {error}{at(places, 'type')}") from error
        arguments = Arguments(entry, where, places)
        lone, optional = isinstance(spec, type), self._keeps(entry)
        return entry, arguments.held(options, set(given), offer, lone=lone, optional=optional)

    def _add(self, key: str, entry: Callable[..., Any], force: bool) -> None:
        known = self._entries.get(key)
        if known is not None and not force and not _same_definition(known, entry):
            # Built-ins are imported late, maybe after the user has replaced one of them on purpose.
            if key in self._forced and _path(entry).startswith(f"{self._builtins}."):
                return
            raise ConfigError(
                f"{self.kind} entry {key!r} is already {_path(known)}; "
                "choose another name, or pass force=True to replace it"
            )
        if force:
            self._forced.add(key)
        self._entries[key] = entry

    def _keeps(self, entry: Callable[..., Any]) -> bool:
        return self._keep_functions and not inspect.isclass(entry)

    def _resolve(self, name: str, *, dotted: bool) -> Callable[..., Any]:
        # Only the `type` of a dict may be a path: the loader of data configs refuses paths there,
        # while a bare string may be any value of a config.
        if not dotted or "." not in name:
            return self.get(name)
        return self._find(name) or _imported(self.kind, name)

    def _find(self, name: str) -> Callable[..., Any] | None:
        if name in self._entries:
            return self._entries[name]
        if name in self._renamed:
            self._renamed[name][1].warn()
            return self._find(self._renamed[name][0])
        self._load_builtins(name)
        if name in self._entries:
            return self._entries[name]
        for module in self._fallbacks:
            if found := public_classes(module).get(name):
                return found
        return self._find_plugin(name)

    def _find_plugin(self, name: str) -> Callable[..., Any] | None:
        if name not in self._plugins and (found := load_plugin(self.kind, name)) is not None:
            self._plugins[name] = found
        return self._plugins.get(name)

    def _load_builtins(self, *wanted: str) -> None:
        """Have those of our own registered that go by these names, or all."""
        if self._builtins is not None:
            load_public(self._builtins, wanted)

    def _guess(self, name: str) -> str:
        """The near miss; else what there is, without hundreds of classes of the fallbacks."""
        guess = nearest(name, self.names())
        if guess.startswith("did you mean") or not self._fallbacks:
            return guess
        own = sorted({*self.entries(), *plugin_names(self.kind)})
        shown = nearest("", own) + ", and " if own else "known: "
        return shown + _classes_of(self._fallbacks, self._extra)


def _classes_of(modules: tuple[str, ...], extra: str | None) -> str:
    absent = [module for module in modules if module_of(module) is None]
    if absent:
        mend = f": pip install 'stratrun[{extra}]'" if extra else ""
        return f"the classes of {absent[0]}, which is not installed{mend}"
    return f"the classes of {', '.join(modules)}"


def _imported(kind: str, path: str) -> Callable[..., Any]:
    module, _, attribute = path.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UnknownNameError(f"{kind} entry {path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"{kind} entry {path!r} is no class or function but {type(found).__name__}")
    return found


def _same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether one piece of code was run twice: a notebook cell, a reload, `python -m`."""
    if one is other:
        return True
    name = getattr(one, "__qualname__", "<locals>")
    modules = {one.__module__, other.__module__}
    same_name = name == getattr(other, "__qualname__", "") and "<locals>" not in name
    return same_name and (len(modules) == 1 or "__main__" in modules)


def _path(entry: Callable[..., Any]) -> str:
    return f"{entry.__module__}.{getattr(entry, '__qualname__', entry)}"


def _places(spec: Any) -> Mapping[str, str]:
    places: Mapping[str, str] = getattr(spec, "places", {}) if isinstance(spec, Mapping) else {}
    return places


def _type_hint(options: Mapping[str, Any]) -> str:
    # Keys only: a value may be a secret.
    foreign = next((key for key in _FOREIGN_TYPE_KEYS if key in options), None)
    if foreign:
        return f"it has {foreign!r}, did you mean 'type'?"
    return f"add 'type' beside {', '.join(map(repr, options))}" if options else "add 'type'"
