"""Runs in Weights & Biases, on its server or, offline, in files to be synchronised later."""

import html
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import wandb
from PIL.Image import Image

from stratrun.config.redaction import redacted
from stratrun.errors import ConfigError, nearest
from stratrun.loggers.abilities import Outcome
from stratrun.loggers.names import safe_path
from stratrun.loggers.record import Record
from stratrun.loggers.tracking import TrackingLogger, config_values

# 255 is what it takes for a run that was killed.
_EXIT_CODES: dict[Outcome, int] = {"finished": 0, "failed": 1, "killed": 255}
_MODES = ("online", "offline", "shared", "disabled")
# Runs of this process that are under way.
_OPEN: set[int] = set()


class WandbLogger(TrackingLogger):
    """Logs to Weights & Biases: values by training iteration, the config, images, texts and files.

    Its run has the id of ours, so that a resumed one goes on in it, under the same `project`. Values are
    named ``<kind>/<name>``; the horizontal axis is ``iter``. What may hold a secret by chance is not sent:
    the command line, the output of the console, code, and the URL of the repository.

    Offline its process holds up to 32 KiB in memory until the run is finished, which `flush` therefore does;
    what follows goes to another folder, under the same id.

    Args:
        mode: ``"online"``, ``"offline"`` or ``"disabled"``; else as ``WANDB_MODE`` says.
        init: Further arguments of `wandb.init`, such as ``group``.
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        entity: str | None = None,
        name: str | None = None,
        mode: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        queue: Mapping[str, Any] | None = None,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(params, queue)
        if mode is not None and mode not in _MODES:
            raise ConfigError(f"mode={mode!r} is unknown; {nearest(str(mode), _MODES)}")
        self.mode = mode
        self._place = {"project": project, "entity": entity, "name": name}
        self._tags: list[str] = list(redacted(list(tags)))
        self._init: dict[str, Any] = dict(redacted(dict(init or {})))
        self._own_id = uuid4().hex[:12]
        self._folder: Path
        self._begun = 0
        self._run: Any = None

    def open(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, run_id: str | None) -> None:
        # Its folders are named by the second; one begun again must not write over the last.
        place = self._folder / f"wandb-{self._begun}" if self._begun else self._folder
        place.mkdir(exist_ok=True)
        options = {
            "id": run_id or self._own_id,
            "resume": "allow",
            "mode": self.mode,
            "dir": str(place),
            "config": {**config_values(self.config), **self.params},
            "allow_val_change": True,
            "tags": self._tags or None,
            "reinit": "create_new",
            "settings": wandb.Settings(
                console="off", disable_git=True, disable_code=True, save_code=False, x_disable_meta=True
            ),
        }
        self._run = wandb.init(**{**self._place, **options, **self._init})
        self._begun += 1
        _OPEN.add(id(self._run))
        # Not its own count, which goes up only: a resumed run logs some iterations once more.
        self._run.define_metric("*", step_metric="iter")

    def finish(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=_EXIT_CODES[outcome])
        _OPEN.discard(id(self._run))
        if self._run.offline and wandb.run is None and not _OPEN:
            # Its process writes the rest of the file after that has returned: only its end can be waited for.
            wandb.teardown()

    def flush(self) -> None:
        super().flush()
        if self._run is not None and self._run.offline:
            self.end()

    def send_values(self, record: Record) -> None:
        row = record.flat()
        counters = {name: row[name] for name in ("epoch", "iter", "step", "samples")}
        self._run.log({**counters, **{f"{record.kind}/{name}": v for name, v in record.values.items()}})

    def send_image(self, name: str, image: Image, step: int) -> None:
        self._run.log({name: wandb.Image(image), "iter": step})

    def send_text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False), "iter": step})

    def send_file(self, name: str, path: Path) -> None:
        # A copy, as it would only be linked.
        place = Path(self._run.dir, "files", safe_path(name))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)
        self._run.save(str(place), base_path=self._run.dir, policy="now")
