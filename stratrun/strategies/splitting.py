"""Modules divided over ranks, by a plan."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from stratrun.blocks import select
from stratrun.errors import ConfigError, ModelError
from stratrun.strategies.styles import COLUMNS, SEQUENCE, WHAT, WHOLE, Style

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def divide(module: nn.Module, plan: Mapping[str, Style], mesh: DeviceMesh) -> None:
    """Leave each rank of a mesh of one dimension its part of the parameters, and have modules exchange.

    Every rank must have the same values, or none at all (on the meta device). Nothing is exchanged here.

    Raises:
        ConfigError: the plan names what the model does not have, or what cannot be split so.
    """
    chosen: dict[int, tuple[str, nn.Module, Style, str]] = {}
    for pattern, style in plan.items():
        for name, part in select(module, pattern, WHAT):
            before = chosen.setdefault(id(part), (name, part, style, pattern))
            if before[2] != style:
                raise ConfigError(
                    f"{WHAT}: {name!r} is meant by {before[3]!r} and by {pattern!r}, which say "
                    "different things of it"
                )
    split = _Split(mesh)
    for name, part, style, _ in chosen.values():
        split.add(name, part, style)
    split.refuse_halves(module)


class _Split:
    """Parameters and modules that are divided over the ranks of a mesh."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        self._size = mesh.size()
        self._made: dict[Tensor, tuple[nn.Parameter, Placement, str]] = {}

    def add(self, name: str, module: nn.Module, style: Style) -> None:
        if isinstance(module, nn.Embedding) and style.input == COLUMNS:
            style = replace(style, input=WHOLE)  # numbers of rows have no columns
        _check(name, module, style, self._size)
        if isinstance(module, _DROPOUTS) and style.kind in ("column", "sequence"):
            _share_mask(module, -1 if style.kind == "column" else style.dim, self._mesh)
            return
        if style.kind in ("column", "row", "sequence"):
            self._divide(name, module, style)
            wanted = _wanted(module, style)
        else:
            wanted = _placed(style.output, style)
        entrance = _Entrance(name, style, wanted, self._mesh)
        module.register_forward_pre_hook(entrance)
        if not style.changes_only:
            module.register_forward_hook(_Exit(_placed(style.output, style)))

    def _divide(self, name: str, module: nn.Module, style: Style) -> None:
        for path, part in module.named_modules():
            for key, parameter in list(part._parameters.items()):
                if parameter is None:
                    continue
                full = ".".join(filter(None, (name, path, key)))
                placement = _placement(part, key, style)
                made, before, first = self._made.get(parameter) or (None, placement, full)
                if before != placement:
                    raise ConfigError(
                        f"{WHAT}: {first!r} and {full!r} are one and the same, and would be "
                        "split in different ways; an embedding by 'row' is split as a layer by 'column'"
                    )
                if made is None:
                    spread = distribute_tensor(
                        parameter.detach(), self._mesh, [placement], src_data_rank=None
                    )
                    made = nn.Parameter(spread, requires_grad=parameter.requires_grad)
                    self._made[parameter] = made, placement, full
                part._parameters[key] = made

    def refuse_halves(self, module: nn.Module) -> None:
        """
        Raises:
            ConfigError: a parameter is split in one place, and whole in another that shares it.
        """
        for path, part in module.named_modules():
            for key, parameter in part._parameters.items():
                if parameter is not None and parameter in self._made:
                    full = f"{path}.{key}".lstrip(".")
                    raise ConfigError(
                        f"{WHAT}: {full!r} is one and the same as {self._made[parameter][2]!r}, which is "
                        "split; name both modules in the plan"
                    )


