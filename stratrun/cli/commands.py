"""The commands beside the jobs: which there are, and where each is.

A command is a module with two functions, imported only when it is called for:

    def add_arguments(parser: ArgumentParser) -> None     what it takes
    def run(given: Namespace) -> int                      do it; returns the exit code
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is, and what it does, in a line."""

    module: str
    about: str
    settable: bool = False
    """Whether it reads a config, whose values can be set as key=value."""


COMMANDS: Mapping[str, Command] = {
    "ckpt ls": Command("stratrun.cli.ckpt.ls", "list the checkpoints of a run"),
    "ckpt show": Command("stratrun.cli.ckpt.show", "what a checkpoint holds"),
    "ckpt verify": Command("stratrun.cli.ckpt.verify", "read and check every byte of checkpoints"),
    "ckpt export": Command("stratrun.cli.ckpt.export", "the weights alone, as one safetensors file"),
    "ckpt prune": Command("stratrun.cli.ckpt.prune", "delete old checkpoints"),
    "env": Command("stratrun.cli.env", "versions, hardware and variables, and what is amiss with them"),
    "find-lr": Command(
        "stratrun.cli.find_lr", "try rising learning rates, and see which the loss falls at", settable=True
    ),
    "plan": Command(
        "stratrun.cli.plan", "what a run needs on so many ranks, without starting it", settable=True
    ),
    "plot-schedule": Command(
        "stratrun.cli.plot_schedule",
        "draw learning rates over a training, without starting it",
        settable=True,
    ),
    "report": Command("stratrun.cli.report", "curves, settings and results of runs, as a page"),
    "verify-resume": Command(
        "stratrun.cli.verify_resume", "kill and resume a short run, and compare it bit by bit", settable=True
    ),
}


def named_in(words: list[str]) -> tuple[str, list[str]] | None:
    """The command that the first words name, and the words behind it."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    return None


def group_of(word: str) -> dict[str, Command]:
    """The commands whose first word it is, by the second."""
    pairs = ((name.partition(" "), command) for name, command in COMMANDS.items())
    return {second: command for (first, _, second), command in pairs if first == word and second}


def listed(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    return "\n".join(f"  {name:{width}}   {command.about}" for name, command in commands.items())
