"""Classes that installed packages offer through entry points of the group ``stratrun.<kind>``."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stratrun.errors import ConfigError, MissingDependencyError


def plugin_names(kind: str) -> set[str]:
    return entry_points(group=f"stratrun.{kind}").names


def owner_of(kind: str, name: str) -> str:
    """The package that offers the plugin."""
    return ", ".join(sorted({_owner(plugin) for plugin in entry_points(group=f"stratrun.{kind}", name=name)}))


def load_plugin(kind: str, name: str) -> Callable[..., Any] | None:
    """Import the one plugin of that name, no other; None where there is none.

    Raises:
        MissingDependencyError: it needs a package that is not installed.
    """
    found = tuple(entry_points(group=f"stratrun.{kind}", name=name))
    if len({plugin.value for plugin in found}) > 1:
        owners = ", ".join(sorted(_owner(plugin) for plugin in found))
        raise ConfigError(f"{kind} entry {name!r} comes from several packages ({owners}); remove one")
    return _load(kind, found[0]) if found else None


def _load(kind: str, plugin: EntryPoint) -> Callable[..., Any]:
    title = f"{kind} entry {plugin.name!r}"
    try:
        loaded: Callable[..., Any] = plugin.load()
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{title} needs the package {error.name!r}, which is not installed{_mend(plugin)}"
        ) from error
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(
            f"{title} of {_owner(plugin)} cannot be imported from {plugin.value!r}: {error}"
        ) from error
    return loaded


def _mend(plugin: EntryPoint) -> str:
    # Only of our own package do we know what its extras are called.
    extras = (plugin.dist.metadata.get_all("Provides-Extra") or []) if plugin.dist else []
    extra = next((one for one in (plugin.name, plugin.module.rpartition(".")[2]) if one in extras), None)
    if _owner(plugin) == "stratrun" and extra is not None:
        return f"; pip install 'stratrun[{extra}]'"
    return f"; {_owner(plugin)} asks for it"


def _owner(plugin: EntryPoint) -> str:
    return plugin.dist.name if plugin.dist else "an unknown package"