class _Entrance:
    """Makes of what a module is given the tensor over all ranks that it computes with."""

    def __init__(self, name: str, style: Style, wanted: Placement, mesh: DeviceMesh) -> None:
        self._name, self._style, self._wanted, self._mesh = name, style, wanted, mesh
        self._given = _placed(style.input, style)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given = args[0] if args else None
        if not isinstance(given, Tensor):
            raise ModelError(
                f"{self._name!r} is in the plan of strategy='tensor_parallel' and was given "
                f"{type(given).__name__} first; give it a tensor as the first argument, without a keyword"
            )
        self._check(module, given)
        spread = DTensor.from_local(given, self._mesh, [self._given], run_check=False)
        spread = spread.redistribute(placements=[self._wanted])
        return (spread.to_local() if self._style.changes_only else spread, *args[1:])

    def _check(self, module: nn.Module, given: Tensor) -> None:
        size, style = self._mesh.size(), self._style
        if style.kind == "split" and given.shape[style.dim] % size:
            raise ModelError(
                f"{self._name!r} splits a sequence of {given.shape[style.dim]} over {size} ranks, which must "
                "have parts of equal size; pad it"
            )
        if not isinstance(module, nn.Linear) or style.kind not in ("column", "row"):
            return
        parts = size if style.input == COLUMNS else 1
        if given.shape[-1] * parts != module.in_features:
            wanted = f"{module.in_features // parts} of " if parts > 1 else ""
            raise ModelError(
                f"{self._name!r} takes {wanted}{module.in_features} columns on each rank, by its style "
                f"{style.kind!r} with input={style.input!r}, and was given {given.shape[-1]}; say in "
                f"the plan what it is given, as in dict(style={style.kind!r}, input={_other(style.input)!r})"
            )


class _Exit:
    """Makes a plain tensor of what a module returns, laid out as the next one takes it."""

    def __init__(self, made: Placement) -> None:
        self._made = made

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: DTensor) -> Tensor:
        return output.redistribute(placements=[self._made]).to_local()


def _placed(layout: str, style: Style) -> Placement:
    return {WHOLE: Replicate(), COLUMNS: Shard(-1), SEQUENCE: Shard(style.dim)}[layout]


def _other(layout: str) -> str:
    return WHOLE if layout == COLUMNS else COLUMNS


def _check(name: str, module: nn.Module, style: Style, size: int) -> None:
    """
    Raises:
        ConfigError: this module cannot be split so.
    """
    told = f"{WHAT}: {name!r} is {type(module).__name__}"
    if style.kind in ("column", "row"):
        known = (nn.Linear, nn.Embedding, *(_DROPOUTS if style.kind == "column" else ()))
        if not isinstance(module, known):
            names = ", ".join(cls.__name__ for cls in known)
            raise ConfigError(f"{told}, which has no style {style.kind!r}; that is for {names}")
    if isinstance(module, nn.Embedding) and style.kind == "row" and module.padding_idx is not None:
        raise ConfigError(
            f"{told} with padding_idx, which is lost where each rank has a part of the rows; use 'column'"
        )
    if isinstance(module, nn.Linear | nn.Embedding):
        width = module.out_features if isinstance(module, nn.Linear) else module.embedding_dim
        if style.output == COLUMNS and width % size:
            raise ConfigError(f"{told} with {width} columns, which {size} ranks cannot share evenly")
    if isinstance(module, nn.Linear) and style.input == COLUMNS and module.in_features % size:
        raise ConfigError(
            f"{told} taking {module.in_features} columns, which {size} ranks cannot share evenly"
        )


def _placement(module: nn.Module, key: str, style: Style) -> Placement:
    """How a parameter of a module is split."""
    if style.kind == "sequence":
        return Replicate()
    if isinstance(module, nn.Embedding):
        return Shard(1) if style.kind == "column" else Shard(0)
    if style.kind == "column":
        return Shard(0)
    return Shard(1) if key == "weight" else Replicate()


def _wanted(module: nn.Module, style: Style) -> Placement:
    """What a module computes with."""
    if style.kind == "sequence":
        return _placed(SEQUENCE, style)
    splits_input = style.kind == "row" and isinstance(module, nn.Linear)
    return _placed(COLUMNS if splits_input else WHOLE, style)


def _share_mask(module: nn.Module, dim: int, mesh: DeviceMesh) -> None:
    """Have a dropout on a part of a tensor drop what it would drop there of the whole.

    Ranks that work on the same samples draw the same numbers: each would drop the same of its part.
    """
    whole, rank, size = module.forward, mesh.get_local_rank(), mesh.size()

    def forward(given: Tensor) -> Tensor:
        if not module.training:
            return given
        shape = list(given.shape)
        length = shape[dim]
        shape[dim] *= size
        mask: Tensor = whole(given.new_ones(shape))
        return given * mask.narrow(dim, rank * length, length)

    module.forward = forward
