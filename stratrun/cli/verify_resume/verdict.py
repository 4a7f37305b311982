"""The result in words: what is equal, or what differs and what is the likely cause."""

from __future__ import annotations

from collections.abc import Sequence

from stratrun.cli.verify_resume.differences import Finding

Hidden = list[tuple[str, str, str]]
"""Attributes that no checkpoint has: name, uninterrupted, resumed."""
_SHOWN = 8
_KEEP = {
    "hook": "return it from the hook's state_dict and take it back in load_state_dict",
    "model": "register it as a buffer, or return it from get_extra_state",
    "training": "draw from the generator of torch, numpy or random itself, which each sample finds seeded",
}
_USUAL = (
    "a hook with state but no state_dict",
    "a data set, sampler or transform that draws from a generator of its own",
    "state in a module or a global that is no buffer",
)
_NOT_OF_RESUMING = (
    "a generator that nobody seeds; draw from that of torch, numpy or random itself",
    "operations that are not deterministic; try randomness.deterministic=true",
    "values that depend on the time, on the order of a set, or on other processes",
)


def hidden_differences(one: dict[str, str], other: dict[str, str]) -> Hidden:
    names = dict.fromkeys([*one, *other])
    pairs = [(name, one.get(name, "not there"), other.get(name, "not there")) for name in names]
    return [entry for entry in pairs if entry[1] != entry[2]]


def equal(found: Sequence[Finding], hidden: Hidden, since: int, end: int, processes: int) -> str:
    on = f" on {processes} processes" if processes > 1 else ""
    lines = [
        f"verify-resume: equal to the bit: {end} iterations{on}, and the same killed and resumed from "
        f"iteration {since}",
        *(f"  {one}" for one in found if one.count),
    ]
    if hidden:
        lines.append("what no checkpoint has, and differs; it has changed nothing so far:")
        lines += _listed(hidden)
    return "\n".join(lines)


def different(found: Sequence[Finding], hidden: Hidden, since: int, repeatable: bool) -> str:
    lines = [
        f"verify-resume: the run resumed from iteration {since} is not the uninterrupted one",
        *(f"  {one}" for one in found if one.differing),
    ]
    right = [one.area for one in found if one.count and not one.differing]
    if right:
        lines.append(f"equal: {', '.join(right)}")
    if hidden:
        lines.append("what no checkpoint has, and differs; the likely cause:")
        lines += _listed(hidden)
    if repeatable:
        lines.append("two uninterrupted runs are equal, so something is lost at resuming; usually it is")
        lines += [f"  {cause}" for cause in _USUAL]
    else:
        lines.append("two uninterrupted runs differ as well, so it is not resuming alone; usually it is")
        lines += [f"  {cause}" for cause in _NOT_OF_RESUMING]
    return "\n".join(lines)


def _listed(hidden: Hidden) -> list[str]:
    lines = [f"  {name} is {one} uninterrupted and {other} resumed" for name, one, other in hidden[:_SHOWN]]
    if len(hidden) > _SHOWN:
        lines.append(f"  and {len(hidden) - _SHOWN} more")
    kinds = dict.fromkeys(name.partition(" ")[0] for name, *_ in hidden)
    return [*lines, *(f"  to keep what the {_NAMED[kind]} has: {_KEEP[kind]}" for kind in kinds)]


_NAMED = {"hook": "hook", "model": "model", "training": "data"}
