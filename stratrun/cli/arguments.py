"""What was typed. Nothing here imports torch, so that ``--help`` answers at once."""

import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import stratrun
from stratrun.cli.commands import COMMANDS, listed
from stratrun.errors import ConfigError, nearest

JOBS = ("train", "val", "test", "predict")
_DESCRIPTION = """\
Do one job of a run that a config file describes.

  train     train, and validate as train_cfg says
  val       metrics on the validation data
  test      metrics on the test data
  predict   what the model says of each sample, into predictions.jsonl in the work dir

Or see to what comes before and after; each has a --help of its own, `stratrun help COMMAND` too.
"""
_EXAMPLES = """\
examples:
  stratrun train digits.yaml --import models.py
  stratrun train digits.yaml --import models.py optimizer.lr=3e-4 train_cfg.max_epochs=20
  stratrun train digits.yaml --import models.py --resume auto
  stratrun test digits.yaml --import models.py load_from=work_dirs/digits/checkpoints/step-00000230
  stratrun predict digits.yaml --import models.py --checkpoint best --inputs 'scans/*.png' --out digits.jsonl
  torchrun --nproc_per_node=2 -m stratrun train digits.yaml --import models.py

exit codes:
  0   done
  1   a failure, or what was to be compared or verified is not as it should be
  2   a mistake of the user's: nothing was lost, and the message says what to change
  130 Ctrl-C; 143 SIGTERM; any other signal that ends a run is 128 and its number

STRATRUN_FULL_TRACEBACK=1 shows where in stratrun an error was raised."""
_SETTING = re.compile(r"[A-Za-z_][\w.-]*=")
_CONFIG_ENDINGS = (".yaml", ".yml", ".toml", ".json", ".py")


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line, understood."""

    job: str
    config: str
    settings: tuple[str, ...] = ()
    """``key=value``, in the order given."""
    imports: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    work_dir: str | None = None
    resume: bool | str = False
    checkpoint: str | None = None
    inputs: tuple[str, ...] = ()
    """Files of raw inputs, or patterns of their names."""
    out: str | None = None


def parse(argv: Sequence[str]) -> Arguments:
    """Understand a command line. Ends the process itself for ``--help`` and ``--version``.

    Raises:
        ConfigError: something is missing, or is neither an option nor a setting.
    """
    parser = _parser()
    given, unknown = parser.parse_known_intermixed_args(_with_resume(argv))
    if given.job is None:
        parser.print_help()
        raise SystemExit(0 if not argv else 2)
    if given.job not in JOBS:
        raise ConfigError(_why_no_job(given.job))
    if unknown:
        raise ConfigError(why_unknown(unknown[0], parser, settable=True))
    check_config(given.config, given.settings, given.job)
    _check_prediction(given)
    resume = given.resume if given.resume is not None else False
    return Arguments(
        job=given.job,
        config=given.config,
        settings=tuple(given.settings),
        imports=tuple(given.imports),
        allow=tuple(given.allow),
        work_dir=given.work_dir,
        resume=True if resume == "" else resume,
        checkpoint=given.checkpoint,
        inputs=tuple(given.inputs),
        out=given.out,
    )


def check_config(config: str | None, settings: Sequence[str], command: str) -> None:
    """
    Raises:
        ConfigError: there is no config, or a setting is none.
    """
    if config is None or _SETTING.match(config):
        raise ConfigError(f"which config? write: stratrun {command} CONFIG [key=value ...]")
    for setting in settings:
        if not _SETTING.match(setting):
            raise ConfigError(
                f"{setting!r} is no setting; settings are given as key=value, and a command has one config"
            )


def _check_prediction(given: Namespace) -> None:
    """
    Raises:
        ConfigError: an option has no meaning for the job.
    """
    if given.checkpoint is not None and given.job == "train":
        raise ConfigError("--checkpoint says which weights to evaluate; training goes on with --resume")
    for option in ("inputs", "out"):
        if getattr(given, option) and given.job != "predict":
            raise ConfigError(f"--{option} is an option of predict, not of {given.job}")
    if given.out and not given.inputs:
        raise ConfigError(
            "--out goes with --inputs; predictions of predict_dataloader go into the work dir (--work-dir)"
        )


class Parser(ArgumentParser):
    """Reports mistakes as errors of ours, in place of its own manner."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser() -> ArgumentParser:
    parser = Parser(
        prog="stratrun",
        usage="stratrun train|val|test|predict CONFIG [key=value ...] [options]",
        description=f"{_DESCRIPTION}\n{listed(COMMANDS)}",
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("job", metavar="JOB", nargs="?", help="train, val, test or predict")
    _add_job_arguments(parser)
    parser.add_argument("--version", action="version", version=f"stratrun {stratrun.__version__}")
    return parser


def job_parser(job: str) -> ArgumentParser:
    """The parser of one job, for what reads parsers and does not parse."""
    parser = Parser(prog=f"stratrun {job}", allow_abbrev=False)
    _add_job_arguments(parser)
    return parser


def _add_job_arguments(parser: ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--work-dir", metavar="PATH", help="where all files go: a path or a URL; default work_dirs/<config>"
    )
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="go on from the newest checkpoint of the work dir, with 'auto' if there is one, or from PATH",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME|PATH",
        help="weights to evaluate: last, best, best:METRIC, step-00000012 of the work dir; or a path or URL",
    )
    _add_raw_inputs(parser)


