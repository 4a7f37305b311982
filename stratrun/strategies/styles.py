"""How modules are computed by several ranks, each with a part of the parameters or of the activations.

Between modules activations are plain tensors. What crosses from one to the next is whole (each rank has all
of it), or in parts of equal size: of its columns, which are its last dimension, or of its sequence. A plan
says it of each module that it names; all others compute on what they get.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stratrun.errors import ConfigError, nearest

WHOLE, COLUMNS, SEQUENCE = "whole", "columns", "sequence"
WHAT = "strategy: plan"
LAYOUTS = (WHOLE, COLUMNS, SEQUENCE)


@dataclass(frozen=True)
class Style:
    """One entry of a plan: what is split, and what a module is given and returns.

    ``"column"`` splits the outputs of a `Linear` or the vectors of an `Embedding`; a dropout after it drops
    what one process would. ``"row"`` splits the inputs of a `Linear`, or the vocabulary of an `Embedding`.
    ``"sequence"`` computes a norm or a dropout on parts of a sequence, with whole parameters. ``"gather"``
    and ``"split"`` only change what a module is given: from parts of a sequence to all of it, or back.
    """

    kind: str
    input: str
    output: str
    dim: int = 1
    """Which dimension the sequence is."""

    @classmethod
    def parse(cls, spec: Any, what: str) -> "Style":
        """From the name of a style, or a dict with `style` and what is to be different.

        Raises:
            ConfigError: it is neither, or says what no style can do.
        """
        options = {"style": spec} if isinstance(spec, str) else spec
        if not isinstance(options, Mapping) or "style" not in options:
            raise ConfigError(
                f"{what}={spec!r} is no style; give one of {', '.join(map(repr, STYLES))}, "
                "or dict(style='column', output='whole')"
            )
        kind = options["style"]
        if kind not in STYLES:
            raise ConfigError(f"{what}={spec!r}: no style is called {kind!r}; {nearest(str(kind), STYLES)}")
        for key, value in options.items():
            if key not in ("style", *_OPTIONS[kind]):
                raise ConfigError(
                    f"{what}: style {kind!r} has no {key!r}; {nearest(str(key), _OPTIONS[kind])}"
                )
            if key in ("input", "output") and value not in LAYOUTS:
                raise ConfigError(f"{what}: {key}={value!r} is unknown; {nearest(str(value), LAYOUTS)}")
            if key == "dim" and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{what}: dim={value!r} must be the number of a dimension, such as 1")
        changed: dict[str, Any] = {key: value for key, value in options.items() if key != "style"}
        return replace(STYLES[kind], **changed)

    @property
    def changes_only(self) -> bool:
        """Whether it has no parameters, and only changes what a module is given before it is called."""
        return self.kind in ("gather", "split")


STYLES: dict[str, Style] = {
    "column": Style("column", WHOLE, COLUMNS),
    "row": Style("row", COLUMNS, WHOLE),
    "sequence": Style("sequence", SEQUENCE, SEQUENCE),
    "gather": Style("gather", SEQUENCE, WHOLE),
    "split": Style("split", WHOLE, SEQUENCE),
}
_OPTIONS = {
    "column": ("input", "output", "dim"),
    "row": ("input", "output", "dim"),
    "sequence": ("dim",),
    "gather": ("dim",),
    "split": ("dim",),
}


def parse_plan(spec: Any) -> dict[str, Style]:
    """Styles by what the user wrote for modules: names as in `stratrun.blocks.select`.

    Raises:
        ConfigError: it is no plan.
    """
    if not isinstance(spec, Mapping) or not spec:
        raise ConfigError(
            f"{WHAT}={spec!r} says of no module how it is split; give a dict such as "
            "{'blocks.*.up': 'column', 'blocks.*.down': 'row'}"
        )
    return {name: Style.parse(one, f"{WHAT}[{name!r}]") for name, one in spec.items()}
