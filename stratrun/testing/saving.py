"""Whether what a strategy saves can be gone on from, by itself and by a single process."""

from pathlib import Path

from stratrun.testing.compare import EXACT, differences, farthest
from stratrun.testing.problem import Recipe
from stratrun.testing.report import Wrong
from stratrun.testing.running import Part, Place, Seen, alone, train

STOP = 6  # of 8 iterations: the second batch of a window in the second epoch
NAMES = "state is read off the module that was placed: its parameters keep their names and shapes"


def recipe_of(recipe: Recipe) -> Recipe:
    return recipe.but(accumulate=3, optimizer="AdamW", max_norm=0.05)


def resuming(place: Place, recipe: Recipe, folder: str) -> str:
    recipe = recipe_of(recipe)
    whole = place(train, recipe, f"{folder}/whole")
    broken = place(train, recipe, f"{folder}/broken", stop_at=STOP)
    resumed = place(train, recipe, f"{folder}/broken", resume=True)
    for rank, (before, after, truth) in enumerate(zip(broken, resumed, whole, strict=True)):
        if wrong := differences(after.start, before.saved, 0.0):
            raise Wrong(f"on rank {rank}, right after resuming: {wrong}", NAMES)
        if wrong := differences(after.weights, truth.weights):
            raise Wrong(
                f"on rank {rank}, at the end: {wrong}",
                "own_state() keeps what each rank has of its own; the gradients of an open window are kept "
                "for you, as each rank's own, or as parameters are where shares_gradients says so",
            )
    far = max(farthest(a.weights, b.weights) for a, b in zip(resumed, whole, strict=True))
    return "to the bit" if far == 0 else f"largest difference {far:.0e}, not to the bit"


def to_one(place: Place, recipe: Recipe, folder: str) -> str:
    recipe = recipe_of(recipe)
    target = f"{folder}/to-one"
    broken = place(train, recipe, target, stop_at=STOP)
    truth = single(place, recipe, f"{folder}/truth-to")
    after = single(place, recipe, target, resume=True)
    return _compared(broken[0], [after], truth)


def from_one(place: Place, recipe: Recipe, folder: str) -> str:
    recipe = recipe_of(recipe)
    target = f"{folder}/from-one"
    broken = single(place, recipe, target, stop_at=STOP)
    truth = single(place, recipe, f"{folder}/truth-from")
    after = place(train, recipe, target, resume=True)
    return _compared(broken, after, truth)


def single(place: Place, recipe: Recipe, folder: str, **options: object) -> Seen:
    """The same run in this process, without any strategy to speak of."""
    part = Part(strategy="single", build=place.part.build)
    found: Seen = alone(train, part, recipe, str(Path(folder)), **options)
    return found


def _compared(before: Seen, after: list[Seen], truth: Seen) -> str:
    for rank, seen in enumerate(after):
        if wrong := differences(seen.start, before.saved, 0.0):
            raise Wrong(f"right after loading, on rank {rank}: {wrong}", NAMES)
        if wrong := differences(seen.weights, truth.weights, 5 * EXACT):
            raise Wrong(
                f"at the end, on rank {rank}: {wrong}",
                "the state of the optimizer, or the gradients of the open window, did not come over whole",
            )
    return f"largest difference {max(farthest(seen.weights, truth.weights) for seen in after):.0e}"