def _add_raw_inputs(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--inputs",
        metavar="FILE",
        nargs="+",
        action="extend",
        default=[],
        help="predict on these in place of predict_dataloader: each line of a .txt or .jsonl, or of - for "
        "standard input, and any other file by its path; patterns such as 'scans/*.png' too",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where results of --inputs go; default predictions.jsonl in the work dir",
    )


def add_config_arguments(parser: ArgumentParser, *, key: str = "") -> None:
    """What every command takes that reads a config: `config`, `settings`, `imports`, `allow`.

    Args:
        key: Help for the dotted name that comes behind the config, for a command that takes one.
    """
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="a .yaml, .toml or .json file, or a .py file that you trust",
    )
    if key:
        parser.add_argument("key", metavar="KEY", nargs="?", help=key)
    parser.add_argument(
        "settings",
        metavar="key=value",
        nargs="*",
        help="set a value of the config, such as optimizer.lr=1e-3 or val_dataloader.batch_size=64",
    )
    add_import_argument(parser)
    parser.add_argument(
        "--allow",
        metavar="PREFIX",
        action="append",
        default=[],
        help="let the config name classes below this dotted prefix, such as --allow my_package",
    )


def add_import_argument(parser: ArgumentParser) -> None:
    """What every command takes that looks classes up by name: `imports`."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE_OR_FILE",
        action="append",
        default=[],
        help="import this first: it registers models, data sets, hooks, ...; may be given several times",
    )


def _with_resume(argv: Sequence[str]) -> list[str]:
    """Settle whether the word after ``--resume`` is its value, which argparse cannot tell."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--resume":
            value = rest.pop(0) if rest and _may_follow_resume(rest[0]) else ""
            word = f"--resume={value}"
        words.append(word)
    return words


def _may_follow_resume(word: str) -> bool:
    return not (word.startswith("-") or _SETTING.match(word) or word.endswith(_CONFIG_ENDINGS))


def why_unknown(word: str, parser: ArgumentParser, *, settable: bool = False) -> str:
    """Say that a word is none that a command knows.

    Args:
        settable: Whether the command has a config, of which a value may have been meant.
    """
    name, _, value = word.partition("=")
    if not name.startswith("-"):
        return f"{word!r} is one word too many; see {parser.prog} --help"
    setting = f"{name.lstrip('-').replace('-', '_')}={value or '...'}"
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    guess = nearest(name, options)
    hint = guess if guess.startswith("did you mean") else f"options are {', '.join(sorted(options))}"
    also = f" a value of the config is set without dashes, {setting};" if settable else ""
    return f"{name} is no option;{also} {hint}"


def _why_no_job(name: str) -> str:
    commands = {key.partition(" ")[0] for key in COMMANDS}
    if name in commands:
        return f"{name!r} comes first, and its options behind it: stratrun {name} ..."
    return f"no job is called {name!r}; {nearest(name, {*JOBS, *commands})}"
