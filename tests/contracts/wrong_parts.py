"""Hooks, loops, loggers, metrics and precisions each of which is wrong in one way."""

import random
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun import BaseLoop, Hook, Logger, Metric
from stratrun.loggers import Record
from stratrun.loops import EpochBasedTrainLoop
from stratrun.precision import BF16MixedPrecision, FP16MixedPrecision, TruePrecision

# Hooks -------------------------------------------------------------------------------------------------


class SpeaksOfRanks(Hook):
    """Asks which rank it is on."""

    def after_train_epoch(self, runner: Any) -> None:
        self.last = dist.is_initialized() and dist.get_rank() == 0


class Misnamed(Hook):
    """Its point has another name here."""

    def on_train_epoch_end(self, runner: Any) -> None:
        self.called = True

    def after_train(self) -> None: ...


class Meddling(Hook):
    """Changes what is trained."""

    def after_train_iter(self, runner: Any) -> None:
        for parameter in runner.model.parameters():
            parameter.data.mul_(0.99)


class Drawing(Hook):
    """Draws from the generator of the run."""

    def after_train_epoch(self) -> None:
        self.noise = torch.randn(1)


class Reading(Hook):
    """Reads the loss in each iteration."""

    def after_train_iter(self, outputs: Any) -> None:
        self.last = float(outputs["loss"])


class Exchanging(Hook):
    """Averages over the processes in each iteration."""

    def after_train_iter(self, runner: Any) -> None:
        self.mean = runner.engine.mean({"iter": runner.iter})


class Unsaved(Hook):
    """Counts, and forgets its count."""

    count = 0

    def after_train_iter(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}


class OwnSamples(Hook):
    """Sums what this process alone has."""

    total = torch.zeros(())

    def after_train_iter(self, data_batch: Any) -> None:
        self.total = self.total + data_batch[0].sum()

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


class StateOfAKind(Hook):
    """Has a state that no checkpoint keeps."""

    def after_train_iter(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {1, 2}}


# Loops -------------------------------------------------------------------------------------------------


class NoCounting(EpochBasedTrainLoop):
    """Hooks hear of an iteration before it is counted."""

    def run_epoch(self) -> None:
        runner, feed = self.runner, self.dataloader
        feed.set_epoch(runner.epoch)
        for idx, data_batch in enumerate(feed):
            outputs = self.run_iter(idx, data_batch)
            runner.call_hooks("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
            runner.engine.finish_iter()
            if self.iter_done():
                return
        runner.state.epoch += 1


class Deaf(EpochBasedTrainLoop):
    """Does not hear that it is to stop."""

    def iter_done(self) -> bool:
        return False


class StartsAnew(EpochBasedTrainLoop):
    """Counts its epochs itself, from none."""

    def run(self) -> None:
        assert self.max_epochs is not None
        self.runner.call_hooks("before_train")
        for _ in range(self.max_epochs):
            if not self.runner.state.should_stop:
                self.run_epoch()
        self.runner.call_hooks("after_train")


class ByItself(EpochBasedTrainLoop):
    """Trains the model beside the engine."""

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        inputs, targets = data_batch
        loss = nn.functional.cross_entropy(self.runner.model(inputs), targets)
        loss.backward()
        optimizer = self.runner.engine.optimizers["optimizer"]
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.detach()}


class Whimsical(EpochBasedTrainLoop):
    """Moves what it trains on by a generator that no run seeds."""

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        inputs, *others = data_batch
        return super().run_iter(idx, [inputs + random.SystemRandom().random(), *others])


class OwnMetric(BaseLoop):
    """Measures what this process sees."""

    def run(self) -> None:
        self.runner.call_hooks("before_val")
        right = seen = 0
        for data_batch in self.dataloader:
            outputs = self.runner.engine.val_step(data_batch)
            right += int((outputs["preds"].argmax(1) == data_batch[1]).sum())
            seen += len(data_batch[1])
        self.runner.metrics = {"accuracy": right / seen, "seen": seen}
        self.runner.call_hooks("after_val", metrics=self.runner.metrics)


