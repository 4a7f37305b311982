"""What a class sees as `self.trainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from stratrun.errors import ModelError, nearest

if TYPE_CHECKING:
    from stratrun import Runner
    from stratrun_ext.migrate.lightning.link import Link


class TrainerView:
    """The part of Lightning's Trainer that a model may ask while it is trained."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def runner(self) -> Runner:
        if self._link.runner is None:
            raise ModelError("self.trainer is there only in a run; give the model to runner_for() or fit()")
        return self._link.runner

    @property
    def current_epoch(self) -> int:
        return self._link.epoch

    @property
    def global_step(self) -> int:
        return self.runner.step

    @property
    def max_epochs(self) -> int | None:
        return self.runner.max_epochs

    @property
    def num_training_batches(self) -> float:
        length = self.runner.loop("train").dataloader.epoch_length
        return float("inf") if length is None else length

    @property
    def estimated_stepping_batches(self) -> float:
        updates = self.runner.loop("train").extent().updates
        return float("inf") if updates is None else updates

    @property
    def callback_metrics(self) -> dict[str, float]:
        return dict(self._link.metrics)

    @property
    def optimizers(self) -> list[Any]:
        return list(self.runner.engine.optimizers.values())

    @property
    def datamodule(self) -> Any:
        return self._link.datamodule

    @property
    def is_global_zero(self) -> bool:
        return self.runner.process == 0

    @property
    def global_rank(self) -> int:
        return self.runner.process

    @property
    def default_root_dir(self) -> str:
        return self.runner.work_dir

    @property
    def training(self) -> bool:
        return self.runner.training

    @property
    def sanity_checking(self) -> bool:
        return False

    @property
    def should_stop(self) -> bool:
        return self.runner.state.should_stop

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        if stop:
            self.runner.request("stop", "trainer.should_stop was set")

    def __getattr__(self, name: str) -> NoReturn:
        known = [one for one in dir(type(self)) if not one.startswith("_")]
        raise AttributeError(
            f"trainer.{name} is not there when stratrun trains; {nearest(name, known)}. What a run "
            "knows is in self.trainer.runner, a stratrun.Runner; side work belongs in a hook"
        )
