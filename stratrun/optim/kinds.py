"""Kinds of parameters that are often trained in another way than the rest."""

import re
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

KINDS = ("norm", "embedding", "dwconv", "bias", "flat")
"""Those of a norm layer; of an embedding; of a depthwise convolution; biases; and any without a second
dimension. A parameter may be of several, and the first that something is said of counts."""

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# By its name: a layer of somebody's own, such as LlamaRMSNorm or LayerNorm2d, but not NormalizedLinear.
_NORM = re.compile(r"Norm(?![a-z])")


def kinds_of(module: nn.Module) -> dict[Tensor, tuple[str, ...]]:
    """The kinds of each parameter, in the order of `KINDS`. A shared one is of all kinds of its layers."""
    found: dict[Tensor, set[str]] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            found.setdefault(parameter, set()).update(_kinds(part, name, parameter))
    return {parameter: tuple(one for one in KINDS if one in kinds) for parameter, kinds in found.items()}


def _kinds(part: nn.Module, name: str, parameter: Tensor) -> Iterator[str]:
    if isinstance(part, _NORMS) or _NORM.search(type(part).__name__):
        yield "norm"
    if isinstance(part, nn.Embedding | nn.EmbeddingBag):
        yield "embedding"
    if isinstance(part, _ConvNd) and part.groups == part.in_channels > 1:
        yield "dwconv"
    # Those of attention and of recurrent layers are called in_proj_bias and bias_ih_l0.
    if name == "bias" or name.endswith("_bias") or name.startswith("bias_"):
        yield "bias"
    if not is_lazy(parameter) and parameter.ndim < 2:
        yield "flat"
