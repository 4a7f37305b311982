"""State of an optimizer for a model that is not quite the one that it was saved with."""

from collections.abc import Collection, Mapping
from typing import Any

from stratrun.checkpoint.mapping import Fit
from stratrun.errors import CheckpointError


def fit_optimizer(
    own: Mapping[str, Any], stored: Mapping[str, Any], renamed: Mapping[str, str | None], model: Fit
) -> tuple[Fit, dict[str, Any]]:
    """How a stored optimizer meets that of this run, and the state to load: its own where nothing fits.

    Both as `strategies.logical.optimizer_state` has them.

    Args:
        renamed: What stored names become.
        model: How the weights fit: moments of a weight of another shape are skipped with it.
    """
    found = Fit()
    old_of: dict[str, str] = {}
    for old in _names(stored):
        new = renamed.get(old, old)
        if new is None:
            found.dropped.append(old)
            continue
        old_of[new] = old
        if new != old:
            found.renamed[old] = new
    mine = _names(own)
    for name in mine:
        if name in model.skipped:
            found.skipped[name] = model.skipped[name]
        else:
            (found.loaded if name in old_of else found.missing).append(name)
    found.unexpected = [name for name in old_of if name not in set(mine)]
    fitting = {name for name in found.loaded if old_of[name] in stored["state"]}
    state = {name: values for name, values in own["state"].items() if name not in found.loaded}
    state |= {name: stored["state"][old_of[name]] for name in found.loaded if name in fitting}
    rest = {key: value for key, value in stored.items() if key not in ("state", "param_groups")}
    return found, {**rest, "state": state, "param_groups": own["param_groups"]}


def with_options(
    merged: Mapping[str, Any], stored: Mapping[str, Any], renamed: Mapping[str, str | None], *, strict: bool
) -> tuple[dict[str, Any], bool]:
    """The state with the learning rates and other options of the stored groups, and whether that could be.

    Raises:
        CheckpointError: with `strict`, the parameters are grouped in another way.
    """
    own, theirs = merged["param_groups"], stored["param_groups"]
    if strict:
        mine = [sorted(group["params"]) for group in own]
        others = [sorted(_renamed(group["params"], renamed)) for group in theirs]
        if mine != others:
            sizes = " and ".join(str([len(group) for group in groups]) for groups in (others, mine))
            raise CheckpointError(
                f"its groups of parameters are cut differently (of {sizes} here); cut them alike, or take "
                "the rest with strict=False"
            )
    if len(own) != len(theirs):
        return dict(merged), False
    groups = [{**a, "params": b["params"]} for a, b in zip(theirs, own, strict=True)]
    return {**merged, "param_groups": groups}, True


def refuse_other_class(stored: Mapping[str, Any], defaults: Collection[str], kind: str) -> None:
    """
    Args:
        defaults: Options that an optimizer of this run has.
        kind: Its class, for the message.

    Raises:
        CheckpointError: the stored one had not all of them.
    """
    known = stored["param_groups"][0] if stored["param_groups"] else {}
    lacking = sorted(set(defaults) - set(known))
    if lacking:
        raise CheckpointError(
            f"{kind} is of another class than the checkpoint's, which had no {', '.join(lacking)}; "
            "use the same, or leave 'optimizer' out of parts"
        )


def _names(state: Mapping[str, Any]) -> list[str]:
    return [name for group in state["param_groups"] for name in group["params"]]


def _renamed(names: Collection[str], renamed: Mapping[str, str | None]) -> list[str]:
    new = (renamed.get(name, name) for name in names)
    return [name for name in new if name is not None]
