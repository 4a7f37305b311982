"""Classes that were written for other frameworks."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stratrun.errors import CheckpointError, ConfigError, DataError, IncompatibleError, ModelError
from stratrun_ext.migrate import lightning as L
from stratrun_ext.migrate.huggingface import RowCollate
from stratrun_ext.migrate.lightning.command import migrate_checkpoint
from tests.mistakes.mistake import mistake, runner, samples


class Classifier(L.LightningModule):
    """Without a mistake; each case changes one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, model: Any, **arguments: Any) -> None:
    feed = {"dataset": samples(), "batch_size": 4}
    options: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "loggers": ["jsonl"]}
    options |= {"default_root_dir": folder / "work", **arguments}
    L.Trainer(**options).fit(model, feed, feed)


@mistake(ModelError, "Classifier", "an instance", "Classifier(...)")
def a_class_of_lightning_is_given_in_place_of_an_object(folder: Path) -> None:
    fit(folder, Classifier)


@mistake(ModelError, "validation_epoch_end", "rename it to on_validation_epoch_end(self)")
def a_hook_of_lightning_1_is_defined(folder: Path) -> None:
    class Old(Classifier):
        def validation_epoch_end(self, outputs: Any) -> None: ...

    fit(folder, Old())


@mistake(IncompatibleError, "automatic_optimization=False", "loop", "runner.engine.update(loss")
def optimization_is_by_hand(folder: Path) -> None:
    model = Classifier()
    model.automatic_optimization = False
    fit(folder, model)


@mistake(IncompatibleError, "2 optimizers", "optimizer=dict(a=..., b=...)", shows="built")
def configure_optimizers_returns_two(folder: Path) -> None:
    class Two(Classifier):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    fit(folder, Two())


@mistake(ConfigError, "'intervall'", "did you mean 'interval'", shows="built")
def a_key_of_the_scheduler_is_misspelt(folder: Path) -> None:
    class Misspelt(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            return [optimizer], [{"scheduler": scheduler, "intervall": "step"}]

    fit(folder, Misspelt())


@mistake(ConfigError, "monitor='val_los'", "did you mean 'val_loss'", shows="running")
def the_plateau_follows_what_is_not_logged(folder: Path) -> None:
    class Plateau(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_los"}

    fit(folder, Plateau())


@mistake(ModelError, "self.log('train_loss')", "shape (4,)", "mean()", shows="running")
def a_loss_of_each_sample_is_logged(folder: Path) -> None:
    class Each(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            losses = F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
            self.log("train_loss", losses)
            return losses.mean()

    fit(folder, Each())


@mistake(ConfigError, "self.log('a')", "on_epochs=", "did you mean 'on_epoch'", shows="running")
def an_option_of_log_is_misspelt(folder: Path) -> None:
    class Misspelt(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("a", 1.0, on_epochs=True)
            return super().training_step(batch, batch_idx)

    fit(folder, Misspelt())


@mistake(ConfigError, "max_epoch=3", "did you mean 'max_epochs'")
def an_argument_of_the_trainer_is_misspelt(folder: Path) -> None:
    fit(folder, Classifier(), max_epoch=3)


@mistake(ConfigError, "devices=2", "this is 1 process", "stratrun launch -n 2 program.py")
def the_trainer_is_to_start_processes(folder: Path) -> None:
    fit(folder, Classifier(), devices=2)


@mistake(ConfigError, "num_nodes=2", "this is 1 process", "stratrun launch -n 4 --nodes 2 --rendezvous")
def the_trainer_is_to_run_on_several_machines(folder: Path) -> None:
    fit(folder, Classifier(), devices=4, num_nodes=2)


@mistake(ConfigError, "num_nodes=2", "there are 1 processes", "--nodes 2 --rendezvous")
def the_trainer_counts_machines_alone(folder: Path) -> None:
    fit(folder, Classifier(), num_nodes=2)


@mistake(ConfigError, "use_distributed_sampler=False", "not taken over", "sampler=")
def the_trainer_is_to_leave_the_order_of_the_data(folder: Path) -> None:
    fit(folder, Classifier(), use_distributed_sampler=False)


def weights_alone(folder: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(prefix="net."), folder / "weights.ckpt")
    (folder / "taken.safetensors").touch()


@mistake(
    CheckpointError, "weights.ckpt", "no 'state_dict', but net.weight", "load_from=", prepare=weights_alone
)
def weights_alone_are_to_be_migrated(folder: Path) -> None:
    migrate_checkpoint(folder / "weights.ckpt", folder / "out.safetensors")


@mistake(ConfigError, "taken.safetensors is there already", "--force", prepare=weights_alone)
def what_is_migrated_is_there_already(folder: Path) -> None:
    migrate_checkpoint(folder / "weights.ckpt", folder / "taken.safetensors")


@mistake(ConfigError, "weights.ckpt is what is read", "another name", prepare=weights_alone)
def a_file_is_migrated_onto_itself(folder: Path) -> None:
    migrate_checkpoint(folder / "weights.ckpt", folder / "weights.ckpt", force=True)


@mistake(ConfigError, "there is no file", "none.ckpt", "give the path")
def a_file_to_migrate_is_misspelt(folder: Path) -> None:
    migrate_checkpoint(folder / "none.ckpt", folder / "out.safetensors")


@mistake(IncompatibleError, "automatic_optimization=False", "loop", "runner.engine.update(loss")
def optimization_is_by_hand_for_the_class(folder: Path) -> None:
    class Hand(Classifier):
        automatic_optimization = False

    fit(folder, Hand())


@mistake(ModelError, "teardown would not be called", "on_fit_end")
def a_method_that_nothing_calls_is_defined(folder: Path) -> None:
    class Tidy(Classifier):
        def teardown(self, stage: str) -> None: ...

    fit(folder, Tidy())


@mistake(IncompatibleError, "on_train_batch_start returned -1", "should_stop", shows="running")
def an_epoch_is_cut_short_by_a_hook(folder: Path) -> None:
    class Short(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int:
            return -1

    fit(folder, Short())


@mistake(ConfigError, "2 parameters of SGD are none of Forgot's", "self.parameters()", shows="built")
def the_optimizer_has_other_parameters(folder: Path) -> None:
    class Forgot(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1)

    fit(folder, Forgot())


@mistake(ConfigError, "EarlyStopping", "no hook of stratrun", "dict(type='EarlyStoppingHook'")
def a_callback_of_lightning_is_given(folder: Path) -> None:
    fit(folder, Classifier(), callbacks=[type("EarlyStopping", (), {})()])


@mistake(ConfigError, "optimizer=", "configure_optimizers", "leave it out")
def the_optimizer_is_given_beside_the_class(folder: Path) -> None:
    fit(folder, Classifier(), optimizer={"type": "SGD", "lr": 0.1})


@mistake(DataError, "column 'text' is text", "dataset.map(tokenizer)", shows="running")
def rows_of_text_are_not_tokenised(folder: Path) -> None:
    rows = [{"text": "hello", "labels": 0}] * 8
    feed = {"dataset": rows, "batch_size": 4, "collate_fn": RowCollate()}
    runner(folder, train_dataloader=feed, loss=None).train()
