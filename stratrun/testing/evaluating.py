"""Whether a strategy evaluates as one process would, on ranks that have different numbers of batches."""

import copy

from stratrun.testing import problem
from stratrun.testing.compare import EXACT, differences
from stratrun.testing.problem import Recipe
from stratrun.testing.process_state import isolated
from stratrun.testing.report import Wrong
from stratrun.testing.running import Place


def evaluation(place: Place, recipe: Recipe, folder: str, data_ranks: int) -> str:
    recipe = recipe.but(accumulate=2)
    with isolated():
        truth = problem.plain_loop(recipe, place.part.model)
    samples = 2 * data_ranks + 1
    data = {"dataset": problem.points(samples), "batch_size": 1}
    found = place.trained(
        recipe,
        folder,
        val_dataloader=data,
        val_cfg={},
        val_evaluator={"type": "Accuracy"},
        predict_dataloader={"dataset": problem.points(1, seed=6), "batch_size": 1},
    )
    inputs, targets = data["dataset"].tensors  # type: ignore[attr-defined]
    model = copy.deepcopy(truth.model).eval()
    right = float((model(inputs).argmax(1) == targets).float().mean())
    for rank, seen in enumerate(found):
        if abs(seen.metrics["accuracy"] - right) > EXACT:
            raise Wrong(f"on rank {rank} the accuracy is {seen.metrics['accuracy']} instead of {right}")
        if len(seen.predictions) != 1:
            raise Wrong(f"of one sample there are {len(seen.predictions)} predictions on rank {rank}")
        if wrong := differences(seen.weights, truth.weights):
            raise Wrong(f"training with validations ended elsewhere: {wrong}")
        for here, main in zip(seen.buffers, found[0].buffers, strict=True):
            if differences(here, main, 0.0):
                raise Wrong(
                    f"rank {rank} is evaluated with other buffers than rank 0",
                    "sync_buffers() gives all ranks those of one",
                )
    return f"accuracy {right:.3f} of {samples} samples"
