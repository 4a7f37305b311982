"""A run that shows something of every kind to its loggers, and has secrets in its config."""

import os
from pathlib import Path
from typing import Any

import torch

from stratrun import Runner
from stratrun.hooks import Hook
from tests.problems import perceptron, points

SECRETS = ("hunter2", "s3cr3t-k3y", "hf_abcdefghijklmnopqrstuv", "t0psecret")
EPOCHS, PER_EPOCH = 2, 4


class Shows(Hook):
    """Logs an image, a text and a file after each epoch, and ends the job as it is told."""

    def __init__(self, folder: Path, stop_at: int | None = None, error: BaseException | None = None) -> None:
        self.folder, self.stop_at, self.error = folder, stop_at, error

    def after_train_epoch(self, runner: Any) -> None:
        runner.log_image("pictures/noise", torch.rand(3, 8, 9))
        runner.log_text("notes", f"<epoch {runner.epoch}>\n done")
        path = self.folder / "report.txt"
        path.write_text(f"after {runner.iter}")
        runner.log_file(path, "reports/last.txt")

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.stop_at:
            runner.request("stop", agreed=True)
        if runner.iter == self.stop_at and self.error is not None:
            raise self.error


def config_of(work_dir: Path, **options: Any) -> dict[str, Any]:
    """Settings with secrets by name, by looks and in URLs, as configs have them."""
    return {
        "work_dir": str(work_dir),
        "train_dataloader": {"global_batch_size": 4},
        "train_cfg": {"max_epochs": EPOCHS},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "param_scheduler": {
            "api_key": SECRETS[1],
            "url": f"https://me:{SECRETS[0]}@host/x?token={SECRETS[3]}",
        },
        "model": {"hub": SECRETS[2], "layers": [{"width": 8}, {"width": 4}], "names": ["a", "b"]},
        **options,
    }


def runner_of(work_dir: Path, loggers: list[Any], *hooks: Hook, **options: Any) -> Runner:
    return Runner(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(4 * PER_EPOCH), "global_batch_size": 4},
        train_cfg={"max_epochs": EPOCHS},
        optimizer={"type": "SGD", "lr": 0.1},
        work_dir=work_dir,
        loggers=loggers,
        default_hooks={"logger": {"interval": 1}, "checkpoint": {"interval": 1, "by_epoch": False}},
        custom_hooks=hooks,
        randomness={"seed": 1},
        cfg=config_of(work_dir),
        **options,
    )


def found_secrets(folder: Path) -> list[str]:
    """Secrets in any file below the folder, as `<file>: <secret>`."""
    return [
        f"{path}: {secret}"
        for path in folder.rglob("*")
        if path.is_file()
        for secret in SECRETS
        if secret.encode() in path.read_bytes()
    ]


def stop_by_signal(number: int) -> Hook:
    class Strikes(Hook):
        """Sends the signal after the third iteration."""

        def after_train_iter(self, runner: Any) -> None:
            if runner.iter == 3:
                os.kill(os.getpid(), number)

    return Strikes()
