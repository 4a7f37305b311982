"""``stratrun migrate lightning``: a ``.ckpt`` as weights and a checkpoint of ours, with a report."""

from pathlib import Path

from stratrun.checkpoint.foreign import Placeholder
from stratrun_ext.migrate.lightning.checkpoint import LightningCheckpoint, read
from stratrun_ext.migrate.outputs import refuse
from stratrun_ext.migrate.parts import write_state, write_weights
from stratrun_ext.migrate.report import Report, shown


def migrate_checkpoint(source: Path, out: Path, *, force: bool = False) -> Report:
    """Write the weights to `out`, a safetensors file, and with the optimizer's state to a folder beside it.

    Raises:
        ConfigError: `out` is there already, and `force` is not given.
        CheckpointError: `source` is no file of Lightning, or is damaged.
    """
    refuse(source, out, force=force)
    found, report = read(source), Report()
    for name, value in found.left_out.items():
        report.add("left for you", f"state_dict.{name}", None, f"is not taken: {value}")
    write_weights(found.weights, out)
    report.add("mapped", "state_dict", None, f"{len(found.weights)} tensors in {out}")
    if len(found.optimizers) == 1:
        write_state(found.optimizers[0], found.weights, found.batches, out, report)
    elif found.optimizers:
        note = f"{len(found.optimizers)} optimizers are not taken; each begins anew"
        report.add("left for you", "optimizer_states", None, note)
    _rest(found, report)
    return report


def _rest(found: LightningCheckpoint, report: Report) -> None:
    if found.schedulers:
        note = "begin anew; runner_for(..., start_from=) of stratrun_ext.migrate.lightning goes on with them"
        report.add("left for you", "lr_schedulers", None, note)
    done = f"{found.epochs} epochs" if found.epochs is not None else "a part of an epoch"
    note = f"{done}, {found.step} updates were done; counters begin at 0, so train for what is left"
    report.add("left for you", "loops", None, note)
    for name, value in found.hparams.items():
        if isinstance(value, Placeholder):
            report.add("left for you", f"hyper_parameters.{name}", None, f"{value!r}: give it to the class")
        else:
            note = f"{shown({name: value})}: an argument of the class"
            report.add("left for you", f"hyper_parameters.{name}", None, note)
    for name in found.others:
        report.add("nothing to do" if name == "callbacks" else "left for you", name, None, "is not taken")
