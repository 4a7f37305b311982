"""A run that has a model and nothing else: no data, no loops, no files."""

import os
from typing import Any

from torch import nn

from stratrun.distributed import ProcessEnv
from stratrun.errors import IncompatibleError
from stratrun.runner import Runner, checks, resume
from stratrun.seed import host_rng_state, set_host_rng_state


class Alone(Runner):
    """A model on its device in evaluation mode, with weights that were loaded as `load_from` does it."""

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, strategy="single", loggers=(), **options)

    def make_ready(self) -> nn.Module:
        """Check, place the model and load its weights. What is wrong is told before anything is built.

        Raises:
            IncompatibleError: this is one of several processes.
        """
        form = self._form
        checks.check_model(form.model)
        checks.check_loss(form.loss)
        checks.check_origin(form)
        processes = ProcessEnv.from_environ(os.environ).world_size
        if processes > 1:
            raise IncompatibleError(
                f"an Inferencer works in one process, and {processes} were launched; start without torchrun, "
                "or share the inputs out with runner.predict() and predict_dataloader="
            )
        # Whoever asks for predictions goes on drawing as if nothing was.
        drawn = host_rng_state()
        try:
            ranks = self._started.ranks
            resume.check(self, ranks, form, "predict")
            self._place()
            resume.load(self, ranks, form)
            self.engine.start_evaluation()
        finally:
            set_host_rng_state(drawn)
        return self.model
