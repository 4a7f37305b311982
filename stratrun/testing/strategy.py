"""Whether a strategy trains as one process would: the checks of numbers, traffic and evaluation."""

import shutil
import tempfile
from collections.abc import Collection
from typing import Any

import torch

from stratrun.errors import ConfigError, IncompatibleError
from stratrun.registry import STRATEGIES
from stratrun.strategies import Strategy
from stratrun.testing import evaluating, failing, problem, saving
from stratrun.testing.compare import differences, farthest, numbers
from stratrun.testing.exchanges import reductions, told
from stratrun.testing.problem import Recipe, Truth
from stratrun.testing.process_state import isolated
from stratrun.testing.report import Checks, NotChecked, Report, Wrong
from stratrun.testing.running import Part, Place, Seen
from stratrun.testing.spec import portable, title

CLAIMS = {
    "declarations": "the class says what it is called and what it runs on",
    "start": "all ranks begin with the weights of the first, under the names of the model",
    "weights": "8 updates give the weights of a plain loop, the last batch being one sample",
    "clipping": "the norm of gradients is that of one process, and they are scaled by it",
    "accumulation": "windows of 3 batches, the last one short, give the weights of a plain loop",
    "unforeseen end": "gradients kept local are averaged where the data ends within a window",
    "weighted losses": "losses count by their weight on all ranks together",
    "two optimizers": "an optimizer for each part of the model gives the weights of a plain loop",
    "thawing": "a parameter thawed in the second epoch is trained like any other",
    "traffic": "within a window no gradients are exchanged; its end costs one round",
    "evaluation": "each sample counts once on any number of batches, and training goes on as before",
    "mixed precision": "bf16-mixed trains to about the same weights",
    "overflow": "an infinite loss on one rank drops the update on all, in 16-mixed",
    "resuming": "a run stopped within a window goes on to the weights of one that was not",
    "to one process": "a single process takes over what was saved",
    "from one process": "what a single process has saved is taken over",
    "failed save": "a save that fails on one rank raises the same error on all",
    "failed rank": "a rank that fails raises its own error, and others neither wait nor update without it",
}
_TWO_RANKS = ("traffic", "failed save", "failed rank")


def check_strategy(
    strategy: Any,
    *,
    world_size: int | None = None,
    model: problem.Build = problem.Centered,
    only: Collection[str] | None = None,
) -> Report:
    """Train small models under a strategy on ranks of this machine, and compare with plain PyTorch loops.

    Args:
        strategy: As a Runner takes it: a name, a class, or a dict with `type`. Not an object, as each
            run makes its own.
        world_size: Number of ranks; by default the least that it works with, two or more.
        model: Makes a model of 6 inputs and 3 classes, for strategies that need to know its parts; the
            default has ``embed``, ``blocks.0.up``, ``blocks.0.down``, ..., ``head``. Module-level.
        only: Names of the checks to run, of `strategy.CLAIMS`; all by default.

    Raises:
        CheckFailure: some failed. The message says which and why.
        ConfigError: there is no such strategy, or its arguments are wrong.
    """
    if isinstance(strategy, Strategy):
        raise ConfigError(
            f"strategy={strategy!r} is an object, but each run of the checks makes one of its own; "
            "give the class, or dict(type=TheClass, option=...)"
        )
    built: Strategy = STRATEGIES.build(strategy, where="strategy")
    world_size = world_size or _ranks_for(built)
    trial = _Trial(portable(STRATEGIES, strategy), built, world_size, model)
    checks = Checks(f"strategy={title(strategy)} on {world_size} rank{'s' * (world_size > 1)}", CLAIMS, only)
    try:
        for name, claim in CLAIMS.items():
            checks.run(name, claim, trial.check(name))
    finally:
        trial.close()
    return checks.done()


def _ranks_for(strategy: Strategy) -> int:
    if not strategy.needs_process_group:
        return 1
    return max(2, strategy.multiple_of, strategy.ranks_per_batch)


