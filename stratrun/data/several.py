"""Several loaders as one source of batches."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stratrun.data.order import Share
from stratrun.data.part import Origin, Part, Place, Standing
from stratrun.data.several_spec import SeveralLoaders
from stratrun.data.source import Cursor, Setting, Source, refuse_other_data
from stratrun.data.turns import MODES, Drawn, beginning
from stratrun.errors import ConfigError, DataError

_REMEMBERED = 4


class SeveralSource(Source):
    """Batches of several loaders, from the same loader on all ranks at the same time.

    Where each of them stands is part of the cursor, so that a run goes on in the middle of all of them.
    """

    kind = "several loaders"

    def __init__(self, parts: Sequence[Part], spec: SeveralLoaders, setting: Setting) -> None:
        self._parts = parts
        self._spec = spec
        self._setting = setting
        self._seed = setting.seed
        self._names = [part.name for part in parts]
        self._turns = MODES[spec.mode](parts, spec.until, spec.weights)
        # Batches of an epoch, by the epoch: loops ask for it in each step.
        self._lengths: dict[int, int] = {}
        for part in parts:
            if spec.together and part.source.uneven:
                raise ConfigError(
                    f"{setting.name}.loaders.{part.name}: its last batch cannot be shared equally by "
                    f"{setting.world_size} ranks, and with mode={spec.mode!r} there is no weight that "
                    "would be right for the others too; set drop_last=True"
                )

    @property
    def dataset(self) -> dict[str, Any]:
        return {part.name: part.source.dataset for part in self._parts}

    @property
    def ahead(self) -> bool:
        return all(part.source.ahead for part in self._parts)

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        self._turns.enter(self._seed, cursor.epoch, self._standing(cursor))
        return self._batches(cursor.batches, cursor.consumed)

    def left(self, cursor: Cursor) -> int | None:
        if cursor.epoch not in self._lengths:
            lefts = self.lengths(cursor)
            known = [left for left in lefts if left is not None]
            if len(known) < len(lefts):
                return None
            key = (self._seed, self._setting.order_of(cursor.epoch))
            left = self._turns.left(cursor.batches, self._standing(cursor), known, key)
            if len(self._lengths) >= _REMEMBERED:
                self._lengths.clear()
            self._lengths[cursor.epoch] = cursor.batches + left
        return max(self._lengths[cursor.epoch] - cursor.batches, 0)

    def lengths(self, cursor: Cursor) -> list[int | None]:
        places = self._standing(cursor).places
        return [part.left(cursor.epoch, place) for part, place in zip(self._parts, places, strict=True)]

    def describe(self) -> str:
        spec = self._spec
        how = {
            "round_robin": "a batch of each by turns",
            "weighted": "chosen by weight",
            "in_order": "one after the other",
            "min_size": "a batch of each at a time, until the first has ended",
            "max_size": "a batch of each at a time, until all have ended, others begin again",
        }[spec.mode]
        until = {"all": "", "shortest": ", until the first has ended", "longest": ", until all have ended"}
        parts = "; ".join(f"{part.name}: {part.source.describe()}" for part in self._parts)
        weights = "" if spec.weights is None else f" ({_shown(self._names, spec.weights)})"
        return f"{len(self._parts)} loaders, {how}{weights}{until[spec.until]}: {parts}"

    def state(self, cursor: Cursor) -> dict[str, Any]:
        standing = self._standing(cursor)
        parts, loaders = {}, {}
        for part, place in zip(self._parts, standing.places, strict=True):
            state = part.source.state(place.cursor(cursor.epoch))
            if "loader" in state:
                loaders[part.name] = state.pop("loader")
            parts[part.name] = {**place._asdict(), "kind": part.source.kind, **state}
        return {
            "seed": self._seed,
            "loaders": self._names,
            "mode": self._spec.mode,
            "until": self._spec.until,
            "weights": self._spec.weights,
            "turn": standing.turn,
            "parts": parts,
            **({"loader": loaders} if loaders else {}),
        }

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        self._seed = state.get("seed", self._seed)
        self._lengths.clear()
        saved, loaders = state.get("parts", {}), state.get("loader") or {}
        for what, then, now in (
            ("loaders", state.get("loaders"), self._names),
            ("mode", state.get("mode"), self._spec.mode),
            ("until", state.get("until"), self._spec.until),
        ):
            refuse_other_data(what, then, now, cursor, self._setting)
        if cursor.batches:
            places = (Place(*(saved[name][key] for key in Place._fields)) for name in self._names)
            cursor.parts = Standing(state["turn"], tuple(places))
        told = []
        for part, place in zip(self._parts, self._standing(cursor).places, strict=True):
            if part.name not in saved:
                continue
            own = {**saved[part.name], **({"loader": loaders[part.name]} if part.name in loaders else {})}
            then = place.cursor(cursor.epoch)
            refuse_other_data("kind", own["kind"], part.source.kind, then, part.setting)
            if text := part.source.go_on(own, then):
                told.append(f"{part.name}: {text}")
        if cursor.batches and state["weights"] != self._spec.weights:
            told.append(f"weights were {_shown(self._names, state['weights'])}, and are others from here on")
        return "; ".join(told)

    def indices(self, epoch: int, positions: Sequence[int]) -> Sequence[int] | None:
        if not isinstance(positions, Positions) or positions.source is None:
            return None
        which, passes, own = positions.source
        return self._parts[which].indices(epoch, passes, own)

    def reseed(self, seed: int) -> None:
        self._lengths.clear()
        super().reseed(seed)

    def hold(self, cursor: Cursor) -> None:
        for part, place in zip(self._parts, self._standing(cursor).places, strict=True):
            part.source.hold(place.cursor(cursor.epoch))

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _standing(self, cursor: Cursor) -> Standing:
        standing: Standing | None = cursor.parts
        return standing or beginning(self._parts)

    def _batches(self, number: int, consumed: int) -> Iterator[tuple[Any, Share]]:
        while (drawn := self._turns.draw(number)) is not None:
            batch, share = self._one(drawn, consumed)
            yield batch, share
            number, consumed = number + 1, consumed + share.advance

    def _one(self, drawn: Drawn, consumed: int) -> tuple[Any, Share]:
        """What was drawn as one batch, the position of which is `consumed`."""
        if self._spec.together:
            return self._joined(drawn, consumed)
        ((which, (batch, share)),) = drawn.batches.items()
        name, place = self._names[which], drawn.before.places[which]
        own, positions = share.positions, None
        if own is not None and (moved := _moved(share, place, consumed)) is not None:
            positions = Positions((moved,), (which, place.passes, own))
        origin = Origin(name, drawn.before, self._turns.standing)
        given = {name: batch} if self._spec.as_dict else batch
        return given, share._replace(positions=positions, origin=origin)

    def _joined(self, drawn: Drawn, consumed: int) -> tuple[Any, Share]:
        shares = {which: share for which, (_, share) in drawn.batches.items()}
        ranges, at = [], consumed
        for which, share in shares.items():
            if share.scale != 1.0:
                raise DataError(
                    f"{self._setting.name}.loaders.{self._names[which]}: a batch that ranks do not share "
                    f"equally has a weight that would not be right for those of other loaders, with mode="
                    f"{self._spec.mode!r}; set drop_last=True"
                )
            ranges.append(_moved(share, drawn.before.places[which], at))
            at += share.advance
        known = tuple(positions for positions in ranges if positions is not None)
        joined = Share(
            size=_sum([share.size for share in shares.values()]),
            scale=1.0,
            positions=Positions(known) if len(known) == len(ranges) else None,
            total=_sum([share.total for share in shares.values()]),
            advance=at - consumed,
            origin=Origin(None, drawn.before, self._turns.standing),
        )
        return {self._names[which]: batch for which, (batch, _) in drawn.batches.items()}, joined


class Positions(Sequence[int]):
    """Places of samples in an epoch of several loaders.

    Args:
        source: The loader that all are of, how often it had ended, and the places in its own pass.
    """

    def __init__(
        self, ranges: tuple[range, ...], source: tuple[int, int, Sequence[int]] | None = None
    ) -> None:
        self._ranges = ranges
        self.source = source

    def __len__(self) -> int:
        return sum(map(len, self._ranges))

    def __getitem__(self, index: Any) -> Any:
        return [position for positions in self._ranges for position in positions][index]


def _moved(share: Share, place: Place, to: int) -> range | None:
    """Positions of a loader at `place` where its batch is at `to`; None where they do not count samples."""
    own = share.positions
    if not isinstance(own, range) or (own and own[-1] - place.consumed >= share.advance):
        return None
    by = to - place.consumed
    return range(own.start + by, own.stop + by, own.step)


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _shown(names: Any, weights: Sequence[float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights, strict=True))
