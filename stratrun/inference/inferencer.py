"""The model of a run, called with raw inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, Self

from torch import nn

from stratrun.checkpoint.parts import LoadFrom, LoadReport
from stratrun.checkpoint.selection import split_name
from stratrun.config import Config
from stratrun.data.raw import RawSteps, check_raw_steps
from stratrun.data.rows import take_apart, to_host
from stratrun.engine.contract import outline
from stratrun.errors import ConfigError, MissingArgumentError, ModelError, nearest
from stratrun.inference.alone import Alone
from stratrun.inference.progress import shown
from stratrun.inference.saved import checkpoint_of, config_of, settings_in

_OPTIONS = ("accelerator", "precision", "loss", "allow")


class Inferencer:
    """Predicts on raw inputs: one result for each, in their order.

    A model is called as `runner.predict()` calls it, in evaluation mode and without gradients. Neither data
    nor an optimizer is built, nothing is written, and random numbers of the host are left as they were.

    Args:
        model: An `nn.Module`, which is moved to the device, or a spec of one. `config` has it otherwise.
        weights: As `load_from` of a Runner: a checkpoint, a file of weights, or a dict with ``path`` and
            ``weights="ema"``, ``rename``, ``storage_options``, ...; None for those that the model has.
        config: A file, or the config itself: its ``model``, ``loss``, ``precision``, ``load_from`` and
            ``inference_cfg`` count wherever they are not given here.
        preprocess: Of a raw input makes a sample; a function, or a spec of `TRANSFORMS`.
        collate: Of a list of samples makes a batch; PyTorch's own by default.
        postprocess: Of the outputs for one input, in host memory, makes its result.
        batch_size: Inputs that are predicted together; 32 by default.
        options: ``accelerator`` (``"auto"``), ``precision`` (``"32-true"``), ``loss``, where it has weights
            of its own, and ``allow``: prefixes of dotted names that a config may import.
    """

    def __init__(
        self,
        model: Any = None,
        weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        preprocess: Any = None,
        collate: Any = None,
        postprocess: Any = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        _refuse_unknown(options)
        allow = options.pop("allow", ())
        found = {} if config is None else _read(config, allow)
        if config is not None and weights is None:
            weights = found.get("load_from")
            if weights is None and model is None:
                raise MissingArgumentError(
                    "which weights? the config has no load_from; give weights=..., such as 'work_dirs/x/best'"
                )
        settings = settings_in(found) if config is not None and model is None else _beside_model(found)
        if model is None and "model" not in settings:
            raise MissingArgumentError(
                "an Inferencer needs model=... or config=...; or Inferencer.from_run(work_dir)"
            )
        given = {"preprocess": preprocess, "collate": collate, "postprocess": postprocess}
        mine = {key: one for key, one in {**given, "batch_size": batch_size}.items() if one is not None}
        check_raw_steps(settings.get("inference_cfg"))
        self._steps = RawSteps.build({**settings.pop("inference_cfg", {}), **mine}, where="")
        _refuse_lone_name(weights)
        form = {"model": model, **settings, **options} if model is not None else {**settings, **options}
        self._runner = Alone(load_from=weights, **form)
        self._model = self._runner.make_ready()

    @classmethod
    def from_run(
        cls,
        work_dir: str | os.PathLike[str],
        checkpoint: str = "last",
        *,
        weights: str = "model",
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """The model of a run, by the config that is kept in its checkpoints.

        Args:
            checkpoint: ``"last"``, ``"best"``, ``"best:METRIC"`` or ``"step-00000012"``.
            weights: ``"model"``, or ``"ema"`` for the averages of the EMAHook.
            storage_options: Go to the fsspec file system of `work_dir`.
            options: Other arguments of the class. Classes that the config names have to be registered, by an
                import, or to lie below a prefix in ``allow``.

        Raises:
            CheckpointError: there is no such checkpoint, or its run had no config and no ``model`` is given.
        """
        access = dict(storage_options or {})
        url, folder = checkpoint_of(work_dir, checkpoint, access)
        if options.get("model") is None:
            allow = options.get("allow", ())
            found = config_of(folder, (allow,) if isinstance(allow, str) else tuple(allow))
            options["config"] = {key: value for key, value in found.items() if key != "load_from"}
        loaded = {"path": url, "weights": weights, "storage_options": access}
        return cls(weights={key: one for key, one in loaded.items() if one}, **options)

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def load_report(self) -> LoadReport | None:
        """What was loaded, and what of it did not fit; None without `weights`."""
        return self._runner.load_report

    def __call__(self, inputs: Any, *, progress: bool | None = None) -> Any:
        """Results for inputs: a list for a list, a generator for an iterator, else that of a single input.

        Args:
            progress: Whether to show how far it is; None shows it where stderr is a terminal, and not for a
                single input.

        Raises:
            ModelError: the outputs have no row for each input.
        """
        if isinstance(inputs, Iterator):
            return self.stream(inputs, progress=progress)
        if isinstance(inputs, list):
            return list(self.stream(inputs, progress=progress))
        [result] = self.stream([inputs], progress=bool(progress))
        return result

    def stream(self, inputs: Iterable[Any], *, progress: bool | None = None) -> Iterator[Any]:
        """The same of any iterable, as a generator: reads a batch of inputs when results are asked for."""
        total = len(inputs) if isinstance(inputs, Sized) else None
        for results in shown(self._batches(inputs), total, progress):
            yield from results

    def close(self) -> None:
        """Let go of what was opened. Idle, it holds nothing but the model."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _batches(self, inputs: Iterable[Any]) -> Iterator[list[Any]]:
        engine, post, done = self._runner.engine, self._steps.postprocess, 0
        for batch, size in self._steps.batches(inputs):
            engine.batch.size = engine.batch.total = size
            engine.batch.positions = range(done, done + size)
            outputs = to_host(engine.predict_step(engine.move(batch)))
            rows = take_apart(outputs, size)
            if rows is None:
                raise ModelError(
                    f"{type(self._model).__name__} returned {outline(outputs)} for a batch of {size} inputs, "
                    f"which has no row for each; return one with {size} rows from predict_step(batch)"
                )
            done += size
            yield rows if post is None else [post(row) for row in rows]


def _read(config: str | os.PathLike[str] | Mapping[str, Any], allow: Iterable[str]) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else Config.load(config, allow=allow)


def _beside_model(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says beside its model, where another one is given."""
    return {key: value for key, value in settings_in({"model": None, **found}).items() if key != "model"}


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _OPTIONS:
            known = (
                *_OPTIONS,
                "model",
                "weights",
                "config",
                "preprocess",
                "collate",
                "postprocess",
                "batch_size",
            )
            raise ConfigError(f"Inferencer takes no argument {name!r}; {nearest(name, known)}")


def _refuse_lone_name(weights: Any) -> None:
    """A name such as ``best`` without the run that it is of."""
    if weights is None:
        return
    wanted = LoadFrom.parse(weights)
    folder, name = split_name(wanted.path)
    if name is not None and not folder:
        raise ConfigError(
            f"weights={wanted.path!r}: of which run? write 'work_dirs/x/{name}', or "
            f"Inferencer.from_run('work_dirs/x', checkpoint={name!r})"
        )
