"""In stratrun."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from stratrun import Config, Hook, Runner
from stratrun.cli.main import main
from wrong.pieces import loader, loss_of, model, samples


def run(folder: Path, job: str = "train", **changes: Any) -> Runner:
    given: dict[str, Any] = dict(
        model=model(),
        loss="cross_entropy",
        train_dataloader=dict(dataset=samples(), batch_size=4),
        train_cfg=dict(max_epochs=2),
        optimizer=dict(type="SGD", lr=0.1),
        accelerator="cpu",
        work_dir=folder / "work",
        loggers=["jsonl"],
    )
    runner = Runner(**{**given, **changes})
    getattr(runner, job)()
    runner.close()
    return runner


def validated(**changes: Any) -> dict[str, Any]:
    return {
        "val_dataloader": dict(dataset=samples(), batch_size=4),
        "val_evaluator": dict(type="Accuracy"),
        **changes,
    }


def right(folder: Path) -> None:
    run(folder, **validated())


def device_typo(folder: Path) -> None:
    run(folder, accelerator="cdua")


def device_absent(folder: Path) -> None:
    run(folder, accelerator="cuda")


def strategy_typo(folder: Path) -> None:
    run(folder, strategy="dpp")


def precision_typo(folder: Path) -> None:
    run(folder, precision="fp17")


def hook_typo(folder: Path) -> None:
    run(folder, custom_hooks=[dict(type="EarlyStopingHook", monitor="accuracy")], **validated())


def hook_point_typo(folder: Path) -> None:
    class Mine(Hook):
        def after_train_epochh(self) -> None: ...

    run(folder, custom_hooks=[Mine()])


def optimizer_typo(folder: Path) -> None:
    run(folder, optimizer=dict(type="AdmaW", lr=0.1))


def optimizer_argument(folder: Path) -> None:
    run(folder, optimizer=dict(type="SGD", lrr=0.1))


def optimizer_of_other(folder: Path) -> None:
    run(folder, optimizer=torch.optim.SGD(model().parameters(), lr=0.1))


def length_typo(folder: Path) -> None:
    run(folder, train_cfg=dict(max_epoch=2))


def length_negative(folder: Path) -> None:
    run(folder, train_cfg=dict(max_epochs=-5))


def accumulate_zero(folder: Path) -> None:
    run(folder, train_cfg=dict(max_epochs=2, accumulate=0))


def _config(folder: Path, text: str = "optimizer: {type: SGD, lr: 1e-1}") -> Path:
    path = folder / "run.yaml"
    path.write_text(f"model: {{type: Linear, in_features: 4, out_features: 3}}\n{text}\n")
    return path


def override_typo(folder: Path) -> None:
    main(["train", str(_config(folder)), "optimiser.lr=1"])


def quoted_number(folder: Path) -> None:
    config = Config.load(_config(folder, 'optimizer: {type: SGD, lr: "1e-3"}'))
    run(folder, optimizer=config.optimizer)


def no_val_data(folder: Path) -> None:
    run(folder, val_evaluator=dict(type="Accuracy"))


def monitor_typo(folder: Path) -> None:
    run(folder, default_hooks=dict(checkpoint=dict(save_best="acuracy")), **validated())


def empty_loader(folder: Path) -> None:
    run(folder, train_dataloader=[])


def spent_iterator(folder: Path) -> None:
    run(folder, train_dataloader=iter(list(loader())))


class Given(nn.Module):
    """Its training step returns what `then` makes of outputs and targets."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.net, self.then = model(), then

    def train_step(self, batch: Any) -> Any:
        return self.then(self.net(batch[0]), batch[1])


def none_loss(folder: Path) -> None:
    run(folder, model=Given(lambda outputs, targets: None), loss=None)


def vector_loss(folder: Path) -> None:
    run(folder, model=Given(lambda outputs, targets: loss_of(outputs, targets, "none")), loss=None)


def nan_loss(folder: Path) -> None:
    run(folder, model=Given(lambda outputs, targets: loss_of(outputs, targets) * float("nan")), loss=None)


def shape_mismatch(folder: Path) -> None:
    run(folder, model=model(5))


def label_range(folder: Path) -> None:
    run(folder, train_dataloader=dict(dataset=samples(labels=4), batch_size=4))


def no_checkpoint(folder: Path) -> None:
    run(folder, resume="nowhere/step-00000004")


def cut_checkpoint(folder: Path) -> None:
    made = run(folder)
    (written,) = (folder / "work" / "checkpoints").glob(f"step-{made.iter:08}")
    largest = max(
        (path for path in written.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    run(folder, resume=str(written), train_cfg=dict(max_epochs=3))


def other_checkpoint(folder: Path) -> None:
    torch.save(nn.Sequential(model()).state_dict(), folder / "other.pt")
    run(folder, load_from=folder / "other.pt")


def no_launcher(folder: Path) -> None:
    run(folder, strategy="ddp")


def plateau_alone(folder: Path) -> None:
    run(folder, param_scheduler=dict(type="ReduceLROnPlateau"), **validated())


def clip_negative(folder: Path) -> None:
    run(folder, clip_grad=-1)


def interval_zero(folder: Path) -> None:
    run(folder, **validated(train_cfg=dict(max_epochs=2, val_interval=0)))
