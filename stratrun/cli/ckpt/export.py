"""``stratrun ckpt export``: the weights alone, as one safetensors file."""

import time
from argparse import ArgumentParser, Namespace

from stratrun.cli.ckpt import text
from stratrun.cli.ckpt.entries import Entry
from stratrun.cli.ckpt.places import add_place, folder_and_entries, newest, options_of, told
from stratrun.errors import ConfigError, nearest

_WEIGHTS, _DTYPES = ("model", "ema", "swa"), ("bfloat16", "float16", "float32")


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser, "a checkpoint, or a work dir for its newest one, or with /best")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="a path or a URL that ends in .safetensors; default step-<step>[-ema|-swa].safetensors here",
    )
    parser.add_argument(
        "--weights",
        metavar="model|ema|swa",
        default="model",
        help="the weights that training goes on with (the default), the moving averages of the "
        "EMAHook, or the averages of the SWAHook",
    )
    parser.add_argument("--dtype", metavar="|".join(_DTYPES), help="convert floating point tensors to this")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there already")
    parser.epilog = "load_from=FILE and safetensors.torch.load_file read the file."


def run(given: Namespace) -> int:
    for option, value, known in (("weights", given.weights, _WEIGHTS), ("dtype", given.dtype, _DTYPES)):
        if value is not None and value not in known:
            raise ConfigError(f"--{option} {value} is unknown; {nearest(value, known)}")
    with told():
        folder, entries = folder_and_entries(given)
        entry = newest(entries, folder)
        # Only now: it imports torch, which takes seconds.
        from stratrun.checkpoint.export import export_weights

        start, output = time.perf_counter(), given.output or _default(entry, given.weights)
        done = export_weights(
            entry.folder,
            output,
            weights=given.weights,
            dtype=given.dtype,
            force=given.force,
            output_options=options_of(given) if "://" in output else {},
        )
    seconds = time.perf_counter() - start
    print(
        f"{done.url}: {done.tensors} tensors, {text.size(done.size)}, from {done.source}, in {seconds:.1f} s"
    )
    for name in done.left_out:
        print(f"left out: {name}, which is no tensor")
    return 0


def _default(entry: Entry, weights: str) -> str:
    return f"{entry.name}{'' if weights == 'model' else f'-{weights}'}.safetensors"
