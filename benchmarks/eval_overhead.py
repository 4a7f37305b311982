"""What a step of evaluation costs, accuracy included, beside a bare loop and other frameworks:
`python benchmarks/eval_overhead.py`.
"""

from argparse import Namespace

from measure import main_of
from ours import VARIANTS
from peers import Variant, bare, variants


def chosen(given: Namespace) -> list[Variant]:
    own = [variant for variant in VARIANTS if variant.job == "evaluate"]
    loops = [variant for variant in bare.VARIANTS if variant.job == "evaluate"]
    return [*own, *loops, *variants("evaluate", given.peers)]


if __name__ == "__main__":
    main_of(__doc__, "a step of evaluation", chosen, bare.VARIANTS[2], rounds=9, blocks=20)
