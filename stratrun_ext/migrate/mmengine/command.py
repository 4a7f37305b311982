"""``stratrun migrate mmengine``: a config or a checkpoint of theirs as ours, with a report."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from stratrun.errors import ConfigError
from stratrun_ext.migrate.mmengine.convert import convert
from stratrun_ext.migrate.outputs import refuse, writing

CHECKPOINTS = (".pth", ".pt")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="CONFIG_OR_PTH", help="a config (.py, .json, .yaml) or a checkpoint (.pth)"
    )
    parser.add_argument(
        "--out", metavar="PATH", help="what to write; named after the source by default, in this folder"
    )
    parser.add_argument("--force", action="store_true", help="replace what is there already")
    parser.epilog = "Nothing of either is run. docs/migrate_mmengine.md has what becomes of each word."


def migrated(given: Namespace) -> str:
    """Write what was asked for. Returns the report."""
    source = Path(given.source)
    if source.suffix in CHECKPOINTS:
        # Only now: it imports torch, which takes seconds.
        from stratrun_ext.migrate.mmengine.checkpoint import migrate_checkpoint

        out = Path(given.out or f"{source.stem}.safetensors")
        refuse(source, out, force=given.force)
        return str(migrate_checkpoint(source, out))
    own = f"{source.stem}-stratrun" if source.suffix == ".yaml" else source.stem
    out = Path(given.out or f"{own}.yaml")
    refuse(source, out, force=given.force)
    try:
        text, report = convert(source)
    except RecursionError as error:
        raise ConfigError(
            f"{source} is nested too deeply, or in itself, to be read; write it plainly"
        ) from error
    with writing(out):
        out.write_text(text)
    counts = ", ".join(f"{len(report.counted(one))} {one}" for one in ("mapped", "changed", "left for you"))
    written = f"written: {out} ({counts})\nnext: stratrun train {out} --import parts.py"
    return f"{report}\n\n{written}"