class _Trial:
    """The checks of one strategy, which share ranks and a folder."""

    def __init__(self, spec: Any, built: Strategy, world_size: int, build: problem.Build) -> None:
        self.part = Part(strategy=spec, build=build)
        self.built = built
        self.place = Place(self.part, world_size)
        self.folder = tempfile.mkdtemp(prefix="stratrun-check-")
        self.data_ranks = max(1, world_size // built.ranks_per_batch)
        self.recipe = Recipe(batch=4 * self.data_ranks)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def check(self, name: str) -> Any:
        common = self.place, self.recipe, self.folder
        short = self.recipe.but(epochs=1)
        methods = {
            "declarations": self.declarations,
            "start": self.start,
            "weights": lambda: self.parity(self.recipe),
            "clipping": self.clipping,
            "accumulation": lambda: self.parity(self.recipe.but(accumulate=3, max_norm=0.05)),
            "unforeseen end": lambda: self.parity(short.but(accumulate=3, stream=True)),
            "weighted losses": lambda: self.parity(short.but(accumulate=3, weighted=True)),
            "two optimizers": self.two_optimizers,
            "thawing": lambda: self.parity(self.recipe.but(thaws=True)),
            "traffic": self.traffic,
            "evaluation": lambda: evaluating.evaluation(
                self.place, self.recipe, self.folder, self.data_ranks
            ),
            "mixed precision": self.mixed,
            "overflow": lambda: failing.overflow(*common, self.built),
            "resuming": lambda: saving.resuming(*common),
            "to one process": lambda: saving.to_one(*common),
            "from one process": lambda: saving.from_one(*common),
            "failed save": lambda: failing.save(*common),
            "failed rank": lambda: failing.rank(*common),
        }

        def call() -> Any:
            if self.place.world_size == 1 and name in _TWO_RANKS:
                raise NotChecked("it runs in one process")
            return methods[name]()

        return call

    def truth(self, recipe: Recipe, dtype: torch.dtype = torch.float32) -> Truth:
        with isolated():
            return problem.plain_loop(recipe, self.part.model, dtype)

    def run(self, recipe: Recipe, **options: Any) -> list[Seen]:
        return self.place.trained(recipe, self.folder, **options)

    # -- the checks

    def declarations(self) -> None:
        kind = type(self.built)
        if not isinstance(getattr(kind, "name", None), str):
            raise Wrong(f"{kind.__name__} has no name; write name = 'what users type' in the class")
        if not isinstance(getattr(kind, "accelerators", None), frozenset | set):
            raise Wrong(f"{kind.__name__}.accelerators must be a set of names, such as frozenset({{'cpu'}})")
        if "cpu" not in self.built.accelerators:
            raise Wrong(
                f"it runs on {', '.join(sorted(self.built.accelerators))}, not on cpu, where the checks do",
                "what can be exchanged over gloo should run on 'cpu' as well, if only to be tested",
            )
        world_size, each = self.place.world_size, self.built.ranks_per_batch
        if world_size % each or self.built.multiple_of % each:
            raise Wrong(f"ranks_per_batch={each} divides neither multiple_of nor {world_size} ranks")

    def start(self) -> None:
        found = self.run(self.recipe.but(epochs=1))
        truth = {name: p.detach() for name, p in self.part.model().named_parameters()}
        for rank, seen in enumerate(found):
            if wrong := differences(seen.start, truth, 0.0):
                raise Wrong(
                    f"on rank {rank}: {wrong}",
                    f"place() or wrap() gives all ranks the values of rank 0; {saving.NAMES}",
                )

    def parity(self, recipe: Recipe) -> str:
        found, truth = self.run(recipe), self.truth(recipe)
        for rank, seen in enumerate(found):
            if wrong := differences(seen.weights, truth.weights):
                if not differences(seen.weights, seen.start, 0.0):
                    raise Wrong(
                        f"on rank {rank} no weight has changed",
                        "wrap() trains the very parameters of the module it is given: optimizers have these",
                    )
                renamed = set(seen.weights) != set(truth.weights)
                raise Wrong(f"on rank {rank}: {wrong}", saving.NAMES if renamed else _likely(recipe))
        updates = recipe.epochs * len(problem.windows(recipe))
        if found[0].counters["step"] != updates:
            raise Wrong(f"{found[0].counters['step']} updates were counted instead of {updates}")
        far = max(farthest(seen.weights, truth.weights) for seen in found)
        return f"largest difference {far:.0e}"

    def clipping(self) -> str:
        for norm_type, name in ((2.0, "2"), (float("inf"), "inf")):
            recipe = self.recipe.but(max_norm=0.05, norm_type=norm_type, accumulate=2, epochs=1)
            found, truth = self.run(recipe), self.truth(recipe)
            for rank, seen in enumerate(found):
                first = numbers(seen.norms[:1], truth.norms[:1])
                wrong = differences(seen.weights, truth.weights)
                if wrong and not first:
                    raise Wrong(
                        f"the first norm of type {name} is right, but on rank {rank}: {wrong}",
                        "clip_grad_norm() scales each gradient in place by min(1, max_norm / (norm + 1e-6))",
                    )
                if first or (first := numbers(seen.norms, truth.norms)):
                    raise Wrong(
                        f"on rank {rank}, of the norms of type {name}: {first}",
                        "clip_grad_norm() must return the norm over all gradients of all ranks, once each: a "
                        "norm of the parts that a rank has is put together over the ranks first",
                    )
        return f"first norm {truth.norms[0]:.4f}"

    def two_optimizers(self) -> str:
        with isolated():
            body, head = problem.two_parts(self.part.model())
        if not body or not head:
            raise NotChecked("the model has one part only")
        try:
            return self.parity(self.recipe.but(parts=True, accumulate=2, epochs=1))
        except IncompatibleError as refusal:
            raise NotChecked(f"it says that it does not do this ({refusal})") from refusal

    def traffic(self) -> str:
        windowed = self.run(self.recipe.but(accumulate=4))
        single = self.run(self.recipe)
        for rank, (seen, each) in enumerate(zip(windowed, single, strict=True)):
            # Of the second epoch on: some strategies make ready in the first.
            within, end = (seen.exchanges[i] for i in (5, 7))
            one = each.exchanges[5]
            if not sum(end.values()) + sum(one.values()):
                raise NotChecked("it exchanges by other means than torch.distributed, which are not counted")
            figures = f"within: {told(within)}; at its end: {told(end)}"
            if reductions(within) >= reductions(end) and not self.built.shares_gradients:
                raise Wrong(
                    f"on rank {rank} a batch within a window exchanges as much as the one that ends it "
                    f"({figures})",
                    "no_sync() must keep the exchange of gradients from happening; a strategy that must "
                    "exchange them declares shares_gradients",
                )
            if reductions(end) > reductions(one):
                raise Wrong(
                    f"on rank {rank} a window's end costs more than a batch alone ({told(one)}): {figures}"
                )
        return figures

    def mixed(self) -> str:
        if self.built.precisions is not None and "bf16-mixed" not in self.built.precisions:
            raise NotChecked(f"it works with {', '.join(sorted(self.built.precisions))} only")
        recipe = self.recipe.but(accumulate=2, max_norm=0.05, epochs=1)
        found, truth = self.run(recipe, precision="bf16-mixed"), self.truth(recipe)
        for rank, seen in enumerate(found):
            if wrong := differences(seen.weights, truth.weights, 0.03):
                raise Wrong(f"on rank {rank}: {wrong}", "exchange gradients in float32")
        return f"largest difference {farthest(found[0].weights, truth.weights):.0e}"


def _likely(recipe: Recipe) -> str:
    if recipe.stream:
        return "reduce_gradients() averages gradients that no_sync() kept local"
    if recipe.weighted:
        return "mean() must return the mean over the ranks"
    if recipe.thaws:
        return "wrap() is called again when parameters are frozen or thawed, and must then exchange all anew"
    if recipe.parts:
        return "with partial_backward a backward pass may reach only part of the parameters"
    if recipe.accumulate > 1:
        return "what no_sync() kept local is exchanged with the last batch of a window, divided once"
    return (
        "the backward pass must leave the mean over the ranks in each gradient, not their sum or one rank's"
    )
