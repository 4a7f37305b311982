"""Trains classes that were written for Lightning, without Lightning: `import` this in its place."""

from stratrun_ext.migrate.lightning.module import HParams, LightningDataModule, LightningModule
from stratrun_ext.migrate.lightning.runner import runner_for
from stratrun_ext.migrate.lightning.seeding import seed_everything
from stratrun_ext.migrate.lightning.trainer import Trainer

__all__ = ["HParams", "LightningDataModule", "LightningModule", "Trainer", "runner_for", "seed_everything"]
