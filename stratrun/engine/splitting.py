"""Training steps in parts, where a batch takes more memory than there is."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stratrun.data.batch import batch_size_of
from stratrun.engine.before import Before
from stratrun.engine.contract import detached
from stratrun.engine.finding import most_that_fit
from stratrun.engine.graphs import GraphedStep
from stratrun.engine.memory import give_back, is_out_of_memory
from stratrun.engine.pieces import Piece, joined, pieces_of
from stratrun.errors import ConfigError, PeerError

if TYPE_CHECKING:
    from stratrun.engine.engine import Engine

_LOG = logging.getLogger("stratrun.engine")
_NOTHING = nullcontext()
_UNDER_WAY = (
    "stratrun: ranks were exchanging gradients while this one computed, so that it could not begin anew by "
    "itself. Steps can be split as long as they are tried out: give MicroBatchHook more trials=, trials=None "
    "for all of them, or parts="
)


class Splitting:
    """Makes each step in so many parts as fit, one after another, with the gradient of the whole batch.

    A step that runs out of memory is forgotten and made again in twice as many parts, as are all after it.
    A rank that is alone does so at any time. Several do while steps are tried out: then each computes
    by itself, and they exchange gradients and agree on the number of parts after that. Later they exchange
    while they compute, as ever, and none can begin anew.
    """

    def __init__(self, engine: "Engine") -> None:
        self.parts: int = 1
        self.trials: int | None = 0
        """Updates for which steps are tried out; None for all."""
        self.tried: int = 0
        """Updates of those that were made."""
        self.found: int | None = None
        """The most samples that fit at once, once that was looked for."""
        self._engine = engine
        self._limit: int | bool = False
        self._alone = True
        self._parameters: list[nn.Parameter] = []

    def begin(self, parts: int, trials: int | None, find: int | bool = False) -> None:
        """Have training steps made in parts from now on.

        Args:
            find: Look with the first batch for the most samples that fit: up to as many as it has, or to
                this number.

        Raises:
            ConfigError: the steps of this run cannot be split.
        """
        engine, strategy = self._engine, self._engine._strategy
        if strategy.collective_forward or strategy.shares_gradients:
            raise ConfigError(
                f"strategy={strategy.name!r}: ranks wait for each other within a step, so that one that has "
                "run out of memory cannot begin anew by itself; leave MicroBatchHook out, and give a smaller "
                "batch_size with accumulate=, or activation_checkpointing=True"
            )
        if isinstance(engine.train_step, GraphedStep):
            raise ConfigError(
                "compile: graphs=True replays whole steps, which MicroBatchHook makes in parts; leave one of "
                "the two out"
            )
        self.parts, self.trials, self._limit = parts, trials, find
        self._alone = engine.gauges.ranks.world_size == 1
        self._parameters = list(engine._placed.bare.parameters())
        engine.train_step = self._step  # type: ignore[method-assign]

    @property
    def _trying(self) -> bool:
        return self.trials is None or self.tried < self.trials

    def _step(self, batch: Any, *, update: bool = True, divisor: int = 1) -> dict[str, Any]:
        """One step; see `Engine.train_step`."""
        engine = self._engine
        if not engine.model.training:
            engine._placed.to_training()
        size = batch_size_of(batch) or 1
        if self._limit and self.found is None:
            self._find(batch, size)
        if self._alone or self._trying:
            outputs = self._fitted(batch, size, update, divisor)
        else:
            pieces = pieces_of(batch, size, min(self.parts, size))
            try:
                outputs = self._worked(pieces, divisor, update, engine._placed.wrapped)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    error.add_note(_UNDER_WAY)
                raise
        if update:
            self.tried += self._trying
            norm = engine._updates.step()
            if norm is not None:
                outputs["grad_norm"] = norm
        return outputs

    def _fitted(self, batch: Any, size: int, update: bool, divisor: int) -> dict[str, Any]:
        """A step by this rank alone, in as many parts as it takes; then what is for all of them to do."""
        engine, strategy, bare = self._engine, self._engine._strategy, self._engine._placed.bare
        if not self._alone:
            strategy.sync_buffers(bare)  # which the wrapped module, that is not called, would do
        before = Before(engine, self._parameters, divisor, exact=self._trying)
        first = parts = min(self.parts, size)
        try:
            while (outputs := self._attempt(pieces_of(batch, size, parts), divisor)) is None:
                before.again()
                parts = min(2 * parts, size)
        except BaseException as error:
            before.put_back()
            if is_out_of_memory(error):
                error.add_note("stratrun: it does not fit one sample at a time either")
                self._agree(self.parts, f"{type(error).__name__}: {error}")
            raise
        before.add()
        self._agree(parts if parts > first else self.parts)
        if update and not self._alone:
            strategy.reduce_gradients(self._parameters)
        return outputs

    def _attempt(self, pieces: list[Piece], divisor: int) -> dict[str, Any] | None:
        """None if it takes more memory than there is, and could be made in smaller pieces."""
        try:
            return self._worked(pieces, divisor, False, self._engine._placed.bare)
        except RuntimeError as error:
            if not is_out_of_memory(error) or pieces[0].size == 1:
                raise
        # Only here, as the error holds what the step has computed.
        give_back(self._engine._device)
        return None

    def _worked(
        self, pieces: list[Piece], divisor: int, exchange: bool, module: Callable[..., Any]
    ) -> dict[str, Any]:
        """Forward and backward of each piece.

        Args:
            exchange: Whether the strategy averages the gradients during the last backward pass.
        """
        engine, outputs, whole = self._engine, list[dict[str, Any]](), dict[str, Any]()
        window, wrapped = engine._updates._window, engine._placed.wrapped
        for number, piece in enumerate(pieces, start=1):
            is_last = number == len(pieces)
            within = module is wrapped and not (exchange and is_last)
            with engine._strategy.no_sync(wrapped) if within else _NOTHING:
                with engine._precision.forward_context():
                    made = module(piece.batch, "train", True)
                scale = engine.batch.scale if piece.share == 1.0 else engine.batch.scale * piece.share
                outputs.append({name: detached(value) for name, value in made.items()})
                whole = joined(outputs, pieces) if is_last else whole
                engine._updates.backward(made, divisor, scale, whole if len(pieces) > 1 else None)
            del made
        window.batches -= len(pieces) - 1  # they count as the one batch that they are of
        return whole

    def _agree(self, parts: int, failure: str = "") -> None:
        """Go on with the most parts that any rank needed.

        Raises:
            PeerError: another rank cannot make the step in any number.
        """
        if self._alone and parts == self.parts:
            return
        told = self._engine._data.gather((parts, failure))
        if not failure:
            for rank, (_, text) in enumerate(told):
                if text:
                    raise PeerError(f"rank {rank} cannot make the step with the memory it has: {text}")
        most = max(one for one, _ in told)
        if most > self.parts:
            who = [str(rank) for rank, (one, _) in enumerate(told) if one == most]
            where = "" if self._alone else f" on rank {', '.join(who)}"
            self._say(f"a step ran out of memory{where}: each is made in {most} parts from here on")
        self.parts = max(most, self.parts)

    def _find(self, batch: Any, size: int) -> None:
        """Look for the most samples that fit, all ranks together."""
        engine = self._engine
        limit = size if self._limit is True else int(self._limit)
        most = most_that_fit(engine, self._parameters, batch, size, limit)
        self.found = min(engine._data.gather(most))
        if not self.found:
            raise torch.OutOfMemoryError("not one sample fits beside the model and what its optimizer keeps")
        self.parts = max(self.parts, *engine._data.gather(-(-size // self.found)))
        more = "or more " if self.found == limit else ""
        self._say(
            f"{self.found} {more}samples fit on each rank at once; a step is made in {self.parts} parts"
        )

    def _say(self, text: str) -> None:
        if self._engine._data.rank == 0:
            _LOG.warning("%s", text)
