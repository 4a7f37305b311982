"""Their loops and optimizer wrappers in our words."""

from collections.abc import Mapping
from typing import Any

from stratrun_ext.migrate.mmengine.taking import Taking, off
from stratrun_ext.migrate.report import Report

_LOOPS = ("EpochBasedTrainLoop", "IterBasedTrainLoop", "ValLoop", "TestLoop")
_KINDS = ("norm_decay_mult", "bias_decay_mult", "dwconv_decay_mult", "flat_decay_mult", "bias_lr_mult")
_PRECISIONS = {"float16": "16-mixed", "bfloat16": "bf16-mixed", None: "16-mixed"}


def loop(given: Any, where: str, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    """``train_cfg``, ``val_cfg`` or ``test_cfg``."""
    if given is None:
        report.add("nothing to do", where, source, "no such job by itself")
        return
    if not isinstance(given, Mapping):
        report.add("left for you", where, source, "is no dict")
        return
    theirs, made = Taking(given, where, report), out.setdefault(where, {})
    kind = given.get("type")
    if kind is not None and kind not in _LOOPS:
        made.update({key: theirs.take(key) for key in given})
        theirs.tell("left for you", "type", f"register {kind!r} in LOOPS; see docs/custom_loop.md")
        return
    theirs.keep("type", made)
    for key in ("by_epoch", "max_epochs", "max_iters", "val_interval", "val_begin", "dynamic_intervals"):
        theirs.keep(key, made)
    if theirs.take("fp16"):
        theirs.tell("left for you", "fp16", "precision is that of the whole run: precision: 16-mixed")
    if not given:
        report.add("mapped", where, source)
    theirs.end("is no setting of the loop here")


def wrapper(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    """``optim_wrapper``: the optimizer, and what is told elsewhere here."""
    if not isinstance(given, Mapping) or not isinstance(given.get("optimizer"), Mapping):
        note = "several optimizers are optimizer: {name: {type: ..., params: ...}}; see docs/optimizers.md"
        report.add("left for you", "optim_wrapper", source, note)
        return
    theirs = Taking(given, "optim_wrapper", report)
    optimizer = out["optimizer"] = dict(theirs.take("optimizer"))
    theirs.tell("mapped", "optimizer", "is optimizer")
    _kind(theirs, out)
    _clipping(theirs, out)
    _accumulation(theirs, out)
    _paramwise(theirs, optimizer)
    theirs.drop("constructor", "is the default", lambda name: name == "DefaultOptimWrapperConstructor")
    theirs.end("has no counterpart here")


def _kind(theirs: Taking, out: dict[str, Any]) -> None:
    kind = str(theirs.take("type", "OptimWrapper")).rpartition(".")[2]
    if kind == "OptimWrapper":
        if "type" in theirs:
            theirs.tell("nothing to do", "type", "a run makes the updates")
        return
    if kind != "AmpOptimWrapper":
        theirs.tell("left for you", "type", f"{kind} has no counterpart; see docs/precision.md")
        return
    dtype = theirs.take("dtype")
    out["precision"] = _PRECISIONS.get(dtype, "16-mixed")
    theirs.tell("mapped", "type", f"is precision: {out['precision']}")
    theirs.drop("loss_scale", "is the default", lambda scale: scale in (None, "dynamic"))
    theirs.leave("loss_scale", "precision: {type: 16-mixed, init_scale: ...}; it moves from there")
    theirs.drop("use_fsdp", "strategies do what is needed")


def _clipping(theirs: Taking, out: dict[str, Any]) -> None:
    clip = theirs.take("clip_grad")
    if not isinstance(clip, Mapping) or not clip:
        if "clip_grad" in theirs:
            theirs.tell("nothing to do", "clip_grad", "is off")
        return
    inner = Taking(clip, "optim_wrapper.clip_grad", theirs.report)
    made: dict[str, Any] = {}
    if inner.take("type", "norm") == "value":
        inner.keep("clip_value", made, "value")
    else:
        inner.keep("max_norm", made)
        inner.keep("norm_type", made)
        inner.drop("error_if_nonfinite", "non_finite says what follows: raise, by itself")
    inner.end("is no setting of clipping here")
    out["clip_grad"] = made
    theirs.tell("mapped", "clip_grad", "is clip_grad of the run")


def _accumulation(theirs: Taking, out: dict[str, Any]) -> None:
    counts = theirs.take("accumulative_counts", 1)
    if counts == 1:
        if "accumulative_counts" in theirs:
            theirs.tell("nothing to do", "accumulative_counts", "1 is the default")
        return
    out.setdefault("train_cfg", {})["accumulate"] = counts
    note = (
        "is train_cfg.accumulate; a pass over the data ends its last window, also when trained by iterations"
    )
    theirs.tell("changed", "accumulative_counts", note)


def _paramwise(theirs: Taking, optimizer: dict[str, Any]) -> None:
    given = theirs.take("paramwise_cfg")
    if not isinstance(given, Mapping) or not given:
        return
    inner = Taking(given, "optim_wrapper.paramwise_cfg", theirs.report)
    made: dict[str, Any] = {}
    for key in _KINDS:
        inner.keep(key, made)
    if "bias_lr_mult" in made:
        # Theirs is not for biases of norm layers.
        made["norm_lr_mult"] = 1.0
    if "bias_decay_mult" in made and "dwconv_decay_mult" in made:
        inner.tell(
            "changed", "dwconv_decay_mult", "is for biases of depthwise convolutions too, ahead of bias_"
        )
    keys = inner.take("custom_keys")
    if isinstance(keys, Mapping) and keys:
        made["rules"] = {_pattern(key): _rule(keys[key]) for key in _ordered(keys)}
        inner.tell("changed", "custom_keys", "are rules; a pattern that fits no parameter is refused here")
    inner.drop("bypass_duplicate", "shared parameters are taken once")
    inner.leave("dcn_offset_lr_mult", "give a rule with the names of these parameters")
    inner.end("is no setting of paramwise")
    if made:
        optimizer["paramwise"] = made
    theirs.tell("mapped", "paramwise_cfg", "is optimizer.paramwise")


def _ordered(keys: Mapping[str, Any]) -> list[str]:
    """Of those that fit theirs takes the longest, and the first by alphabet; here the first counts."""
    return sorted(sorted(keys), key=len, reverse=True)


def _pattern(key: str) -> str:
    """What fits the names that have `key` somewhere in them."""
    begin = key.removeprefix(".") if key.startswith(".") else f"*{key}"
    return f"**.{begin.removesuffix('.') if key.endswith('.') else f'{begin}*'}"


def _rule(options: Any) -> dict[str, Any]:
    # What their rule does not say is 1, whatever is said of its kind.
    return {"lr_mult": 1.0, "decay_mult": 1.0, **dict(options)}


def auto_scale(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    """``auto_scale_lr``, once there is an optimizer."""
    if not isinstance(given, Mapping) or off(given.get("enable")) or "optimizer" not in out:
        report.add("nothing to do", "auto_scale_lr", source, "is off")
        return
    out["optimizer"]["scale_lr"] = {"base_batch_size": given.get("base_batch_size")}
    note = "is optimizer.scale_lr, which counts the batches of an accumulation window too"
    report.add("changed", "auto_scale_lr", source, note)
