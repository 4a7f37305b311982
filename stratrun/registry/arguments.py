"""What a class takes, told before it is called."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from stratrun.deprecation import renamings_of
from stratrun.errors import ConfigError, nearest
from stratrun.problems import part, without

_NUMBERS = frozenset(("bool", "int", "float"))
_ANSWERS = frozenset(("true", "false", "yes", "no", "on", "off"))


class Arguments:
    """What a class takes, held against what it is about to get."""

    def __init__(self, entry: Callable[..., Any], where: str, places: Mapping[str, str]) -> None:
        self._entry = entry
        self._title = f"{where}: {name_of(entry)}"
        self._places = places
        parameters = parameters_of(entry)
        self._renamed = renamings_of(entry)
        self._open = parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._named = {
            key: p
            for key, p in (parameters or {}).items()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }

    def held(
        self,
        options: dict[str, Any],
        given: Collection[str],
        offer: Iterable[str],
        *,
        lone: bool,
        optional: bool,
    ) -> dict[str, Any]:
        """The options, with everything about them refused that the class would not take.

        Args:
            optional: Whether arguments may be lacking, as what is called later gets them.
        """
        refused = self.refuse_unknown(options, given)
        self.refuse_text(options)
        if not optional:
            with part():
                # What a misspelt argument meant is not lacking.
                anew = {self._renamed[key] for key in options if key in self._renamed}
                supplied = {*options, *given, *offer, *anew, *filter(None, refused.values())}
                self.refuse_lacking(supplied, lone=lone)
        with part():
            self.refuse_unfinished()
        return without(options, refused) if refused else options

    def refuse_unknown(self, options: Collection[str], given: Collection[str]) -> dict[str, str | None]:
        """
        Returns:
            The arguments that were refused, where problems are gathered, and what was probably meant.
        """
        refused: dict[str, str | None] = {}
        for key in options:
            place = at(self._places, key)
            if self._renamed.get(key) in options:
                with part():
                    raise ConfigError(
                        f"{self._title}: {key!r} is an old name of {self._renamed[key]!r}, which is given "
                        f"too; leave it out{place}"
                    )
            if key not in given and (key in self._named or self._open or key in self._renamed):
                continue
            refused[key] = None
            with part():
                if key in given:
                    raise ConfigError(f"{self._title} gets {key!r} from the run; leave it out{place}")
                own = [name for name in self._named if name not in given]
                # What is meant by names of other frameworks, where the class says so.
                foreign = getattr(self._entry, "foreign_arguments", {})
                hint = f"use {foreign[key]}" if key in foreign else nearest(str(key), own)
                refused[key] = meant(hint)
                mend = "" if hint.startswith(("did you mean", "use ")) else self._leftover(key)
                raise ConfigError(f"{self._title} takes no argument {key!r}; {hint}{mend}{place}")
        return refused

    def refuse_text(self, options: Mapping[str, Any]) -> None:
        """Refuse numbers and answers in quotes: "no" would be taken for yes."""
        for key, value in options.items():
            kinds = _kinds(self._named[key].annotation) if key in self._named else frozenset()
            if not isinstance(value, str) or not kinds or not kinds <= _NUMBERS:
                continue
            with part():
                self._refuse_text(key, value, kinds)

    def _refuse_text(self, key: str, value: str, kinds: frozenset[str]) -> None:
        if "bool" in kinds and value.lower() in _ANSWERS:
            raise ConfigError(
                f"{self._title}: {key}={value!r} is a string; write true or false, in Python True or "
                f"False{at(self._places, key)}"
            )
        if kinds != {"bool"} and _is_number(value):
            raise ConfigError(
                f"{self._title}: {key}={value!r} is a string; write a number, {key}={value}"
                f"{at(self._places, key)}"
            )

    def refuse_lacking(self, supplied: Collection[str], *, lone: bool = False) -> None:
        """
        Args:
            lone: Whether the class was given as it is, maybe in place of an object of it.
        """
        lacking = [key for key, p in self._named.items() if p.default is p.empty and key not in supplied]
        if lacking and lone:
            name, arguments = name_of(self._entry), "=..., ".join(lacking)
            raise ConfigError(
                f"{self._title} is a class that needs {', '.join(map(repr, lacking))}; give an object of it, "
                f"{name}(...), or dict(type={name}, {arguments}=...)"
            )
        if lacking:
            raise ConfigError(
                f"{self._title} needs {', '.join(map(repr, lacking))}; "
                f"add {'it' if len(lacking) == 1 else 'them'} beside 'type'{at(self._places, 'type')}"
            )

    def refuse_unfinished(self) -> None:
        """Refuse a class that its author has left abstract."""
        missing = sorted(getattr(self._entry, "__abstractmethods__", ()))
        if missing:
            raise ConfigError(
                f"{self._title} has no method {', '.join(map(repr, missing))}, which its base class wants; "
                f"define it in the class{at(self._places, 'type')}"
            )

    def _leftover(self, key: str) -> str:
        """The mend for an argument that was meant for another `type`, which a base config names."""
        here, there = self._places.get("type", ""), self._places.get(key, "")
        elsewhere = here.partition(":")[0] != there.partition(":")[0]
        if not here or not elsewhere or there.startswith("override"):
            return ""
        return f"; if it is left over from another 'type', put '_delete_: true' beside 'type' ({here})"


def parameters_of(entry: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters of a call; None where they cannot be told, as for some classes written in C."""
    try:
        return dict(inspect.signature(entry).parameters)
    except (TypeError, ValueError):
        return None


def _kinds(annotation: Any) -> frozenset[str]:
    """The types that an annotation speaks of by name, but for None."""
    if annotation is inspect.Parameter.empty:
        return frozenset()
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return frozenset(part.strip() for part in text.split("|")) - {"None"}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def meant(hint: str) -> str | None:
    """The name that `nearest` has guessed, if it has."""
    return hint[len("did you mean '") : -len("'?")] if hint.startswith("did you mean ") else None


def name_of(entry: Callable[..., Any]) -> str:
    return str(getattr(entry, "__name__", entry))


def at(places: Mapping[str, str], key: str | None = None) -> str:
    """Where a key was written, as `` (file:line)``; nothing when that is not known."""
    place = places.get(key) if key else next(iter(places.values()), None)
    return f" ({place})" if place else ""
