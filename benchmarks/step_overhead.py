"""What a training step costs beside a bare loop and other frameworks: `python benchmarks/step_overhead.py`.

A small MLP, batches ready in memory, one thread. Peers are those that are installed (the extra `bench`).
"""

from argparse import Namespace

from measure import main_of
from ours import VARIANTS
from peers import Variant, bare, variants


def chosen(given: Namespace) -> list[Variant]:
    own = [variant for variant in VARIANTS if variant.job == "train"]
    loops = [variant for variant in bare.VARIANTS if variant.job == "train"]
    return [*own, *loops, *variants("train", given.peers)]


if __name__ == "__main__":
    main_of(__doc__, "a training step", chosen, bare.VARIANTS[0], rounds=9, blocks=10)
