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
    examples: tuple[str, ...]
    """What may follow its name, as its ``--help`` shows it."""
    settable: bool = False
    """Whether it reads a config, whose values can be set as key=value."""
    opens: bool = False
    """Whether all from the first word that is no option of its own on is another command line."""


COMMANDS: Mapping[str, Command] = {
    "check": Command(
        "stratrun.cli.check",
        "name every mistake of a config, building nothing",
        (
            "digits.yaml --import parts.py",
            "digits.yaml --import parts.py optimizer.lr=3e-4 --job train --json",
            "digits.yaml --import parts.py --dry-run --world-size 2",
        ),
        settable=True,
    ),
    "ckpt ls": Command(
        "stratrun.cli.ckpt.ls",
        "list the checkpoints of a run",
        ("work_dirs/digits", "s3://bucket/run1 --verify", "work_dirs/digits --json"),
    ),
    "ckpt show": Command(
        "stratrun.cli.ckpt.show",
        "what a checkpoint holds",
        ("work_dirs/digits/last", "work_dirs/digits/best --tensors 'model/*'"),
    ),
    "ckpt verify": Command(
        "stratrun.cli.ckpt.verify", "read and check every byte of checkpoints", ("work_dirs/digits",)
    ),
    "ckpt export": Command(
        "stratrun.cli.ckpt.export",
        "the weights alone, as one safetensors file",
        ("work_dirs/digits/best -o digits.safetensors",),
    ),
    "ckpt prune": Command(
        "stratrun.cli.ckpt.prune",
        "delete old checkpoints",
        ("work_dirs/digits --keep-last 2", "work_dirs/digits --keep-last 2 --yes"),
    ),
    "completion": Command(
        "stratrun.cli.completion",
        "have a shell complete commands and options",
        ("bash > ~/.local/share/bash-completion/completions/stratrun", "zsh > ~/.zfunc/_stratrun"),
    ),
    "config show": Command(
        "stratrun.cli.config.show",
        "the values that a run would have",
        ("digits.yaml optimizer.lr=1e-3", "digits.yaml --sources"),
        settable=True,
    ),
    "config explain": Command(
        "stratrun.cli.config.explain",
        "a value: who set it, what takes it, and what it is for",
        ("digits.yaml optimizer.lr", "digits.yaml train_dataloader train_dataloader.num_workers=4"),
        settable=True,
    ),
    "config diff": Command(
        "stratrun.cli.config.diff",
        "in which values two configs differ",
        ("digits.yaml other.yaml", "work_dirs/first/config.yaml work_dirs/second/config.yaml"),
    ),
    "config schema": Command(
        "stratrun.cli.config.schema",
        "JSON Schema of a config, or of a class, for editors",
        ("--import parts.py --out schema.json", "hooks EMAHook"),
    ),
    "find-lr": Command(
        "stratrun.cli.find_lr",
        "try rising learning rates, and see which the loss falls at",
        ("digits.yaml --import parts.py", "digits.yaml --import parts.py --end-lr 1 --out rates.png"),
        settable=True,
    ),
    "info": Command(
        "stratrun.cli.info",
        "versions, hardware and variables, and what is amiss with them",
        ("", "--json > info.json"),
    ),
    "launch": Command(
        "stratrun.cli.launch",
        "start a job or a program on several processes, by torchrun",
        (
            "-n 2 train digits.yaml --import parts.py",
            "-n 8 train.py",
            "-n 8 --nodes 2 --rendezvous node0:29500 train digits.yaml --resume auto",
        ),
        opens=True,
    ),
    "list": Command(
        "stratrun.cli.list",
        "what a config may name: hooks, strategies, ...",
        ("", "hooks", "hooks EMAHook", "models --import parts.py"),
    ),
    "new": Command(
        "stratrun.cli.new", "a small project that trains at once", ("spirals", "projects/spirals")
    ),
    "migrate lightning": Command(
        "stratrun.cli.migrate.lightning",
        "a checkpoint of Lightning as ours, with a report",
        ("epoch=9-step=1000.ckpt --out weights.safetensors",),
    ),
    "migrate mmengine": Command(
        "stratrun.cli.migrate.mmengine",
        "a config or a checkpoint of MMEngine as ours, with a report",
        ("resnet.py --out resnet.yaml", "epoch_12.pth"),
    ),
    "plan": Command(
        "stratrun.cli.plan",
        "what a run needs on so many ranks, without starting it",
        ("digits.yaml --import parts.py -n 8 --strategy fsdp",),
        settable=True,
    ),
    "plot-schedule": Command(
        "stratrun.cli.plot_schedule",
        "draw learning rates over a training, without starting it",
        ("digits.yaml --import parts.py", "digits.yaml --import parts.py --out rates.png"),
        settable=True,
    ),
    "report": Command(
        "stratrun.cli.report",
        "curves, settings and results of runs, as a page",
        ("work_dirs/digits", "work_dirs/digits work_dirs/digits-2 --out both.html"),
    ),
    "verify-resume": Command(
        "stratrun.cli.verify_resume",
        "kill and resume a short run, and compare it bit by bit",
        ("digits.yaml --import parts.py --iters 4", "digits.yaml --import parts.py -n 2"),
        settable=True,
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
