"""How a model is called for a step: the four contracts, found by looking at the model."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stratrun.errors import ModelError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

CONTRACTS = """a model is called in the first of these ways that it allows:
  1. methods train_step(batch), val_step(batch), test_step(batch), predict_step(batch)
  2. forward(..., mode=) with the modes 'loss', 'predict' and 'tensor'
  3. forward(inputs), with loss= given to the Runner: loss(outputs, targets), batches of (inputs, targets)
  4. forward(**batch), returning an object or mapping with 'loss'"""

# What a forward that computes its own loss may call its only argument.
_WHOLE = ("batch", "data_batch", "data", "sample", "samples")
# What a step is called in Lightning.
_FOREIGN_STEPS = {"train": "training_step", "val": "validation_step"}
# What the jobs are called in `forward(mode=)`. A recipe's own mode is passed as it is.
_MODES = {"train": "loss", "val": "predict", "test": "predict", "predict": "predict"}


@dataclass(frozen=True, slots=True)
class Call:
    """One way of calling a model with a batch, resolved once for each mode."""

    target: Callable[..., Any]
    arguments: Callable[[Any], Arguments]
    finish: Callable[[Any, Any], Any] | None = None
    """What becomes of the result, given it and the batch."""


def resolve(model: nn.Module, loss: Callable[..., Any] | None, mode: str, batch: Any) -> Call:
    """The call for `mode`, for batches that are built like this one.

    Raises:
        ModelError: nothing fits; shows what would.
    """
    method = _step_method(model, mode)
    if method is not None:
        return Call(method, lambda batch: ((batch,), {}))
    _see_foreign_step(model, mode, loss)
    signature = inspect.signature(model.forward)
    if "mode" in signature.parameters:
        spread = _spread(signature, batch, mode="")
        name = _MODES.get(mode, mode)
        return Call(model, lambda batch: _with_mode(spread(batch), name))
    if mode not in _MODES:
        raise ModelError(
            f"{type(model).__name__} has no method {mode}_step(batch) for mode={mode!r}, "
            "and its forward takes no mode"
        )
    if loss is not None:
        return _supervised(model, loss, mode, batch)
    if mode == "predict" and not isinstance(batch, Mapping):
        return Call(model, lambda batch: _spread(signature, inputs_of(batch))(inputs_of(batch)))
    if mode == "train":
        _refuse_no_loss(model, signature, batch)
    if mode in ("val", "test") and _is_pair(batch):
        return Call(model, lambda batch: ((batch[0],), {}))
    return Call(model, _spread(signature, batch))


def _see_foreign_step(model: nn.Module, mode: str, loss: Callable[..., Any] | None) -> None:
    """A step by its name in Lightning is not passed over without a word.

    Where `loss` is given, the user has said how, and may not be who wrote the model.
    """
    foreign = _FOREIGN_STEPS.get(mode, "")
    if not foreign or not callable(getattr(model, foreign, None)):
        return
    told = f"{type(model).__name__} has a method {foreign}, which nothing here calls"
    if loss is not None:
        warnings.warn(f"{told}: loss= says what is done in its place", stacklevel=2)
        return
    raise ModelError(
        f"{told}; name it {mode}_step(batch), or train the class as it is with stratrun_ext.migrate.lightning"
    )


def _refuse_no_loss(model: nn.Module, signature: inspect.Signature, batch: Any) -> None:
    """A model that takes the inputs, and nothing that makes a loss of its outputs and the targets."""
    names = [p.name for p in signature.parameters.values() if p.default is p.empty]
    if _is_pair(batch) and len(names) == 1 and names[0] not in _WHOLE and len(signature.parameters) == 1:
        raise ModelError(
            f"{type(model).__name__}.forward({names[0]}) takes the inputs of the batch {outline(batch)}, and "
            "nothing says what the loss is; give loss= to the Runner, such as loss='cross_entropy', or the "
            "model a method train_step(batch) that returns the loss"
        )


def split(batch: Any, mode: str = "train") -> tuple[Any, Any]:
    """The inputs and the targets of a batch.

    Raises:
        ModelError: it is neither a pair nor a mapping with `inputs` and `targets`.
    """
    # As `_is_pair`, in each step.
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and "inputs" in batch and "targets" in batch:
        return batch["inputs"], batch["targets"]
    raise ModelError(
        f"with loss= a batch must be a pair (inputs, targets), or a mapping with 'inputs' and 'targets'; "
        f"{mode}_dataloader gives {outline(batch)}. Give such batches (collate_fn=), or give the model "
        f"a method {mode}_step(batch)"
    )


def inputs_of(batch: Any) -> Any:
    """What a prediction needs of a batch that may carry targets too."""
    if _is_texts(batch):
        return batch
    if _is_pair(batch):
        return batch[0]
    if isinstance(batch, Sequence) and len(batch) == 1:
        return batch[0]
    return batch["inputs"] if isinstance(batch, Mapping) and "inputs" in batch else batch


def losses_of(result: Any, model: nn.Module) -> dict[str, Any]:
    """A training step's result as a mapping with `loss`.

    Raises:
        ModelError: there is no loss, or it is no single number that a gradient flows from.
    """
    if isinstance(result, Tensor):
        outputs: dict[str, Any] = {"loss": result}
    elif isinstance(result, Mapping):
        outputs = dict(result)
    else:
        outputs = {"loss": getattr(result, "loss", None)}
    loss = outputs.get("loss")
    if not isinstance(loss, Tensor):
        raise ModelError(_told(model, result))
    if loss.dim() and loss.numel() != 1:
        raise ModelError(
            f"the training step of {type(model).__name__} returned a loss of shape {tuple(loss.shape)}; "
            "it must be a single number: reduce it, for instance with .mean(), or give loss= to the Runner "
            "if these are the model's outputs"
        )
    if not loss.requires_grad:
        raise ModelError(
            f"the loss of {type(model).__name__} depends on no parameter that is trained, so nothing can be "
            "learnt from it; check for .detach(), .item() or no_grad in the step, and for frozen parameters"
        )
    return outputs


def detached(value: Any) -> Any:
    """The same without the graph behind it, also within dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) is dict:
        return {key: detached(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(detached(one) for one in value)
    return value


def outline(value: Any, depth: int = 2) -> str:
    """What a batch or an output is built of, in a few words."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, Mapping) and depth:
        return "{" + ", ".join(f"{k!r}: {outline(v, depth - 1)}" for k, v in list(value.items())[:6]) + "}"
    if isinstance(value, list | tuple) and depth:
        inner = ", ".join(outline(v, depth - 1) for v in value[:4]) + (", ..." if len(value) > 4 else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return type(value).__name__


def _told(model: nn.Module, result: Any) -> str:
    name = type(model).__name__
    if result is None:
        return f"the training step of {name} returned None; it must return the loss"
    if isinstance(result, Mapping):
        parts = [key for key in result if "loss" in str(key)]
        hint = f"; add up {', '.join(map(repr, parts))} under 'loss'" if parts else ""
        if "loss" in result:
            return f"the loss of {name} is {outline(result['loss'])}, not a tensor; {_return(result['loss'])}"
        hint = hint or "; return the loss under the key 'loss'"
        return f"the training step of {name} returned {outline(result)}, which has no tensor 'loss'{hint}"
    return (
        f"the training step of {name} returned {outline(result)}, which is no loss and has none; "
        f"{_return(result)}\n{'' if isinstance(result, float) else CONTRACTS}"
    ).rstrip()


def _return(value: Any) -> str:
    if isinstance(value, int | float):
        return "return the tensor itself, without .item() or float()"
    what = "returned None: return" if value is None else "must return"
    return f"the training step, or the function given as loss=, {what} a tensor with one element"


def _step_method(model: nn.Module, mode: str) -> Callable[..., Any] | None:
    names = [f"{mode}_step", "val_step"] if mode == "test" else [f"{mode}_step"]
    for name in names:
        method = getattr(model, name, None)
        if callable(method):
            found: Callable[..., Any] = method
            return found
    return None


def _supervised(model: nn.Module, loss: Callable[..., Any], mode: str, batch: Any) -> Call:
    signature = inspect.signature(model.forward)
    if mode == "predict":
        spread = _spread(signature, inputs_of(batch))
        return Call(model, lambda batch: spread(inputs_of(batch)))
    spread = _spread(signature, split(batch, mode)[0])

    def finish(outputs: Any, batch: Any) -> Any:
        value = loss(outputs, split(batch)[1])
        return {"loss": value} if mode == "train" else {"preds": outputs, "loss": value}

    return Call(model, lambda batch: spread(split(batch)[0]), finish)


def _spread(signature: inspect.Signature, batch: Any, **extra: Any) -> Callable[[Any], Arguments]:
    """How a batch becomes the arguments of `forward`: as keywords, as positions, or whole."""
    if isinstance(batch, Mapping) and _binds(signature, (), {**batch, **extra}):
        return lambda batch: ((), dict(batch))
    positional = isinstance(batch, list | tuple) and not _is_texts(batch)
    if positional and _binds(signature, tuple(batch), extra):
        return lambda batch: (tuple(batch), {})
    if _binds(signature, (batch,), extra):
        return lambda batch: ((batch,), {})
    raise ModelError(f"forward{signature} cannot be called with a batch of {outline(batch)}\n{CONTRACTS}")


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[Any, Any]) -> bool:
    if not all(isinstance(key, str) for key in kwargs):
        return False
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _with_mode(arguments: Arguments, mode: str) -> Arguments:
    args, kwargs = arguments
    kwargs["mode"] = mode
    return args, kwargs


def _is_texts(batch: Any) -> bool:
    """Whether it is a text for each sample, however many; two of them are no inputs and targets."""
    return isinstance(batch, list) and bool(batch) and isinstance(batch[0], str | bytes)


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (list, tuple)) and len(batch) == 2
