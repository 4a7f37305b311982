"""What is to be said of errors of torch that settings of a run, or a gap in the model, have led to."""

import re
from traceback import walk_tb

from torch import nn

from stratrun.errors import shortened

_NOT_DETERMINISTIC = "does not have a deterministic implementation"
_NOT_REACHED = re.compile(r"Parameter indices which did not receive grad for rank (\d+): ([\d ]+)")


def explain(error: BaseException, model: nn.Module) -> None:
    """Add a note to an error of torch: where in the model it is from, and what to do.

    Args:
        model: What names are relative to.
    """
    if not isinstance(error, RuntimeError):
        return
    if _NOT_DETERMINISTIC in str(error):
        error.add_note(
            f"stratrun: {_place_of(error, model)}randomness=dict(deterministic=True) refuses such an "
            "operation; take another one, or give deterministic='warn', which warns of it and goes on with "
            "results that may differ from run to run"
        )
    elif found := _NOT_REACHED.search(str(error)):
        # Numbered as they are exchanged: those that were trained when the model was wrapped.
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        numbers = [int(number) for number in found[2].split()]
        missed = [names[number] for number in numbers if number < len(names)]
        error.add_note(
            f"stratrun: on rank {found[1]} a backward pass did not reach {shortened(missed)}; use them in "
            "the loss of each step, freeze them (requires_grad_(False)), or give "
            "strategy=dict(type='ddp', find_unused_parameters=True)"
        )


def _place_of(error: BaseException, model: nn.Module) -> str:
    """The innermost module in whose methods it was raised, to begin a sentence with; empty if in none."""
    names = {id(module): name for name, module in model.named_modules()}
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    callers = [frame.f_locals.get("self") for frame in frames]
    inside = [one for one in callers if isinstance(one, nn.Module) and id(one) in names]
    if inside:
        name = names[id(inside[-1])]
        within = f" {name!r}" if name else ""
        return f"in {type(inside[-1]).__name__}{within} of the model: "
    if any("/torch/autograd/" in frame.f_code.co_filename for frame in frames):
        return "in a backward pass (torch.autograd.set_detect_anomaly(True) shows of which call): "
    return ""