class Unended(BaseLoop):
    """Calls the point at its beginning, and not that at its end."""

    def run(self) -> None:
        self.runner.call_hooks("before_val")
        for idx, data_batch in enumerate(self.dataloader):
            self.run_iter(idx, data_batch)
        self.runner.metrics = self.evaluator.evaluate()


# Loggers -----------------------------------------------------------------------------------------------


class Lines(Logger):
    """Right but for what others change: writes lines to a file."""

    mode: ClassVar[str] = "a"

    def __init__(self) -> None:
        self.path = Path()
        self.lines: list[str] = []

    def open(self, folder: Path) -> None:
        self.path = folder / "lines.txt"

    def log(self, record: Record) -> None:
        self.lines.append(repr(record.flat()))

    def flush(self) -> None:
        with self.path.open(self.mode) as stream:
            stream.writelines(f"{line}\n" for line in self.lines)
        self.lines = []

    def close(self) -> None:
        self.flush()


class WritesEarly(Lines):
    """Makes its file in the constructor."""

    def __init__(self) -> None:
        super().__init__()
        Path("lines.txt").touch()


class Changing(Lines):
    """Rounds the values that all loggers get."""

    def log(self, record: Record) -> None:
        for name in record.values:
            record.values[name] = 0.0
        super().log(record)


class Lazy(Lines):
    """Writes at the end only."""

    def flush(self) -> None: ...

    def close(self) -> None:
        super().flush()


class Overwriting(Lines):
    """Begins its file anew each time."""

    mode = "w"


class Fragile(Lines):
    """Takes a failing disk for something else."""

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise RuntimeError("cannot write") from error


# Metrics -----------------------------------------------------------------------------------------------


class MeanOfMeans(Metric):
    """Averages the means of batches."""

    def __init__(self) -> None:
        self.add_state("total", 0.0)
        self.add_state("batches", 0)

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.total = self.total + (preds.argmax(1) == target).float().mean()
        self.batches += 1

    def compute(self) -> Tensor:
        return self.total / self.batches


class Undeclared(Metric):
    """Counts beside what it declares."""

    right = seen = 0

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.right += int((preds.argmax(1) == target).sum())
        self.seen += len(target)

    def compute(self) -> float:
        return self.right / self.seen


class WrongReduction(Metric):
    """What ranks count becomes the largest of them."""

    def __init__(self) -> None:
        self.add_state("right", torch.zeros(()), "max")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.right = self.right + (preds.argmax(1) == target).sum()

    def compute(self) -> Tensor:
        return self.right


# Precisions --------------------------------------------------------------------------------------------


class NeverUnscaled(FP16MixedPrecision):
    """Clips gradients that still have the scale."""

    name = "never unscaled"

    def unscale(self, optimizer: Optimizer) -> None: ...


class AlwaysStepped(FP16MixedPrecision):
    """Says that it made an update which it dropped."""

    name = "always stepped"

    def step(self, optimizer: Optimizer) -> bool:
        super().step(optimizer)
        return True


class ForgetsItsScale(FP16MixedPrecision):
    """Begins with the first scale each time."""

    name = "forgets its scale"

    def __init__(self) -> None:
        super().__init__(init_scale=2.0**22, backoff_factor=2.0**-12)

    def state_dict(self) -> dict[str, Any]:
        return {}


class Leaky(TruePrecision):
    """Leaves the default dtype of the process changed."""

    name = "leaky"
    param_dtype = compute_dtype = torch.float64

    @contextmanager
    def forward_context(self) -> Any:
        torch.set_default_dtype(torch.float64)
        yield


class Misdeclared(BF16MixedPrecision):
    """Computes in another format than it says."""

    name = "misdeclared"
    compute_dtype = torch.float32

    def forward_context(self) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)
