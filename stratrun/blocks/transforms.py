"""What a run does to the blocks of its model: compile them, compute them twice."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from stratrun.blocks.compilations import Compilations
from stratrun.blocks.compiled import Compiler
from stratrun.blocks.forward import BlockForward
from stratrun.blocks.select import Named, check_spec, select
from stratrun.errors import ConfigError, nearest

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_COMPILE = ("blocks", "backend", "mode", "dynamic", "fullgraph", "step", "graphs")
_RECOMPUTE = ("blocks", "every")


@dataclass(frozen=True)
class Recomputing:
    """Which blocks are computed once more in the backward pass: of those chosen, each `every`-th."""

    blocks: Any = None
    every: int = 1

    @classmethod
    def parse(cls, given: Any) -> "Recomputing | None":
        """
        Raises:
            ConfigError: it is no choice of blocks, and no dict with one.
        """
        what = "activation_checkpointing"
        if given is None or given is False:
            return None
        if given is True:
            return cls()
        if not isinstance(given, Mapping) or "min_params" in given:
            check_spec(given, what)
            return cls(given)
        _refuse_unknown(given, _RECOMPUTE, what)
        every = given.get("every", 1)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError(
                f"{what}: every={every!r} must be a whole number, from 1, which is each block, on"
            )
        if given.get("blocks") is False:
            raise ConfigError(f"{what}: blocks=False chooses nothing to recompute; leave {what} out instead")
        check_spec(given.get("blocks"), f"{what}: blocks")
        return cls(given.get("blocks"), every)

    def choose(self, model: nn.Module) -> Named:
        found = _outermost(select(model, self.blocks, "activation_checkpointing: blocks"))
        if not found:
            raise ConfigError(
                f"activation_checkpointing: no part of {type(model).__name__} repeats in a list; say which "
                "parts to recompute, with blocks='name_of_a_class' or blocks='layers.*'"
            )
        return found[:: self.every]


@dataclass(frozen=True)
class Compiling:
    """Which blocks are compiled, and how: as `torch.compile` is told."""

    blocks: Any
    options: Mapping[str, Any]
    step: bool = False
    """Whether the training step is compiled as one, in place of blocks."""
    graphs: bool = False
    """Whether the training step is captured."""
    compiles: bool = True
    """Whether anything is compiled at all."""

    @classmethod
    def parse(cls, given: Any) -> "Compiling | None":
        """
        Raises:
            ConfigError: it is no choice of blocks, or not what `torch.compile` takes.
        """
        if given is None or given is False:
            return None
        if given is True:
            return cls(None, {})
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"compile={given!r} must be True, or a dict of {', '.join(_COMPILE)}, such as "
                "dict(blocks='Block', mode='max-autotune')"
            )
        _refuse_unknown(given, _COMPILE, "compile")
        check_spec(given.get("blocks"), "compile: blocks")
        mode, backend = given.get("mode"), given.get("backend")
        if mode is not None and mode not in MODES:
            raise ConfigError(f"compile: mode={mode!r} is none of torch.compile; {nearest(str(mode), MODES)}")
        for key in ("dynamic", "fullgraph", "step", "graphs"):
            if not isinstance(given.get(key), bool | None):
                raise ConfigError(f"compile: {key}={given[key]!r} must be True or False")
        if backend is not None:
            _check_backend(backend)
        if mode is not None and backend not in (None, "inductor"):
            raise ConfigError(f"compile: mode={mode!r} is for backend='inductor', but {backend!r} is given")
        step, graphs = bool(given.get("step")), bool(given.get("graphs"))
        _check_whole(given, step, graphs)
        options = {key: given[key] for key in _COMPILE[1:5] if given.get(key) is not None}
        compiles = not graphs or step or "blocks" in given or bool(options)
        return cls(given.get("blocks"), options, step, graphs, compiles)

    def choose(self, model: nn.Module, recomputed: Named) -> Named:
        """The blocks; where none repeat, those that are recomputed, or else the model as a whole."""
        found = _outermost(select(model, self.blocks, "compile: blocks"))
        if self.blocks in (None, "auto"):
            found = found or recomputed
        if found or type(model).forward is not nn.Module.forward:
            return found or [("", model)]
        # A model that has methods for its steps alone, which call what is in it.
        return [
            (name, part)
            for name, part in model.named_children()
            if type(part).forward is not nn.Module.forward and any(True for _ in part.parameters())
        ]


class BlockTransforms:
    """Gives blocks of a model the forward that a run asks for, in place. Names stay as they are.

    Args:
        compile, activation_checkpointing: As given to the `Runner`.
    """

    def __init__(self, compile: Any = None, activation_checkpointing: Any = None) -> None:
        self._compiling = Compiling.parse(compile)
        self._recomputing = Recomputing.parse(activation_checkpointing)
        self.reasons: list[str] = []
        """What was done to the model, a line each."""
        self.compilations: Compilations | None = None
        self.step_compiler: Compiler | None = None
        """Compiles the training step as a whole, if that is to be."""
        self.graphs: bool = self._compiling is not None and self._compiling.graphs
        """Whether the training step is to be captured."""
        if self.graphs and self._recomputing is not None:
            raise ConfigError(
                "compile: graphs=True: activation_checkpointing asks for the state of random numbers within "
                "the step, which cannot be captured; leave one of the two out"
            )

    def __call__(self, model: nn.Module) -> None:
        for part in model.modules():
            # What an earlier run has left on a model that was given to it.
            earlier = vars(part).get("forward")
            if isinstance(earlier, BlockForward):
                earlier.restore()
        self.reasons = []
        recomputed = [] if self._recomputing is None else self._recomputing.choose(model)
        twice = {id(part) for _, part in recomputed}
        compiled, compiler = self._compiled(model, recomputed)
        at_once = {id(part) for _, part in compiled}
        for part in {id(part): part for _, part in [*compiled, *recomputed]}.values():
            part.forward = BlockForward(part, compiler if id(part) in at_once else None, id(part) in twice)
        if recomputed:
            self.reasons.append(
                f"activation_checkpointing={told(recomputed)}: computed again on the way back"
            )

    def _compiled(self, model: nn.Module, recomputed: Named) -> tuple[Named, Compiler | None]:
        if self._compiling is None or not self._compiling.compiles:
            return [], None
        compiler = Compiler(self._compiling.options)
        self.compilations = Compilations(compiler.labels)
        options = {"backend": "inductor", **self._compiling.options}
        how = ", ".join(f"{key}={_name(value)}" for key, value in options.items())
        if self._compiling.step:
            self.step_compiler = compiler
            self.reasons.append(f"compile=the whole training step: {how}")
            return [], None
        found = self._compiling.choose(model, recomputed)
        self.reasons.append(f"compile={told(found) or 'nothing'}: {how}")
        return found, compiler


def told(blocks: Named) -> str:
    """Blocks in a few words: how many of which class."""
    if [name for name, _ in blocks] == [""]:
        return f"the whole {type(blocks[0][1]).__name__}"
    kinds = Counter(type(part).__name__ for _, part in blocks)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _name(option: Any) -> str:
    if isinstance(option, str | bool):
        return str(option)
    return str(getattr(option, "__name__", type(option).__name__))


def _outermost(blocks: Named) -> Named:
    """Without what lies in another one of them."""
    within = {id(inner) for _, part in blocks for inner in part.modules() if inner is not part}
    return [(name, part) for name, part in blocks if id(part) not in within]


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what}: {key!r} is not known; {nearest(str(key), known)}")


def _check_whole(given: Mapping[str, Any], step: bool, graphs: bool) -> None:
    if step and given.get("blocks") not in (None, False):
        raise ConfigError(
            "compile: step=True compiles the whole training step, and blocks= parts of it; give one of them"
        )
    mode = given.get("mode")
    if graphs and mode in ("reduce-overhead", "max-autotune"):
        raise ConfigError(
            f"compile: mode={mode!r} captures graphs of its own, which graphs=True cannot hold; leave one of "
            "the two out, or give mode='max-autotune-no-cudagraphs'"
        )


def _check_backend(backend: Any) -> None:
    if callable(backend):
        return
    from torch.compiler import list_backends

    known = list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigError(
            f"compile: backend={backend!r} is none of torch.compile; {nearest(str(backend), known)}"
        )
